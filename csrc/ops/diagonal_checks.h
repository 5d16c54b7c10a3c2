// What the CPU and the CUDA side of ggn_diagonal and ggn_blocks check and allocate alike.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "checks.h"

namespace ifru::ops {

// All but the contents of the indices.
inline void check_curvature_rows(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                                 const std::optional<Tensor>& other, const Tensor& curvature,
                                 const Tensor& f, const std::optional<Tensor>& ridge) {
  check_shape(op, "f", f, 2, -1);
  check_shape(op, "rowptr", rowptr, 1, -1);
  check_int64(op, "rowptr", rowptr);
  check_shape(op, "neighbor", neighbor, 1, -1);
  if (rowptr.numel() == 0) fail(op, "rowptr: expected at least one entry, got none");
  for (const Tensor* t : {&rowptr, &neighbor}) check_device(op, *t, f);
  if (other.has_value()) {
    check_shape(op, "other", *other, 1, neighbor.numel());
    check_same(op, "other", *other, "neighbor", neighbor);
  }
  check_value(op, "curvature", curvature, "f", f, 1, neighbor.numel());
  check_value(op, "ridge", ridge, "f", f, 1, rowptr.numel() - 1);
}

// [R, d], or [R, d, d] for the blocks.
inline Tensor new_curvature_rows(const Tensor& rowptr, const Tensor& f, bool blocks) {
  const std::array<int64_t, 3> shape{rowptr.numel() - 1, f.size(1), f.size(1)};
  return torch::stable::new_empty(f, {shape.data(), blocks ? size_t(3) : size_t(2)});
}

}  // namespace ifru::ops
