// propagate on CUDA, equation (1): check, allocate, launch on the current stream.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/propagate.cuh"
#include "dispatch.h"
#include "on_device.h"
#include "propagate_checks.h"
#include "registration.h"
#include "row_set.h"

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
  const auto partial = new_partial(x, n_layers > 0 ? neighbor.numel() : 0);
  dispatch("propagate", "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    cuda::Propagation<T, I> params{row_set<T>(rowptr, neighbor.numel(), x.size(1), partial),
                                   neighbor.const_data_ptr<I>(),
                                   inv_sqrt_degree.const_data_ptr<T>(),
                                   x.const_data_ptr<T>(),
                                   nullptr,
                                   data_or_null<T>(ridge),
                                   data_or_null<T>(v),
                                   out.mutable_data_ptr<T>(),
                                   T(0),
                                   false};
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
