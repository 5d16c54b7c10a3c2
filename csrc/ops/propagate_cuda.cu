// propagate on CUDA, equation (1): check, allocate, launch on the current stream.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/propagate.cuh"
#include "dispatch.h"
#include "on_device.h"
#include "propagate_checks.h"
#include "registration.h"

namespace ifru::ops {
namespace {

void propagate_out_cuda(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                        const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                        const std::optional<Tensor>& v, const Tensor& out,
                        std::optional<Tensor> scratch) {
  check_propagate(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v);
  check_buffers("propagate", {{"rowptr", rowptr}, {"neighbor", neighbor}}, inv_sqrt_degree, x,
                alpha, ridge, v, out, scratch);
  const OnDevice on(x);
  const int64_t n_layers = alpha.numel() - 1;
  if (n_layers > 0 && !scratch.has_value()) scratch = torch::stable::empty_like(x);
  std::optional<Tensor> partial;
  const int64_t segments = n_layers > 0 ? cuda::n_segments(neighbor.numel()) : 0;
  if (segments > 0) partial = torch::stable::new_empty(x, {segments, x.size(1)});
  dispatch("propagate", "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    const cuda::PropagateParams<T, I> params{rowptr.const_data_ptr<int64_t>(),
                                             neighbor.const_data_ptr<I>(),
                                             inv_sqrt_degree.const_data_ptr<T>(),
                                             x.const_data_ptr<T>(),
                                             nullptr,
                                             data_or_null<T>(ridge),
                                             data_or_null<T>(v),
                                             out.mutable_data_ptr<T>(),
                                             mutable_or_null<T>(partial),
                                             T(0),
                                             false,
                                             x.size(0),
                                             neighbor.numel(),
                                             x.size(1)};
    cuda::propagate<T, I>(params, alpha.const_data_ptr<double>(), n_layers,
                          mutable_or_null<T>(scratch), on.stream());
  });
}

Tensor propagate_cuda(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                      const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                      const std::optional<Tensor>& v) {
  Tensor out = torch::stable::empty_like(x);
  propagate_out_cuda(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v, out, std::nullopt);
  return out;
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("propagate", TORCH_BOX(&ifru::ops::propagate_cuda));
  m.impl("propagate.out", TORCH_BOX(&ifru::ops::propagate_out_cuda));
}
