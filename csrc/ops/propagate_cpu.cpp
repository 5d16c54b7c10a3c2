// propagate, equation (1): check, allocate, run the Horner steps.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"
#include "propagate_checks.h"

namespace ifru::ops {
namespace {

constexpr const char* kOp = "propagate";

// out = factor * s o x (s null: factor * x), plus ridge o v where given.
template <class T>
void scale_rows(T factor, const T* s, const T* x, const T* ridge, const T* v, int64_t n, int64_t d,
                T* out) {
  parallel_items(n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T left = s == nullptr ? factor : factor * s[row];
      for (int64_t k = row * d; k < (row + 1) * d; ++k) {
        out[k] = left * x[k] + (ridge == nullptr ? T(0) : ridge[row] * v[k]);
      }
    }
    return true;
  });
}

Tensor propagate(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                 const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                 const std::optional<Tensor>& v) {
  check_propagate(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v);
  const int64_t n = x.size(0);
  const int64_t d = x.size(1);
  const int64_t n_layers = alpha.numel() - 1;
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  const double* alpha_data = alpha.const_data_ptr<double>();
  check_rowptr(kOp, rowptr_data, n, neighbor.numel());

  Tensor out = torch::stable::empty_like(x);
  dispatch(kOp, "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    T* out_data = out.mutable_data_ptr<T>();
    const T* x_data = x.const_data_ptr<T>();
    const T* s = inv_sqrt_degree.const_data_ptr<T>();
    if (n_layers == 0) {
      scale_rows<T>(static_cast<T>(alpha_data[0]), nullptr, x_data, data_or_null<T>(ridge),
                    data_or_null<T>(v), n, d, out_data);
      return;
    }
    // The steps alternate between `out` and one scratch buffer so that the last lands in `out`.
    Tensor scratch = torch::stable::empty_like(x);
    const auto& kernels = cpu::kernels<T, I>();
    T* buffers[2] = {out_data, scratch.mutable_data_ptr<T>()};
    scale_rows<T>(static_cast<T>(alpha_data[n_layers]), s, x_data, nullptr, nullptr, n, d,
                  buffers[n_layers % 2]);
    for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
      const bool last = layer == 0;
      const cpu::PropagateArgs<T, I> args{{rowptr_data, neighbor.const_data_ptr<I>(), n},
                                          s,
                                          x_data,
                                          buffers[(layer + 1) % 2],
                                          last ? data_or_null<T>(ridge) : nullptr,
                                          last ? data_or_null<T>(v) : nullptr,
                                          buffers[layer % 2],
                                          static_cast<T>(alpha_data[layer]),
                                          !last,
                                          d};
      const bool ok = parallel_rows(rowptr_data, n, [&](int64_t begin, int64_t end) {
        return kernels.propagate(args, begin, end);
      });
      if (!ok) fail_node_id(kOp, "neighbor", n);
    }
  });
  return out;
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("propagate", TORCH_BOX(&ifru::ops::propagate));
}
