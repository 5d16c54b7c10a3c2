// What the CPU and the CUDA side of the derivatives by the score check alike.
#pragma once

#include "checks.h"

namespace ifru::ops {

inline Loss check_pointwise_derivatives(const Tensor& left, const Tensor& right, const Tensor& f,
                                        const Tensor& label, const std::optional<Tensor>& weight,
                                        int64_t loss) {
  constexpr const char* kOp = "pointwise_derivatives";
  check_shape(kOp, "f", f, 2, -1);
  check_shape(kOp, "left", left, 1, -1);
  const int64_t n_interactions = left.numel();
  check_shape(kOp, "right", right, 1, n_interactions);
  check_same(kOp, "right", right, "left", left);
  check_device(kOp, left, f);
  check_value(kOp, "label", label, "f", f, 1, n_interactions);
  check_value(kOp, "weight", weight, "f", f, 1, n_interactions);
  return check_loss(kOp, loss);
}

inline void check_pairwise_derivatives(const Tensor& user, const Tensor& positive,
                                       const Tensor& negative, const Tensor& f,
                                       const std::optional<Tensor>& weight) {
  constexpr const char* kOp = "pairwise_derivatives";
  check_shape(kOp, "f", f, 2, -1);
  check_shape(kOp, "user", user, 1, -1);
  const int64_t n_triples = user.numel();
  check_value(kOp, "positive", positive, "user", user, 1, n_triples);
  check_value(kOp, "negative", negative, "user", user, 1, n_triples);
  check_device(kOp, user, f);
  check_value(kOp, "weight", weight, "f", f, 1, n_triples);
}

}  // namespace ifru::ops
