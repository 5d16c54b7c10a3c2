// pointwise_derivatives and pairwise_derivatives on CUDA, equations (2) and (3).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../kernels/cuda/derivatives.cuh"
#include "derivatives_checks.h"
#include "dispatch.h"
#include "on_device.h"
#include "registration.h"

namespace ifru::ops {
namespace {

using Derivatives = std::tuple<Tensor, Tensor, Tensor>;  // value, residual, curvature: [E] each

// Of checked arguments: `ids` are the nodes of each interaction or triple.
template <int K>
Derivatives derivatives(const char* op, const char* first_name, const Tensor (&ids)[K],
                        const Tensor& f, const std::optional<Tensor>& label,
                        const std::optional<Tensor>& weight, Loss loss) {
  const OnDevice on(f);
  const int64_t n_examples = ids[0].numel();
  const auto per_example = [&] { return torch::stable::new_empty(f, {n_examples}); };
  Tensor value = per_example();
  Tensor residual = per_example();
  Tensor curvature = per_example();
  dispatch(op, "f", f, first_name, ids[0], [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    cuda::DerivativeParams<T, I, K> params{{},
                                           f.const_data_ptr<T>(),
                                           data_or_null<T>(label),
                                           data_or_null<T>(weight),
                                           value.mutable_data_ptr<T>(),
                                           residual.mutable_data_ptr<T>(),
                                           curvature.mutable_data_ptr<T>(),
                                           n_examples,
                                           f.size(0),
                                           f.size(1),
                                           loss};
    for (int k = 0; k < K; ++k) params.ids[k] = ids[k].template const_data_ptr<I>();
    cuda::derivatives(params, on.stream());
  });
  return {value, residual, curvature};
}

Derivatives pointwise_derivatives_cuda(const Tensor& left, const Tensor& right, const Tensor& f,
                                       const Tensor& label, const std::optional<Tensor>& weight,
                                       int64_t loss) {
  const Loss checked_loss = check_pointwise_derivatives(left, right, f, label, weight, loss);
  return derivatives<2>("pointwise_derivatives", "left", {left, right}, f, label, weight,
                        checked_loss);
}

Derivatives pairwise_derivatives_cuda(const Tensor& user, const Tensor& positive,
                                      const Tensor& negative, const Tensor& f,
                                      const std::optional<Tensor>& weight) {
  check_pairwise_derivatives(user, positive, negative, f, weight);
  return derivatives<3>("pairwise_derivatives", "user", {user, positive, negative}, f, std::nullopt,
                        weight, Loss::kBce);
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("pointwise_derivatives", TORCH_BOX(&ifru::ops::pointwise_derivatives_cuda));
  m.impl("pairwise_derivatives", TORCH_BOX(&ifru::ops::pairwise_derivatives_cuda));
}
