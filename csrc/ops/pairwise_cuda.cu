// Products of the pairwise loss on CUDA, equations (3), (5) and (6).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>

#include "../kernels/cuda/pairwise.cuh"
#include "dispatch.h"
#include "on_device.h"
#include "pairwise_checks.h"
#include "registration.h"

namespace ifru::ops {
namespace {

Tensor pairwise_product_cuda(const char* op, const PairwiseTensors& t) {
  check_pairwise(op, t);
  const Tensor& f = t.f;
  const OnDevice on(f);
  Tensor out = torch::stable::empty_like(f);
  std::optional<Tensor> partial;
  const int64_t segments = cuda::n_segments(t.neighbor.numel());
  if (segments > 0) partial = torch::stable::new_empty(f, {segments, f.size(1)});
  std::optional<Tensor> change;
  if (t.curvature.has_value()) {
    change = torch::stable::empty_like(*t.curvature);
    torch::stable::fill_(*change, NAN);
  }
  dispatch(op, "f", f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const T* f_data = f.const_data_ptr<T>();
    const cuda::TripleRows<T, I> rows{
        {t.rowptr.const_data_ptr<int64_t>(), mutable_or_null<T>(partial), f.size(0),
         t.neighbor.numel(), f.size(1)},
        t.neighbor.const_data_ptr<I>(),
        t.other.const_data_ptr<I>(),
        t.triple.const_data_ptr<I>(),
        data_or_null<T>(t.residual),
        data_or_null<T>(t.curvature),
        f_data,
        t.z.has_value() ? t.z->const_data_ptr<T>() : f_data,
        data_or_null<T>(t.ridge),
        mutable_or_null<T>(change),
        out.mutable_data_ptr<T>(),
        t.n_triples()};
    t.curvature.has_value() ? cuda::pairwise_product(rows, on.stream())
                            : cuda::pairwise_gradient(rows, on.stream());
  });
  return out;
}

Tensor pairwise_gradient_cuda(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                              const Tensor& triple, const Tensor& residual, const Tensor& f,
                              const std::optional<Tensor>& ridge) {
  return pairwise_product_cuda("pairwise_gradient", {rowptr, neighbor, other, triple, residual,
                                                     std::nullopt, f, std::nullopt, ridge});
}

Tensor pairwise_hvp_cuda(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                         const Tensor& triple, const Tensor& residual, const Tensor& curvature,
                         const Tensor& f, const Tensor& z, const std::optional<Tensor>& ridge) {
  return pairwise_product_cuda("pairwise_hvp",
                               {rowptr, neighbor, other, triple, residual, curvature, f, z, ridge});
}

Tensor pairwise_ggn_cuda(const Tensor& rowptr, const Tensor& neighbor, const Tensor& other,
                         const Tensor& triple, const Tensor& curvature, const Tensor& f,
                         const Tensor& z, const std::optional<Tensor>& ridge) {
  return pairwise_product_cuda(
      "pairwise_ggn", {rowptr, neighbor, other, triple, std::nullopt, curvature, f, z, ridge});
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("pairwise_gradient", TORCH_BOX(&ifru::ops::pairwise_gradient_cuda));
  m.impl("pairwise_hvp", TORCH_BOX(&ifru::ops::pairwise_hvp_cuda));
  m.impl("pairwise_ggn", TORCH_BOX(&ifru::ops::pairwise_ggn_cuda));
}
