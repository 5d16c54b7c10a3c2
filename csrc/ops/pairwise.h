// The ops pairwise_gradient, pairwise_hvp and pairwise_ggn, but for what computes them: a Device
// with run_pairwise(op, t, out) of checked arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "dispatch.h"

namespace ifru::ops {

// What is absent is not read: the curvature and z by the gradient, the residual by the Gauss-Newton
// product.
struct PairwiseTensors {
  const Tensor& rowptr;
  const Tensor& neighbor;
  const Tensor& other;
  const Tensor& triple;
  const std::optional<Tensor> residual;
  const std::optional<Tensor> curvature;
  const Tensor& f;
  const std::optional<Tensor> z;
  const std::optional<Tensor>& ridge;

  const Tensor& of_triples() const { return residual.has_value() ? *residual : *curvature; }
  int64_t n_triples() const { return of_triples().numel(); }
};

// All but the contents of the indices.
inline void check_pairwise(const char* op, const PairwiseTensors& t) {
  const Tensor& f = t.f;
  check_shape(op, "f", f, 2, -1);
  check_value(op, t.residual.has_value() ? "residual" : "curvature", t.of_triples(), "f", f, 1, -1);
  const int64_t n_triples = t.n_triples();
  check_value(op, "curvature", t.curvature, "f", f, 1, n_triples);
  check_adjacency(op, t.rowptr, t.neighbor, f);
  check_shape(op, "neighbor", t.neighbor, 1, 3 * n_triples);
  check_value(op, "other", t.other, "neighbor", t.neighbor, 1, 3 * n_triples);
  check_value(op, "triple", t.triple, "neighbor", t.neighbor, 1, 2 * n_triples);
  check_value(op, "z", t.z, "f", f, 2, f.size(0), f.size(1));
  check_value(op, "ridge", t.ridge, "f", f, 1, f.size(0));
}

template <class Device>
Tensor pairwise_product(const char* op, const PairwiseTensors& t) {
  check_pairwise(op, t);
  Tensor out = torch::stable::empty_like(t.f);
  Device::run_pairwise(op, t, out);
  return out;
}

template <class Device>
Tensor pairwise_gradient(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                         const Tensor& triple, const Tensor& residual, const Tensor& f,
                         const std::optional<Tensor>& ridge) {
  return pairwise_product<Device>("pairwise_gradient", {rowptr, neighbor, other, triple, residual,
                                                        std::nullopt, f, std::nullopt, ridge});
}

template <class Device>
Tensor pairwise_hvp(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                    const Tensor& triple, const Tensor& residual, const Tensor& curvature,
                    const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return pairwise_product<Device>(
      "pairwise_hvp", {rowptr, neighbor, other, triple, residual, curvature, f, z, ridge});
}

template <class Device>
Tensor pairwise_ggn(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                    const Tensor& triple, const Tensor& curvature, const Tensor& f, const Tensor& z,
                    const std::optional<Tensor>& ridge) {
  return pairwise_product<Device>(
      "pairwise_ggn", {rowptr, neighbor, other, triple, std::nullopt, curvature, f, z, ridge});
}

}  // namespace ifru::ops
