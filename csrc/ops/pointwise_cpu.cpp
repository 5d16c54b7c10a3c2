// Pointwise losses, equations (2), (5) and (6): derivatives, gradient, HVP, Gauss-Newton product.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <type_traits>
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

// Checks of all passes over a stream but z and the output.
void check_pass(const char* op, const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                const std::optional<Tensor>& residual, const std::optional<Tensor>& curvature,
                const Tensor& f, const std::optional<Tensor>& ridge) {
  check_shape(op, "f", f, 2, -1);
  check_stream_shapes(op, rowptr, neighbor, cuts, f);
  const auto check = [&](const char* name, const std::optional<Tensor>& t, int64_t n) {
    if (!t.has_value()) return;
    check_shape(op, name, *t, 1, n);
    check_dtype(op, name, *t, value_type(f.scalar_type()));
    if (!same_device(*t, f)) fail(op, name, ": expected the device of f");
  };
  check("residual", residual, neighbor.numel());
  check("curvature", curvature, neighbor.numel());
  check("ridge", ridge, f.size(0));
}

// One vector z [N, d], or several [k, N, d].
void check_vectors(const char* op, const Tensor& z, const Tensor& f) {
  const bool several = z.dim() == 3;
  const bool ok =
      (several || z.dim() == 2) && z.size(several) == f.size(0) && z.size(several + 1) == f.size(1);
  if (!ok) {
    fail(op, "z: expected shape ", shape_text(f), " or [k, ", f.size(0), ", ", f.size(1), "], got ",
         shape_text(z));
  }
  if (!z.is_contiguous()) fail(op, "z: expected a contiguous tensor");
  check_same(op, "z", z, "f", f);
}

void check_output(const char* op, const Tensor& out, const Tensor& f, const Tensor& z) {
  bool same_shape = out.dim() == z.dim();
  for (int64_t k = 0; same_shape && k < z.dim(); ++k) same_shape = out.size(k) == z.size(k);
  if (!same_shape) {
    fail(op, "out: expected shape ", shape_text(z), ", got ", shape_text(out));
  }
  if (!out.is_contiguous()) fail(op, "out: expected a contiguous tensor");
  check_dtype(op, "out", out, value_type(f.scalar_type()));
  if (!same_device(out, f)) fail(op, "out: expected the device of f");
  check_apart(op, "out", out, "f", f);
  check_apart(op, "out", out, "z", z);
}

// Gradient (z is f, no curvature), Gauss-Newton product (no residual) or exact product.
void run_products(const char* op, const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                  int64_t first_row, const std::optional<Tensor>& residual,
                  const std::optional<Tensor>& curvature, const Tensor& f, const Tensor& z,
                  const std::optional<Tensor>& ridge, const Tensor& out) {
  const int64_t size = f.numel();
  const int64_t n_vectors = z.dim() == 3 ? z.size(0) : 1;
  dispatch_storage(op, "f", f.scalar_type(), [&](auto storage_tag, auto value_tag) {
    using S = decltype(storage_tag);
    using T = decltype(value_tag);
    dispatch_index(op, "neighbor", neighbor.scalar_type(), [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto stream = check_stream<I>(op, rowptr, neighbor, cuts, first_row, f.size(0));
      std::vector<T> scratch(stream.n_blocks * f.size(1));
      const S* z_data = static_cast<const S*>(z.const_data_ptr());
      T* out_data = out.mutable_data_ptr<T>();
      const auto& products = cpu::product_kernels<S, T, I>();
      const auto* kernels = residual.has_value() ? &products.hvp : &products.gauss_newton;
      if constexpr (std::is_same_v<S, T>) {
        if (!curvature.has_value()) kernels = &cpu::kernels<T, I>().gradient;
      }
      // One vector after the other: together they would share the reads of f, a quarter of what is
      // read, and compete for the cache with their own rows. Measured, that loses.
      for (int64_t k = 0; k < n_vectors; ++k) {
        const cpu::StreamArgs<S, T, I> args{stream,
                                            data_or_null<T>(residual),
                                            data_or_null<T>(curvature),
                                            static_cast<const S*>(f.const_data_ptr()),
                                            z_data + k * size,
                                            data_or_null<T>(ridge),
                                            out_data + k * size,
                                            scratch.data(),
                                            f.size(1)};
        if (!run_pass(*kernels, args)) fail(op, kColumnsText);
      }
    });
  });
}

Tensor pointwise_gradient(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                          int64_t first_row, const Tensor& residual, const Tensor& f,
                          const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "pointwise_gradient";
  check_pass(kOp, rowptr, neighbor, cuts, residual, std::nullopt, f, ridge);
  dispatch_value(kOp, "f", f.scalar_type(), [](auto) {});
  Tensor out = torch::stable::empty_like(f);
  run_products(kOp, rowptr, neighbor, cuts, first_row, residual, std::nullopt, f, f, ridge, out);
  return out;
}

// The products into an output that was allocated by the caller, or here.
void product_out(const char* op, const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                 int64_t first_row, const std::optional<Tensor>& residual, const Tensor& curvature,
                 const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge,
                 const Tensor& out) {
  check_pass(op, rowptr, neighbor, cuts, residual, curvature, f, ridge);
  check_vectors(op, z, f);
  check_output(op, out, f, z);
  run_products(op, rowptr, neighbor, cuts, first_row, residual, curvature, f, z, ridge, out);
}

Tensor product(const char* op, const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
               int64_t first_row, const std::optional<Tensor>& residual, const Tensor& curvature,
               const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  std::vector<int64_t> shape;
  for (int64_t k = 0; k < z.dim(); ++k) shape.push_back(z.size(k));
  Tensor out =
      torch::stable::new_empty(z, {shape.data(), shape.size()}, value_type(z.scalar_type()));
  product_out(op, rowptr, neighbor, cuts, first_row, residual, curvature, f, z, ridge, out);
  return out;
}

constexpr const char* kHvp = "pointwise_hvp";
constexpr const char* kGgn = "pointwise_ggn";

Tensor pointwise_hvp(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& residual, const Tensor& curvature,
                     const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return product(kHvp, rowptr, neighbor, cuts, first_row, residual, curvature, f, z, ridge);
}

void pointwise_hvp_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& residual, const Tensor& curvature,
                       const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge,
                       const Tensor& out) {
  product_out(kHvp, rowptr, neighbor, cuts, first_row, residual, curvature, f, z, ridge, out);
}

Tensor pointwise_ggn(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                     const std::optional<Tensor>& ridge) {
  return product(kGgn, rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, z, ridge);
}

void pointwise_ggn_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                       const std::optional<Tensor>& ridge, const Tensor& out) {
  product_out(kGgn, rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, z, ridge, out);
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("pointwise_derivatives", TORCH_BOX(&ifru::ops::pointwise_derivatives));
  m.impl("pointwise_gradient", TORCH_BOX(&ifru::ops::pointwise_gradient));
  m.impl("pointwise_hvp", TORCH_BOX(&ifru::ops::pointwise_hvp));
  m.impl("pointwise_hvp.out", TORCH_BOX(&ifru::ops::pointwise_hvp_out));
  m.impl("pointwise_ggn", TORCH_BOX(&ifru::ops::pointwise_ggn));
  m.impl("pointwise_ggn.out", TORCH_BOX(&ifru::ops::pointwise_ggn_out));
}
