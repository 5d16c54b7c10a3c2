// The ops pointwise_gradient, pointwise_hvp and pointwise_ggn, but for what computes them: a Device
// with run_gradient(op, t, out) and run_product(op, t, z, out) of checked arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "dispatch.h"

namespace ifru::ops {

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

inline void check_pass(const char* op, const PassTensors& t) {
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
inline void check_vectors(const char* op, const Tensor& z, const Tensor& f) {
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

inline void check_output(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out) {
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

template <class Device>
Tensor pointwise_gradient(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                          int64_t first_row, const Tensor& residual, const Tensor& f,
                          const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "pointwise_gradient";
  const PassTensors t{rowptr, neighbor, cuts, first_row, residual, std::nullopt, f, ridge};
  check_pass(kOp, t);
  Tensor out = torch::stable::empty_like(f);
  Device::run_gradient(kOp, t, out);
  return out;
}

template <class Device>
void product_out(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out) {
  check_pass(op, t);
  check_vectors(op, z, t.f);
  check_output(op, t, z, out);
  Device::run_product(op, t, z, out);
}

template <class Device>
Tensor product(const char* op, const PassTensors& t, const Tensor& z) {
  check_pass(op, t);
  check_vectors(op, z, t.f);
  std::vector<int64_t> shape;
  for (int64_t k = 0; k < z.dim(); ++k) shape.push_back(z.size(k));
  Tensor out =
      torch::stable::new_empty(z, {shape.data(), shape.size()}, value_type(z.scalar_type()));
  Device::run_product(op, t, z, out);
  return out;
}

inline constexpr const char* kHvp = "pointwise_hvp";
inline constexpr const char* kGgn = "pointwise_ggn";

template <class Device>
Tensor pointwise_hvp(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& residual, const Tensor& curvature,
                     const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return product<Device>(kHvp, {rowptr, neighbor, cuts, first_row, residual, curvature, f, ridge},
                         z);
}

template <class Device>
void pointwise_hvp_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& residual, const Tensor& curvature,
                       const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge,
                       const Tensor& out) {
  product_out<Device>(kHvp, {rowptr, neighbor, cuts, first_row, residual, curvature, f, ridge}, z,
                      out);
}

template <class Device>
Tensor pointwise_ggn(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                     int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                     const std::optional<Tensor>& ridge) {
  return product<Device>(kGgn,
                         {rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, ridge}, z);
}

template <class Device>
void pointwise_ggn_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                       int64_t first_row, const Tensor& curvature, const Tensor& f, const Tensor& z,
                       const std::optional<Tensor>& ridge, const Tensor& out) {
  product_out<Device>(kGgn, {rowptr, neighbor, cuts, first_row, std::nullopt, curvature, f, ridge},
                      z, out);
}

}  // namespace ifru::ops
