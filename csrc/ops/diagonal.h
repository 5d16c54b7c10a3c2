// The ops ggn_diagonal and ggn_blocks, equation (7), but for what computes them: a Device with
// run_diagonal(op, t, out) and run_blocks(op, t, out) of checked arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "dispatch.h"

namespace ifru::ops {

struct CurvatureTensors {
  const Tensor& rowptr;
  const Tensor& neighbor;
  const std::optional<Tensor>& other;
  const Tensor& curvature;
  const Tensor& f;
  const std::optional<Tensor>& ridge;

  int64_t n_rows() const { return rowptr.numel() - 1; }
};

// All but the contents of the indices.
inline void check_curvature(const char* op, const CurvatureTensors& t) {
  check_shape(op, "f", t.f, 2, -1);
  check_shape(op, "rowptr", t.rowptr, 1, -1);
  check_int64(op, "rowptr", t.rowptr);
  check_shape(op, "neighbor", t.neighbor, 1, -1);
  if (t.rowptr.numel() == 0) fail(op, "rowptr: expected at least one entry, got none");
  for (const Tensor* ids : {&t.rowptr, &t.neighbor}) check_device(op, *ids, t.f);
  if (t.other.has_value()) {
    check_shape(op, "other", *t.other, 1, t.neighbor.numel());
    check_same(op, "other", *t.other, "neighbor", t.neighbor);
  }
  check_value(op, "curvature", t.curvature, "f", t.f, 1, t.neighbor.numel());
  check_value(op, "ridge", t.ridge, "f", t.f, 1, t.n_rows());
}

template <class Device>
Tensor ggn_diagonal(const Tensor& rowptr, const Tensor& neighbor,
                    const std::optional<Tensor>& other, const Tensor& curvature, const Tensor& f,
                    const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "ggn_diagonal";
  const CurvatureTensors t{rowptr, neighbor, other, curvature, f, ridge};
  check_curvature(kOp, t);
  Tensor out = torch::stable::new_empty(f, {t.n_rows(), f.size(1)});
  Device::run_diagonal(kOp, t, out);
  return out;
}

template <class Device>
Tensor ggn_blocks(const Tensor& rowptr, const Tensor& neighbor, const std::optional<Tensor>& other,
                  const Tensor& curvature, const Tensor& f, const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "ggn_blocks";
  const CurvatureTensors t{rowptr, neighbor, other, curvature, f, ridge};
  check_curvature(kOp, t);
  Tensor out = torch::stable::new_empty(f, {t.n_rows(), f.size(1), f.size(1)});
  Device::run_blocks(kOp, t, out);
  return out;
}

}  // namespace ifru::ops
