// Pointwise losses, equations (2), (5) and (6): derivatives, gradient, HVP, Gauss-Newton product.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "derivatives_checks.h"
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
  const Loss checked_loss = check_pointwise_derivatives(left, right, f, label, weight, loss);
  const int64_t n_interactions = left.numel();

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

// The arguments that all passes over a stream have.
struct PassTensors {
  const Tensor& rowptr;
  const Tensor& neighbor;
  const Tensor& cuts;
  int64_t first_row;
  const std::optional<Tensor> residual;   // not of the Gauss-Newton product
  const std::optional<Tensor> curvature;  // not of the gradient
  const Tensor& f;
  const std::optional<Tensor>& ridge;
};

void check_pass(const char* op, const PassTensors& t) {
  check_shape(op, "f", t.f, 2, -1);
  dispatch_storage(op, "f", t.f.scalar_type(), [](auto, auto) {});
  check_stream_shapes(op, t.rowptr, t.neighbor, t.cuts, t.f);
  const auto check = [&](const char* name, const std::optional<Tensor>& value, int64_t n) {
    if (!value.has_value()) return;
    check_shape(op, name, *value, 1, n);
    check_dtype(op, name, *value, value_type(t.f.scalar_type()));
    if (!same_device(*value, t.f)) fail(op, name, ": expected the device of f");
  };
  check("residual", t.residual, t.neighbor.numel());
  check("curvature", t.curvature, t.neighbor.numel());
  check("ridge", t.ridge, t.f.size(0));
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

void check_output(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out) {
  bool same_shape = out.dim() == z.dim();
  for (int64_t k = 0; same_shape && k < z.dim(); ++k) same_shape = out.size(k) == z.size(k);
  if (!same_shape) fail(op, "out: expected shape ", shape_text(z), ", got ", shape_text(out));
  if (!out.is_contiguous()) fail(op, "out: expected a contiguous tensor");
  check_dtype(op, "out", out, value_type(t.f.scalar_type()));
  if (!same_device(out, t.f)) fail(op, "out: expected the device of f");
  check_apart(op, "out", out,
              {{"rowptr", t.rowptr},
               {"neighbor", t.neighbor},
               {"cuts", t.cuts},
               {"residual", t.residual},
               {"curvature", t.curvature},
               {"f", t.f},
               {"z", z},
               {"ridge", t.ridge}});
}

// Runs a pass for each vector of z, into out. One after the other: together they would share the
// reads of f, a quarter of what is read, and compete for the cache with their own rows; measured,
// that loses (benchmarks/NOTES.md).
template <class S, class T, class I>
void run_passes(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out,
                const cpu::PassKernels<cpu::StreamArgs<S, T, I>>& kernels) {
  const auto stream = check_stream<I>(op, t.rowptr, t.neighbor, t.cuts, t.first_row, t.f.size(0));
  std::vector<T> scratch(stream.n_blocks * t.f.size(1));
  const int64_t size = t.f.numel();
  const int64_t n_vectors = z.dim() == 3 ? z.size(0) : 1;
  for (int64_t k = 0; k < n_vectors; ++k) {
    const cpu::StreamArgs<S, T, I> args{stream,
                                        data_or_null<T>(t.residual),
                                        data_or_null<T>(t.curvature),
                                        static_cast<const S*>(t.f.const_data_ptr()),
                                        static_cast<const S*>(z.const_data_ptr()) + k * size,
                                        data_or_null<T>(t.ridge),
                                        out.mutable_data_ptr<T>() + k * size,
                                        scratch.data(),
                                        t.f.size(1)};
    if (!run_pass(kernels, args)) fail(op, kColumnsText);
  }
}

Tensor pointwise_gradient(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                          int64_t first_row, const Tensor& residual, const Tensor& f,
                          const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "pointwise_gradient";
  const PassTensors t{rowptr, neighbor, cuts, first_row, residual, std::nullopt, f, ridge};
  check_pass(kOp, t);
  Tensor out = torch::stable::empty_like(f);
  dispatch(kOp, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    run_passes<T, T, I>(kOp, t, f, out, cpu::kernels<T, I>().gradient);
  });
  return out;
}

// The exact product, or the Gauss-Newton product where there is no residual; of checked arguments.
void run_product(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out) {
  dispatch_storage(op, "f", t.f.scalar_type(), [&](auto storage_tag, auto value_tag) {
    using S = decltype(storage_tag);
    using T = decltype(value_tag);
    dispatch_index(op, "neighbor", t.neighbor.scalar_type(), [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto& kernels = cpu::product_kernels<S, T, I>();
      run_passes<S, T, I>(op, t, z, out,
                          t.residual.has_value() ? kernels.hvp : kernels.gauss_newton);
    });
  });
}

void product_out(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out) {
  check_pass(op, t);
  check_vectors(op, z, t.f);
  check_output(op, t, z, out);
  run_product(op, t, z, out);
}

Tensor product(const char* op, const PassTensors& t, const Tensor& z) {
  check_pass(op, t);
  check_vectors(op, z, t.f);
  std::vector<int64_t> shape;
  for (int64_t k = 0; k < z.dim(); ++k) shape.push_back(z.size(k));
  Tensor out =
      torch::stable::new_empty(z, {shape.data(), shape.size()}, value_type(z.scalar_type()));
  run_product(op, t, z, out);
  return out;
}

constexpr const char* kHvp = "pointwise_hvp";
constexpr const char* kGgn = "pointwise_ggn";

Tensor pointwise_hvp(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& residual, const Tensor& curvature,
                     const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return product(kHvp, {rowptr, neighbor, cuts, first_row, residual, curvature, f, ridge}, z);
}

void pointwise_hvp_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& residual, const Tensor& curvature,
                       const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge,
                       const Tensor& out) {
  product_out(kHvp, {rowptr, neighbor, cuts, first_row, residual, curvature, f, ridge}, z, out);
}

Tensor pointwise_ggn(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                     const std::optional<Tensor>& ridge) {
  return product(kGgn, {rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, ridge}, z);
}

void pointwise_ggn_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                       const std::optional<Tensor>& ridge, const Tensor& out) {
  product_out(kGgn, {rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, ridge}, z, out);
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
