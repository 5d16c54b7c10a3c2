// The rows of a CUDA op and their scratch memory, as kernels/cuda/rows.cuh has them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../kernels/cuda/rows.cuh"
#include "checks.h"
#include "on_device.h"

namespace ifru::ops {

// For the sums of whole segments of as many entries, of rows like those of f; none may be needed.
inline std::optional<Tensor> new_partial(const Tensor& f, int64_t n_entries) {
  const int64_t segments = cuda::n_segments(n_entries);
  if (segments == 0) return std::nullopt;
  return torch::stable::new_empty(f, {segments, f.size(1)}, value_type(f.scalar_type()));
}

template <class T>
cuda::RowSet<T> row_set(const Tensor& rowptr, int64_t n_entries, int64_t d,
                        const std::optional<Tensor>& partial) {
  return {rowptr.const_data_ptr<int64_t>(), mutable_or_null<T>(partial), rowptr.numel() - 1,
          n_entries, d};
}

}  // namespace ifru::ops
