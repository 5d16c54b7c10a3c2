// What the CPU and the CUDA side of `propagate` check alike.
#pragma once

#include "checks.h"

namespace ifru::ops {

// All but the indices.
inline void check_propagate_values(const char* op, const Tensor& inv_sqrt_degree, const Tensor& x,
                                   const Tensor& alpha, const std::optional<Tensor>& ridge,
                                   const std::optional<Tensor>& v) {
  check_shape(op, "x", x, 2, -1);
  check_value(op, "inv_sqrt_degree", inv_sqrt_degree, "x", x, 1, x.size(0));
  check_shape(op, "alpha", alpha, 1, -1);
  if (alpha.numel() == 0) fail(op, "alpha: expected at least one coefficient, got none");
  if (alpha.scalar_type() != ScalarType::Double || !alpha.is_cpu()) {
    fail(op, "alpha: expected a float64 tensor on the CPU");
  }
  if (ridge.has_value() != v.has_value()) {
    fail(op, "ridge and v: expected both or neither, got one");
  }
  check_value(op, "ridge", ridge, "x", x, 1, x.size(0));
  check_value(op, "v", v, "x", x, 2, x.size(0), x.size(1));
}

inline void check_propagate(const Tensor& rowptr, const Tensor& neighbor,
                            const Tensor& inv_sqrt_degree, const Tensor& x, const Tensor& alpha,
                            const std::optional<Tensor>& ridge, const std::optional<Tensor>& v) {
  check_shape("propagate", "x", x, 2, -1);
  check_adjacency("propagate", rowptr, neighbor, x);
  check_propagate_values("propagate", inv_sqrt_degree, x, alpha, ridge, v);
}

// `out` and `scratch` are written while the others are read; `indices` are those of the edges.
inline void check_buffers(const char* op, std::initializer_list<Named> indices,
                          const Tensor& inv_sqrt_degree, const Tensor& x, const Tensor& alpha,
                          const std::optional<Tensor>& ridge, const std::optional<Tensor>& v,
                          const Tensor& out, const std::optional<Tensor>& scratch) {
  const auto check = [&](const char* name, const Tensor& t) {
    check_value(op, name, t, "x", x, 2, x.size(0), x.size(1));
    check_apart(op, name, t, indices);
    check_apart(op, name, t,
                {{"inv_sqrt_degree", inv_sqrt_degree},
                 {"x", x},
                 {"alpha", alpha},
                 {"ridge", ridge},
                 {"v", v}});
  };
  check("out", out);
  if (scratch.has_value()) {
    check("scratch", *scratch);
    check_apart(op, "scratch", *scratch, {{"out", out}});
  }
}

}  // namespace ifru::ops
