// ggn_diagonal and ggn_blocks, equation (7).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../kernels/cpu/kernels.h"
#include "diagonal_checks.h"
#include "dispatch.h"
#include "parallel.h"

namespace ifru::ops {
namespace {

// Checks, allocates an output of one row per row of rowptr, and calls
// run(kernels, args, begin, end) for pieces of rows.
template <class Run>
Tensor curvature_rows(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                      const std::optional<Tensor>& other, const Tensor& curvature, const Tensor& f,
                      const std::optional<Tensor>& ridge, bool blocks, const Run& run) {
  check_curvature_rows(op, rowptr, neighbor, other, curvature, f, ridge);
  const int64_t n_rows = rowptr.numel() - 1;
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  check_rowptr(op, rowptr_data, n_rows, neighbor.numel());

  Tensor out = new_curvature_rows(rowptr, f, blocks);
  dispatch(op, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::DiagonalArgs<T, I> args{rowptr_data,
                                       neighbor.const_data_ptr<I>(),
                                       data_or_null<I>(other),
                                       curvature.const_data_ptr<T>(),
                                       f.const_data_ptr<T>(),
                                       data_or_null<T>(ridge),
                                       out.mutable_data_ptr<T>(),
                                       f.size(0),
                                       f.size(1)};
    const bool ok = parallel_rows(rowptr_data, n_rows, [&](int64_t begin, int64_t end) {
      return run(cpu::kernels<T, I>(), args, begin, end);
    });
    if (!ok) {
      fail(op, "neighbor and other: expected node ids in [0, ", f.size(0), ") or -1, found others");
    }
  });
  return out;
}

Tensor ggn_diagonal(const Tensor& rowptr, const Tensor& neighbor,
                    const std::optional<Tensor>& other, const Tensor& curvature, const Tensor& f,
                    const std::optional<Tensor>& ridge) {
  return curvature_rows("ggn_diagonal", rowptr, neighbor, other, curvature, f, ridge, false,
                        [](const auto& kernels, const auto& args, int64_t begin, int64_t end) {
                          return kernels.diagonal(args, begin, end);
                        });
}

Tensor ggn_blocks(const Tensor& rowptr, const Tensor& neighbor, const std::optional<Tensor>& other,
                  const Tensor& curvature, const Tensor& f, const std::optional<Tensor>& ridge) {
  return curvature_rows("ggn_blocks", rowptr, neighbor, other, curvature, f, ridge, true,
                        [](const auto& kernels, const auto& args, int64_t begin, int64_t end) {
                          std::vector<std::remove_pointer_t<decltype(args.out)>> scratch(
                              args.d * (args.d + cpu::kBlockEntries));
                          return kernels.blocks(args, begin, end, scratch.data());
                        });
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("ggn_diagonal", TORCH_BOX(&ifru::ops::ggn_diagonal));
  m.impl("ggn_blocks", TORCH_BOX(&ifru::ops::ggn_blocks));
}
