// Products of the pairwise loss on CUDA, equations (3), (5) and (6).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>

#include "../kernels/cuda/pairwise.cuh"
#include "on_device.h"
#include "pairwise.h"
#include "registration.h"
#include "row_set.h"

namespace ifru::ops {
namespace {

struct Cuda {
  static void run_pairwise(const char* op, const PairwiseTensors& t, const Tensor& out) {
    const OnDevice on(t.f);
    const auto partial = new_partial(t.f, t.neighbor.numel());
    std::optional<Tensor> change;
    if (t.curvature.has_value()) {
      change = torch::stable::empty_like(*t.curvature);
      torch::stable::fill_(*change, NAN);
    }
    dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      const T* f = t.f.const_data_ptr<T>();
      const cuda::TripleRows<T, I> rows{
          row_set<T>(t.rowptr, t.neighbor.numel(), t.f.size(1), partial),
          t.neighbor.const_data_ptr<I>(),
          t.other.const_data_ptr<I>(),
          t.triple.const_data_ptr<I>(),
          data_or_null<T>(t.residual),
          data_or_null<T>(t.curvature),
          f,
          t.z.has_value() ? t.z->const_data_ptr<T>() : f,
          data_or_null<T>(t.ridge),
          mutable_or_null<T>(change),
          out.mutable_data_ptr<T>(),
          t.n_triples()};
      t.curvature.has_value() ? cuda::pairwise_product(rows, on.stream())
                              : cuda::pairwise_gradient(rows, on.stream());
    });
  }
};

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("pairwise_gradient", TORCH_BOX(&ifru::ops::pairwise_gradient<ifru::ops::Cuda>));
  m.impl("pairwise_hvp", TORCH_BOX(&ifru::ops::pairwise_hvp<ifru::ops::Cuda>));
  m.impl("pairwise_ggn", TORCH_BOX(&ifru::ops::pairwise_ggn<ifru::ops::Cuda>));
}
