// ggn_diagonal and ggn_blocks on CUDA, equation (7).

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cuda/diagonal.cuh"
#include "diagonal.h"
#include "on_device.h"
#include "registration.h"
#include "row_set.h"

namespace ifru::ops {
namespace {

// Calls run(rows) with what the kernels take.
template <class Run>
void run_rows(const char* op, const CurvatureTensors& t, const std::optional<Tensor>& partial,
              const Tensor& out, const Run& run) {
  dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    run(cuda::CurvatureRows<T, I>{
        row_set<T>(t.rowptr, t.neighbor.numel(), t.f.size(1), partial),
        t.neighbor.const_data_ptr<I>(), data_or_null<I>(t.other), t.curvature.const_data_ptr<T>(),
        t.f.const_data_ptr<T>(), data_or_null<T>(t.ridge), out.mutable_data_ptr<T>(), t.f.size(0)});
  });
}

struct Cuda {
  static void run_diagonal(const char* op, const CurvatureTensors& t, const Tensor& out) {
    const OnDevice on(t.f);
    const auto partial = new_partial(t.f, t.neighbor.numel());
    run_rows(op, t, partial, out, [&](const auto& rows) { cuda::ggn_diagonal(rows, on.stream()); });
  }
  static void run_blocks(const char* op, const CurvatureTensors& t, const Tensor& out) {
    const OnDevice on(t.f);
    run_rows(op, t, std::nullopt, out,
             [&](const auto& rows) { cuda::ggn_blocks(rows, on.stream()); });
  }
};

}  // namespace
}  // namespace ifru::ops

IFRU_CUDA_KERNELS(m) {
  m.impl("ggn_diagonal", TORCH_BOX(&ifru::ops::ggn_diagonal<ifru::ops::Cuda>));
  m.impl("ggn_blocks", TORCH_BOX(&ifru::ops::ggn_blocks<ifru::ops::Cuda>));
}
