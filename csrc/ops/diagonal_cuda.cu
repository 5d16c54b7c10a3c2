// ggn_blocks on CUDA, equation (7).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/diagonal.cuh"
#include "diagonal_checks.h"
#include "dispatch.h"
#include "on_device.h"
#include "registration.h"

namespace ifru::ops {
namespace {

Tensor ggn_blocks_cuda(const Tensor& rowptr, const Tensor& neighbor,
                       const std::optional<Tensor>& other, const Tensor& curvature, const Tensor& f,
                       const std::optional<Tensor>& ridge) {
  constexpr const char* kOp = "ggn_blocks";
  check_curvature_rows(kOp, rowptr, neighbor, other, curvature, f, ridge);
  const OnDevice on(f);
  Tensor out = new_curvature_rows(rowptr, f, true);
  dispatch(kOp, "f", f, "neighbor", neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cuda::DiagonalParams<T, I> params{rowptr.const_data_ptr<int64_t>(),
                                            neighbor.const_data_ptr<I>(),
                                            data_or_null<I>(other),
                                            curvature.const_data_ptr<T>(),
                                            f.const_data_ptr<T>(),
                                            data_or_null<T>(ridge),
                                            out.mutable_data_ptr<T>(),
                                            rowptr.numel() - 1,
                                            neighbor.numel(),
                                            f.size(0),
                                            f.size(1)};
    cuda::ggn_blocks(params, on.stream());
  });
  return out;
}

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("ggn_blocks", TORCH_BOX(&ifru::ops::ggn_blocks_cuda));
}
