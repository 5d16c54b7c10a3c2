// What the vector updates of conjugate gradients check of their arguments.
#pragma once

#include "checks.h"

namespace ifru::ops {

// A float64 tensor beside the vectors.
inline void check_scalars(const char* op, const char* name, const Tensor& t, const Tensor& like,
                          int64_t dim, int64_t n) {
  check_shape(op, name, t, dim, n);
  if (t.scalar_type() != ScalarType::Double || !same_device(t, like)) {
    fail(op, name, ": expected float64 on the device of the vectors");
  }
}

inline void check_dot(const Tensor& x, const Tensor& y) {
  if (!x.is_contiguous()) fail("dot", "x: expected a contiguous tensor");
  check_same("dot", "y", y, "x", x);
  if (!y.is_contiguous() || y.numel() != x.numel()) {
    fail("dot", "y: expected ", x.numel(), " contiguous elements as in x, got ", shape_text(y));
  }
}

inline void check_cg_update(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& ap,
                            const Tensor& alpha, const std::optional<Tensor>& inverse,
                            const Tensor& dots) {
  constexpr const char* kOp = "cg_update";
  check_shape(kOp, "x", x, 2, -1);
  check_value(kOp, "r", r, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "p", p, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "ap", ap, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "inverse", inverse, "x", x, 1, x.size(0));
  check_scalars(kOp, "alpha", alpha, x, 0, -1);
  check_scalars(kOp, "dots", dots, x, 1, 2);
}

inline void check_cg_direction(const Tensor& p, const Tensor& r, const Tensor& beta,
                               const std::optional<Tensor>& inverse) {
  constexpr const char* kOp = "cg_direction";
  check_shape(kOp, "p", p, 2, -1);
  check_value(kOp, "r", r, "p", p, 2, p.size(0), p.size(1));
  check_value(kOp, "inverse", inverse, "p", p, 1, p.size(0));
  check_scalars(kOp, "beta", beta, p, 0, -1);
}

}  // namespace ifru::ops
