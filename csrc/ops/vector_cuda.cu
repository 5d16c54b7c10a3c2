// Vector updates of conjugate gradients on CUDA: dot, cg_update, cg_direction.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/vector.cuh"
#include "dispatch.h"
#include "on_device.h"
#include "registration.h"
#include "vector_checks.h"

namespace ifru::ops {
namespace {

Tensor dot_cuda(const Tensor& x, const Tensor& y) {
  check_dot(x, y);
  const OnDevice on(x);
  Tensor out = torch::stable::new_empty(x, {}, ScalarType::Double);
  Tensor partial = torch::stable::new_empty(x, {cuda::n_chunks(x.numel())}, ScalarType::Double);
  dispatch_value("dot", "x", x.scalar_type(), [&](auto value) {
    using T = decltype(value);
    cuda::dot(x.const_data_ptr<T>(), y.const_data_ptr<T>(), x.numel(),
              partial.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(), on.stream());
  });
  return out;
}

void cg_update_cuda(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& ap,
                    const Tensor& alpha, const std::optional<Tensor>& inverse, const Tensor& dots) {
  check_cg_update(x, r, p, ap, alpha, inverse, dots);
  const OnDevice on(x);
  Tensor partial = torch::stable::new_empty(x, {cuda::n_row_chunks(x.size(0), x.size(1)), 2},
                                            ScalarType::Double);
  dispatch_value("cg_update", "x", x.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const cuda::CgUpdateParams<T> params{x.mutable_data_ptr<T>(),
                                         r.mutable_data_ptr<T>(),
                                         p.const_data_ptr<T>(),
                                         ap.const_data_ptr<T>(),
                                         alpha.const_data_ptr<double>(),
                                         data_or_null<T>(inverse),
                                         partial.mutable_data_ptr<double>(),
                                         x.size(0),
                                         x.size(1)};
    cuda::cg_update(params, dots.mutable_data_ptr<double>(), on.stream());
  });
}

void cg_direction_cuda(const Tensor& p, const Tensor& r, const Tensor& beta,
                       const std::optional<Tensor>& inverse) {
  check_cg_direction(p, r, beta, inverse);
  const OnDevice on(p);
  dispatch_value("cg_direction", "p", p.scalar_type(), [&](auto value) {
    using T = decltype(value);
    cuda::cg_direction(p.mutable_data_ptr<T>(), r.const_data_ptr<T>(),
                       beta.const_data_ptr<double>(), data_or_null<T>(inverse), p.size(0),
                       p.size(1), on.stream());
  });
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("dot", TORCH_BOX(&ifru::ops::dot_cuda));
  m.impl("cg_update", TORCH_BOX(&ifru::ops::cg_update_cuda));
  m.impl("cg_direction", TORCH_BOX(&ifru::ops::cg_direction_cuda));
}
