// restricted_hvp and restricted_ggn, equation (6) on some rows.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"

namespace ifru::ops {
namespace {

Tensor restricted_product(const char* op, const Tensor& rowptr, const Tensor& rows,
                          const Tensor& neighbor, const Tensor& local,
                          const std::optional<Tensor>& residual, const Tensor& curvature,
                          const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  check_shape(op, "f", f, 2, -1);
  check_shape(op, "rows", rows, 1, -1);
  const int64_t n_rows = rows.numel();
  check_value(op, "z", z, "f", f, 2, n_rows, f.size(1));
  check_adjacency(op, rowptr, neighbor, z);
  check_value(op, "rows", rows, "neighbor", neighbor, 1, n_rows);
  check_value(op, "local", local, "neighbor", neighbor, 1, neighbor.numel());
  check_value(op, "residual", residual, "f", f, 1, neighbor.numel());
  check_value(op, "curvature", curvature, "f", f, 1, neighbor.numel());
  check_value(op, "ridge", ridge, "f", f, 1, n_rows);
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  check_rowptr(op, rowptr_data, n_rows, neighbor.numel());

  Tensor out = torch::stable::empty_like(z);
  dispatch(op, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::RestrictedArgs<T, I> args{rowptr_data,
                                         rows.const_data_ptr<I>(),
                                         neighbor.const_data_ptr<I>(),
                                         local.const_data_ptr<I>(),
                                         data_or_null<T>(residual),
                                         curvature.const_data_ptr<T>(),
                                         f.const_data_ptr<T>(),
                                         z.const_data_ptr<T>(),
                                         data_or_null<T>(ridge),
                                         out.mutable_data_ptr<T>(),
                                         n_rows,
                                         f.size(0),
                                         f.size(1)};
    const auto& kernels = cpu::kernels<T, I>();
    const auto product =
        residual.has_value() ? kernels.restricted_hvp : kernels.restricted_gauss_newton;
    const bool ok = parallel_rows(
        rowptr_data, n_rows, [&](int64_t begin, int64_t end) { return product(args, begin, end); });
    if (!ok) {
      fail(op, "rows, neighbor and local: expected node ids in [0, ", f.size(0),
           ") and positions below ", n_rows, ", found others");
    }
  });
  return out;
}

Tensor restricted_hvp(const Tensor& rowptr, const Tensor& rows, const Tensor& neighbor,
                      const Tensor& local, const Tensor& residual, const Tensor& curvature,
                      const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return restricted_product("restricted_hvp", rowptr, rows, neighbor, local, residual, curvature, f,
                            z, ridge);
}

Tensor restricted_ggn(const Tensor& rowptr, const Tensor& rows, const Tensor& neighbor,
                      const Tensor& local, const Tensor& curvature, const Tensor& f,
                      const Tensor& z, const std::optional<Tensor>& ridge) {
  return restricted_product("restricted_ggn", rowptr, rows, neighbor, local, std::nullopt,
                            curvature, f, z, ridge);
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("restricted_hvp", TORCH_BOX(&ifru::ops::restricted_hvp));
  m.impl("restricted_ggn", TORCH_BOX(&ifru::ops::restricted_ggn));
}
