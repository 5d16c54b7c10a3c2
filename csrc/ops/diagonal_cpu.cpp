// ggn_diagonal and ggn_blocks, equation (7).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <vector>

#include "../kernels/cpu/kernels.h"
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
  check_shape(op, "f", f, 2, -1);
  check_shape(op, "rowptr", rowptr, 1, -1);
  check_int64(op, "rowptr", rowptr);
  check_shape(op, "neighbor", neighbor, 1, -1);
  if (rowptr.numel() == 0) fail(op, "rowptr: expected at least one entry, got none");
  for (const Tensor* t : {&rowptr, &neighbor}) check_device(op, *t, f);
  if (other.has_value()) {
    check_shape(op, "other", *other, 1, neighbor.numel());
    check_same(op, "other", *other, "neighbor", neighbor);
  }
  const int64_t n_rows = rowptr.numel() - 1;
  const int64_t d = f.size(1);
  check_value(op, "curvature", curvature, "f", f, 1, neighbor.numel());
  check_value(op, "ridge", ridge, "f", f, 1, n_rows);
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  check_rowptr(op, rowptr_data, n_rows, neighbor.numel());

  const std::array<int64_t, 3> shape{n_rows, d, d};
  Tensor out = torch::stable::new_empty(f, {shape.data(), blocks ? size_t(3) : size_t(2)});
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
                                       d};
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
