// Pointwise losses, equations (2), (5) and (6): derivatives, gradient, HVP, Gauss-Newton product.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"
#include "stream.h"

namespace ifru::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> pointwise_derivatives(const Tensor& left, const Tensor& right,
                                                         const Tensor& f, const Tensor& label,
                                                         const std::optional<Tensor>& weight,
                                                         int64_t loss) {
  constexpr const char* kOp = "pointwise_derivatives";
  check_shape(kOp, "f", f, 2, -1);
  check_shape(kOp, "left", left, 1, -1);
  const int64_t n_interactions = left.numel();
  check_shape(kOp, "right", right, 1, n_interactions);
  check_same(kOp, "right", right, "left", left);
  check_value(kOp, "label", label, "f", f, 1, n_interactions);
  check_value(kOp, "weight", weight, "f", f, 1, n_interactions);
  const Loss checked_loss = check_loss(kOp, loss);

  Tensor value = torch::stable::empty_like(label);
  Tensor residual = torch::stable::empty_like(label);
  Tensor curvature = torch::stable::empty_like(label);
  dispatch(kOp, "f", f, "left", left, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::DerivativeArgs<T, I> args{left.const_data_ptr<I>(),
                                         right.const_data_ptr<I>(),
                                         f.const_data_ptr<T>(),
                                         label.const_data_ptr<T>(),
                                         data_or_null<T>(weight),
                                         value.mutable_data_ptr<T>(),
                                         residual.mutable_data_ptr<T>(),
                                         curvature.mutable_data_ptr<T>(),
                                         f.size(0),
                                         f.size(1),
                                         checked_loss};
    const auto& kernels = cpu::kernels<T, I>();
    const bool ok = parallel_items(n_interactions, [&](int64_t begin, int64_t end) {
      return kernels.derivatives(args, begin, end);
    });
    if (!ok) fail_node_id(kOp, "left and right", f.size(0));
  });
  return {value, residual, curvature};
}

// Gradient, exact product and Gauss-Newton product: what is absent is not read by the kernel.
Tensor stream_product(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                      const Tensor& cuts, int64_t first_row, const std::optional<Tensor>& residual,
                      const std::optional<Tensor>& curvature, const Tensor& f,
                      const std::optional<Tensor>& z, const std::optional<Tensor>& ridge) {
  check_shape(op, "f", f, 2, -1);
  check_stream_shapes(op, rowptr, neighbor, cuts, f);
  check_value(op, "residual", residual, "f", f, 1, neighbor.numel());
  check_value(op, "curvature", curvature, "f", f, 1, neighbor.numel());
  check_value(op, "z", z, "f", f, 2, f.size(0), f.size(1));
  check_value(op, "ridge", ridge, "f", f, 1, f.size(0));
  const int64_t d = f.size(1);

  Tensor out = torch::stable::empty_like(f);
  dispatch(op, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const auto stream = check_stream<I>(op, rowptr, neighbor, cuts, first_row, f.size(0));
    std::vector<T> scratch(stream.n_blocks * d);
    const T* f_data = f.const_data_ptr<T>();
    const T* start = z.has_value() ? z->const_data_ptr<T>() : f_data;  // what the ridge multiplies
    const cpu::StreamArgs<T, I> args{
        stream, data_or_null<T>(residual), data_or_null<T>(curvature), f_data,
        start,  data_or_null<T>(ridge),    out.mutable_data_ptr<T>(),  scratch.data(),
        d};
    const auto& kernels = cpu::kernels<T, I>();
    const auto kernel = !curvature.has_value() ? kernels.gradient
                        : residual.has_value() ? kernels.hvp
                                               : kernels.gauss_newton;
    const auto start_columns = [&](int64_t first, int64_t last) {
      if (args.ridge == nullptr) {
        std::fill(args.out + first * d, args.out + last * d, T(0));
        return;
      }
      for (int64_t m = first; m < last; ++m) {
        for (int64_t k = m * d; k < (m + 1) * d; ++k) args.out[k] = args.ridge[m] * start[k];
      }
    };
    const bool ok = run_stream(
        stream, start_columns,
        [&](int64_t block, int64_t begin, int64_t end) { return kernel(args, block, begin, end); },
        [](int64_t, int64_t) {});
    if (!ok) fail(op, kColumnsText);
  });
  return out;
}

Tensor pointwise_gradient(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                          int64_t first_row, const Tensor& residual, const Tensor& f,
                          const std::optional<Tensor>& ridge) {
  return stream_product("pointwise_gradient", rowptr, neighbor, cuts, first_row, residual,
                        std::nullopt, f, std::nullopt, ridge);
}

Tensor pointwise_hvp(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& residual, const Tensor& curvature,
                     const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return stream_product("pointwise_hvp", rowptr, neighbor, cuts, first_row, residual, curvature, f,
                        z, ridge);
}

Tensor pointwise_ggn(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                     const std::optional<Tensor>& ridge) {
  return stream_product("pointwise_ggn", rowptr, neighbor, cuts, first_row, std::nullopt, curvature,
                        f, z, ridge);
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("pointwise_derivatives", TORCH_BOX(&ifru::ops::pointwise_derivatives));
  m.impl("pointwise_gradient", TORCH_BOX(&ifru::ops::pointwise_gradient));
  m.impl("pointwise_hvp", TORCH_BOX(&ifru::ops::pointwise_hvp));
  m.impl("pointwise_ggn", TORCH_BOX(&ifru::ops::pointwise_ggn));
}
