// ggn_diagonal and ggn_blocks, equation (7).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../kernels/cpu/kernels.h"
#include "diagonal.h"
#include "parallel.h"

namespace ifru::ops {
namespace {

// Calls run(kernels, args, begin, end) for pieces of rows.
template <class Run>
void run_rows(const char* op, const CurvatureTensors& t, const Tensor& out, const Run& run) {
  const int64_t* rowptr = t.rowptr.const_data_ptr<int64_t>();
  check_rowptr(op, rowptr, t.n_rows(), t.neighbor.numel());
  dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::DiagonalArgs<T, I> args{rowptr,
                                       t.neighbor.const_data_ptr<I>(),
                                       data_or_null<I>(t.other),
                                       t.curvature.const_data_ptr<T>(),
                                       t.f.const_data_ptr<T>(),
                                       data_or_null<T>(t.ridge),
                                       out.mutable_data_ptr<T>(),
                                       t.f.size(0),
                                       t.f.size(1)};
    const bool ok = parallel_rows(rowptr, t.n_rows(), [&](int64_t begin, int64_t end) {
      return run(cpu::kernels<T, I>(), args, begin, end);
    });
    if (!ok) {
      fail(op, "neighbor and other: expected node ids in [0, ", t.f.size(0),
           ") or -1, found others");
    }
  });
}

struct Cpu {
  static void run_diagonal(const char* op, const CurvatureTensors& t, const Tensor& out) {
    run_rows(op, t, out, [](const auto& kernels, const auto& args, int64_t begin, int64_t end) {
      return kernels.diagonal(args, begin, end);
    });
  }
  static void run_blocks(const char* op, const CurvatureTensors& t, const Tensor& out) {
    run_rows(op, t, out, [](const auto& kernels, const auto& args, int64_t begin, int64_t end) {
      std::vector<std::remove_pointer_t<decltype(args.out)>> scratch(args.d *
                                                                     (args.d + cpu::kBlockEntries));
      return kernels.blocks(args, begin, end, scratch.data());
    });
  }
};

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("ggn_diagonal", TORCH_BOX(&ifru::ops::ggn_diagonal<ifru::ops::Cpu>));
  m.impl("ggn_blocks", TORCH_BOX(&ifru::ops::ggn_blocks<ifru::ops::Cpu>));
}
