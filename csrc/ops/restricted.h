// The ops restricted_hvp and restricted_ggn, but for what computes them: a Device with
// run_restricted(op, t, out) of checked arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "dispatch.h"

namespace ifru::ops {

struct RestrictedTensors {
  const Tensor& rowptr;
  const Tensor& rows;
  const Tensor& neighbor;
  const Tensor& local;
  const std::optional<Tensor> residual;  // not of the Gauss-Newton product
  const Tensor& curvature;
  const Tensor& f;
  const Tensor& z;
  const std::optional<Tensor>& ridge;
};

template <class Device>
Tensor restricted_product(const char* op, const RestrictedTensors& t) {
  check_shape(op, "f", t.f, 2, -1);
  check_shape(op, "rows", t.rows, 1, -1);
  const int64_t n_rows = t.rows.numel();
  const int64_t n_entries = t.neighbor.numel();
  check_value(op, "z", t.z, "f", t.f, 2, n_rows, t.f.size(1));
  check_adjacency(op, t.rowptr, t.neighbor, t.z);
  check_value(op, "rows", t.rows, "neighbor", t.neighbor, 1, n_rows);
  check_value(op, "local", t.local, "neighbor", t.neighbor, 1, n_entries);
  check_value(op, "residual", t.residual, "f", t.f, 1, n_entries);
  check_value(op, "curvature", t.curvature, "f", t.f, 1, n_entries);
  check_value(op, "ridge", t.ridge, "f", t.f, 1, n_rows);
  Tensor out = torch::stable::empty_like(t.z);
  Device::run_restricted(op, t, out);
  return out;
}

template <class Device>
Tensor restricted_hvp(const Tensor& rowptr, const Tensor& rows, const Tensor& neighbor,
                      const Tensor& local, const Tensor& residual, const Tensor& curvature,
                      const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return restricted_product<Device>(
      "restricted_hvp", {rowptr, rows, neighbor, local, residual, curvature, f, z, ridge});
}

template <class Device>
Tensor restricted_ggn(const Tensor& rowptr, const Tensor& rows, const Tensor& neighbor,
                      const Tensor& local, const Tensor& curvature, const Tensor& f,
                      const Tensor& z, const std::optional<Tensor>& ridge) {
  return restricted_product<Device>(
      "restricted_ggn", {rowptr, rows, neighbor, local, std::nullopt, curvature, f, z, ridge});
}

}  // namespace ifru::ops
