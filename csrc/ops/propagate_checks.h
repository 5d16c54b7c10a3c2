// What the CPU and the CUDA side of `propagate` check alike.
#pragma once

#include "checks.h"

namespace ifru::ops {

inline void check_propagate(const Tensor& rowptr, const Tensor& neighbor,
                            const Tensor& inv_sqrt_degree, const Tensor& x, const Tensor& alpha,
                            const std::optional<Tensor>& ridge, const std::optional<Tensor>& v) {
  constexpr const char* kOp = "propagate";
  check_shape(kOp, "x", x, 2, -1);
  check_adjacency(kOp, rowptr, neighbor, x);
  check_value(kOp, "inv_sqrt_degree", inv_sqrt_degree, "x", x, 1, x.size(0));
  check_shape(kOp, "alpha", alpha, 1, -1);
  if (alpha.numel() == 0) fail(kOp, "alpha: expected at least one coefficient, got none");
  if (alpha.scalar_type() != ScalarType::Double || !alpha.is_cpu()) {
    fail(kOp, "alpha: expected a float64 tensor on the CPU");
  }
  if (ridge.has_value() != v.has_value()) {
    fail(kOp, "ridge and v: expected both or neither, got one");
  }
  check_value(kOp, "ridge", ridge, "x", x, 1, x.size(0));
  check_value(kOp, "v", v, "x", x, 2, x.size(0), x.size(1));
}

}  // namespace ifru::ops
