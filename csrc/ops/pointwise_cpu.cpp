// Pointwise losses, equations (2), (5) and (6): derivatives, gradient, HVP, Gauss-Newton product.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "derivatives_checks.h"
#include "dispatch.h"
#include "parallel.h"
#include "pointwise.h"
#include "stream.h"

namespace ifru::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> pointwise_derivatives(const Tensor& left, const Tensor& right,
                                                         const Tensor& f, const Tensor& label,
                                                         const std::optional<Tensor>& weight,
                                                         int64_t loss) {
  constexpr const char* kOp = "pointwise_derivatives";
  const Loss checked_loss = check_pointwise_derivatives(left, right, f, label, weight, loss);
  const int64_t n_interactions = left.numel();

  Tensor value = torch::stable::empty_like(label);
  Tensor residual = torch::stable::empty_like(label);
  Tensor curvature = torch::stable::empty_like(label);
  dispatch(kOp, "f", f, "left", left, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::DerivativeArgs<T, I> args{left.const_data_ptr<I>(),
                                         right.const_data_ptr<I>(),
                                         f.const_data_ptr<T>(),
                                         label.const_data_ptr<T>(),
                                         data_or_null<T>(weight),
                                         value.mutable_data_ptr<T>(),
                                         residual.mutable_data_ptr<T>(),
                                         curvature.mutable_data_ptr<T>(),
                                         f.size(0),
                                         f.size(1),
                                         checked_loss};
    const auto& kernels = cpu::kernels<T, I>();
    const bool ok = parallel_items(n_interactions, [&](int64_t begin, int64_t end) {
      return kernels.derivatives(args, begin, end);
    });
    if (!ok) fail_node_id(kOp, "left and right", f.size(0));
  });
  return {value, residual, curvature};
}

// Runs a pass for each vector of z, into out. One after the other: together they would share the
// reads of f, a quarter of what is read, and compete for the cache with their own rows; measured,
// that loses (benchmarks/NOTES.md).
template <class S, class T, class I>
void run_passes(const char* op, const PassTensors& t, const Tensor& z, const Tensor& out,
                const cpu::PassKernels<cpu::StreamArgs<S, T, I>>& kernels) {
  const auto stream = check_stream<I>(op, t.rowptr, t.neighbor, t.cuts, t.first_row, t.f.size(0));
  std::vector<T> scratch(stream.n_blocks * t.f.size(1));
  const int64_t size = t.f.numel();
  const int64_t n_vectors = z.dim() == 3 ? z.size(0) : 1;
  for (int64_t k = 0; k < n_vectors; ++k) {
    const cpu::StreamArgs<S, T, I> args{stream,
                                        data_or_null<T>(t.residual),
                                        data_or_null<T>(t.curvature),
                                        static_cast<const S*>(t.f.const_data_ptr()),
                                        static_cast<const S*>(z.const_data_ptr()) + k * size,
                                        data_or_null<T>(t.ridge),
                                        out.mutable_data_ptr<T>() + k * size,
                                        scratch.data(),
                                        t.f.size(1)};
    if (!run_pass(kernels, args)) fail(op, kColumnsText);
  }
}

struct Cpu {
  static void run_gradient(const char* op, const PassTensors& t, const Tensor& out) {
    dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      run_passes<T, T, I>(op, t, t.f, out, cpu::kernels<T, I>().gradient);
    });
  }

  // The exact product, or the Gauss-Newton product where there is no residual.
  static void run_product(const char* op, const PassTensors& t, const Tensor& z,
                          const Tensor& out) {
    dispatch_storage(op, "f", t.f.scalar_type(), [&](auto storage_tag, auto value_tag) {
      using S = decltype(storage_tag);
      using T = decltype(value_tag);
      dispatch_index(op, "neighbor", t.neighbor.scalar_type(), [&](auto index_tag) {
        using I = decltype(index_tag);
        const auto& kernels = cpu::product_kernels<S, T, I>();
        run_passes<S, T, I>(op, t, z, out,
                            t.residual.has_value() ? kernels.hvp : kernels.gauss_newton);
      });
    });
  }
};

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("pointwise_derivatives", TORCH_BOX(&ifru::ops::pointwise_derivatives));
  m.impl("pointwise_gradient", TORCH_BOX(&ifru::ops::pointwise_gradient<ifru::ops::Cpu>));
  m.impl("pointwise_hvp", TORCH_BOX(&ifru::ops::pointwise_hvp<ifru::ops::Cpu>));
  m.impl("pointwise_hvp.out", TORCH_BOX(&ifru::ops::pointwise_hvp_out<ifru::ops::Cpu>));
  m.impl("pointwise_ggn", TORCH_BOX(&ifru::ops::pointwise_ggn<ifru::ops::Cpu>));
  m.impl("pointwise_ggn.out", TORCH_BOX(&ifru::ops::pointwise_ggn_out<ifru::ops::Cpu>));
}
