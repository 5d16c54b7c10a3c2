// ggn_diagonal and ggn_blocks on CUDA, equation (7).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/diagonal.cuh"
#include "diagonal_checks.h"
#include "dispatch.h"
#include "on_device.h"
#include "registration.h"

namespace ifru::ops {
namespace {

// Checks, allocates, and calls run(rows, stream). The diagonal sums long rows in segments.
template <class Run>
Tensor curvature_rows_cuda(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                           const std::optional<Tensor>& other, const Tensor& curvature,
                           const Tensor& f, const std::optional<Tensor>& ridge, bool blocks,
                           const Run& run) {
  check_curvature_rows(op, rowptr, neighbor, other, curvature, f, ridge);
  const OnDevice on(f);
  Tensor out = new_curvature_rows(rowptr, f, blocks);
  std::optional<Tensor> partial;
  const int64_t segments = blocks ? 0 : cuda::n_segments(neighbor.numel());
  if (segments > 0) partial = torch::stable::new_empty(f, {segments, f.size(1)});
  dispatch(op, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    run(cuda::CurvatureRows<T, I>{{rowptr.const_data_ptr<int64_t>(), mutable_or_null<T>(partial),
                                   rowptr.numel() - 1, neighbor.numel(), f.size(1)},
                                  neighbor.const_data_ptr<I>(),
                                  data_or_null<I>(other),
                                  curvature.const_data_ptr<T>(),
                                  f.const_data_ptr<T>(),
                                  data_or_null<T>(ridge),
                                  out.mutable_data_ptr<T>(),
                                  f.size(0)},
        on.stream());
  });
  return out;
}

Tensor ggn_diagonal_cuda(const Tensor& rowptr, const Tensor& neighbor,
                         const std::optional<Tensor>& other, const Tensor& curvature,
                         const Tensor& f, const std::optional<Tensor>& ridge) {
  return curvature_rows_cuda(
      "ggn_diagonal", rowptr, neighbor, other, curvature, f, ridge, false,
      [](const auto& rows, cudaStream_t stream) { cuda::ggn_diagonal(rows, stream); });
}

Tensor ggn_blocks_cuda(const Tensor& rowptr, const Tensor& neighbor,
                       const std::optional<Tensor>& other, const Tensor& curvature, const Tensor& f,
                       const std::optional<Tensor>& ridge) {
  return curvature_rows_cuda(
      "ggn_blocks", rowptr, neighbor, other, curvature, f, ridge, true,
      [](const auto& rows, cudaStream_t stream) { cuda::ggn_blocks(rows, stream); });
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("ggn_diagonal", TORCH_BOX(&ifru::ops::ggn_diagonal_cuda));
  m.impl("ggn_blocks", TORCH_BOX(&ifru::ops::ggn_blocks_cuda));
}
