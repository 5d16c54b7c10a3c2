// Pointwise losses on CUDA, equations (5) and (6), on all nodes or on some rows: check, allocate,
// launch on the current stream. The restricted products are here because their kernels are the
// same: these are compiled once.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/product.cuh"
#include "on_device.h"
#include "pointwise.h"
#include "registration.h"
#include "restricted.h"
#include "row_set.h"

namespace ifru::ops {
namespace {

// A GPU gathers at both ends of an interaction: the rows are all nodes. What the tensors hold is
// the kernels' to check.
void check_entries(const char* op, const PassTensors& t) {
  const int64_t n_nodes = t.f.size(0);
  if (t.rowptr.size(0) != 1 || t.rowptr.size(1) != n_nodes + 1 || t.first_row != 0) {
    fail(op, "rowptr: expected shape [1, ", n_nodes + 1,
         "], the rows of all nodes, as Adjacency.entries() has them, got ", shape_text(t.rowptr),
         " from row ", t.first_row, " on");
  }
}

struct Cuda {
  static void run_gradient(const char* op, const PassTensors& t, const Tensor& out) {
    check_entries(op, t);
    const OnDevice on(t.f);
    const auto partial = new_partial(t.f, t.neighbor.numel());
    dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      const cuda::Gradient<T, I> params{
          row_set<T>(t.rowptr, t.neighbor.numel(), t.f.size(1), partial),
          t.neighbor.const_data_ptr<I>(),
          t.residual->const_data_ptr<T>(),
          t.f.const_data_ptr<T>(),
          data_or_null<T>(t.ridge),
          out.mutable_data_ptr<T>()};
      cuda::gradient(params, on.stream());
    });
  }

  // One vector after the other, as on the CPU.
  static void run_product(const char* op, const PassTensors& t, const Tensor& z,
                          const Tensor& out) {
    check_entries(op, t);
    const OnDevice on(t.f);
    const auto partial = new_partial(t.f, t.neighbor.numel());
    const int64_t n_vectors = z.dim() == 3 ? z.size(0) : 1;
    dispatch_storage(op, "f", t.f.scalar_type(), [&](auto storage_tag, auto value_tag) {
      using S = decltype(storage_tag);
      using T = decltype(value_tag);
      dispatch_index(op, "neighbor", t.neighbor.scalar_type(), [&](auto index_tag) {
        using I = decltype(index_tag);
        for (int64_t k = 0; k < n_vectors; ++k) {
          const cuda::Product<S, T, I> params{
              row_set<T>(t.rowptr, t.neighbor.numel(), t.f.size(1), partial),
              nullptr,
              t.neighbor.const_data_ptr<I>(),
              nullptr,
              data_or_null<T>(t.residual),
              t.curvature->const_data_ptr<T>(),
              static_cast<const S*>(t.f.const_data_ptr()),
              static_cast<const S*>(z.const_data_ptr()) + k * t.f.numel(),
              data_or_null<T>(t.ridge),
              out.mutable_data_ptr<T>() + k * t.f.numel(),
              t.f.size(0)};
          cuda::product(params, on.stream());
        }
      });
    });
  }

  static void run_restricted(const char* op, const RestrictedTensors& t, const Tensor& out) {
    const OnDevice on(t.f);
    const auto partial = new_partial(t.f, t.neighbor.numel());
    dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      const cuda::Product<T, T, I> params{
          row_set<T>(t.rowptr, t.neighbor.numel(), t.f.size(1), partial),
          t.rows.const_data_ptr<I>(),
          t.neighbor.const_data_ptr<I>(),
          t.local.const_data_ptr<I>(),
          data_or_null<T>(t.residual),
          t.curvature.const_data_ptr<T>(),
          t.f.const_data_ptr<T>(),
          t.z.const_data_ptr<T>(),
          data_or_null<T>(t.ridge),
          out.mutable_data_ptr<T>(),
          t.f.size(0)};
      cuda::product(params, on.stream());
    });
  }
};

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("pointwise_gradient", TORCH_BOX(&ifru::ops::pointwise_gradient<ifru::ops::Cuda>));
  m.impl("pointwise_hvp", TORCH_BOX(&ifru::ops::pointwise_hvp<ifru::ops::Cuda>));
  m.impl("pointwise_hvp.out", TORCH_BOX(&ifru::ops::pointwise_hvp_out<ifru::ops::Cuda>));
  m.impl("pointwise_ggn", TORCH_BOX(&ifru::ops::pointwise_ggn<ifru::ops::Cuda>));
  m.impl("pointwise_ggn.out", TORCH_BOX(&ifru::ops::pointwise_ggn_out<ifru::ops::Cuda>));
  m.impl("restricted_hvp", TORCH_BOX(&ifru::ops::restricted_hvp<ifru::ops::Cuda>));
  m.impl("restricted_ggn", TORCH_BOX(&ifru::ops::restricted_ggn<ifru::ops::Cuda>));
}
