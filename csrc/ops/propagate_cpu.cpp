// propagate, equation (1): check, allocate, run the Horner steps.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"
#include "propagate_checks.h"
#include "stream.h"

namespace ifru::ops {
namespace {

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

// Horner's recursion: step(layer, scaled, out) computes one layer from the scaled one above it.
template <class T, class Step>
Tensor horner(const Tensor& inv_sqrt_degree, const Tensor& x, const Tensor& alpha,
              const std::optional<Tensor>& ridge, const std::optional<Tensor>& v,
              const Step& step) {
  const int64_t n = x.size(0);
  const int64_t d = x.size(1);
  const int64_t n_layers = alpha.numel() - 1;
  const double* alpha_data = alpha.const_data_ptr<double>();
  const T* x_data = x.const_data_ptr<T>();
  Tensor out = torch::stable::empty_like(x);
  if (n_layers == 0) {
    scale_rows<T>(static_cast<T>(alpha_data[0]), nullptr, x_data, data_or_null<T>(ridge),
                  data_or_null<T>(v), n, d, out.mutable_data_ptr<T>());
    return out;
  }
  // The steps alternate between `out` and one scratch buffer so that the last lands in `out`.
  Tensor scratch = torch::stable::empty_like(x);
  T* buffers[2] = {out.mutable_data_ptr<T>(), scratch.mutable_data_ptr<T>()};
  scale_rows<T>(static_cast<T>(alpha_data[n_layers]), inv_sqrt_degree.const_data_ptr<T>(), x_data,
                nullptr, nullptr, n, d, buffers[n_layers % 2]);
  for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
    step(layer, static_cast<T>(alpha_data[layer]), buffers[(layer + 1) % 2], buffers[layer % 2]);
  }
  return out;
}

Tensor propagate(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                 const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                 const std::optional<Tensor>& v) {
  constexpr const char* kOp = "propagate";
  check_propagate(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v);
  const int64_t n = x.size(0);
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  check_rowptr(kOp, rowptr_data, n, neighbor.numel());

  std::optional<Tensor> out;
  dispatch(kOp, "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    const auto& kernels = cpu::kernels<T, I>();
    out = horner<T>(
        inv_sqrt_degree, x, alpha, ridge, v,
        [&](int64_t layer, T weight, const T* scaled, T* result) {
          const bool last = layer == 0;
          const cpu::PropagateArgs<T, I> args{{rowptr_data, neighbor.const_data_ptr<I>(), n},
                                              inv_sqrt_degree.const_data_ptr<T>(),
                                              x.const_data_ptr<T>(),
                                              scaled,
                                              last ? data_or_null<T>(ridge) : nullptr,
                                              last ? data_or_null<T>(v) : nullptr,
                                              result,
                                              weight,
                                              !last,
                                              x.size(1)};
          const bool ok = parallel_rows(rowptr_data, n, [&](int64_t begin, int64_t end) {
            return kernels.propagate(args, begin, end);
          });
          if (!ok) fail_node_id(kOp, "neighbor", n);
        });
  });
  return *out;
}

Tensor propagate_stream(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                        int64_t first_row, const Tensor& inv_sqrt_degree, const Tensor& x,
                        const Tensor& alpha, const std::optional<Tensor>& ridge,
                        const std::optional<Tensor>& v) {
  constexpr const char* kOp = "propagate_stream";
  check_propagate_values(kOp, inv_sqrt_degree, x, alpha, ridge, v);
  check_stream_shapes(kOp, rowptr, neighbor, cuts, x);
  const int64_t d = x.size(1);

  std::optional<Tensor> out;
  dispatch(kOp, "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    const auto stream = check_stream<I>(kOp, rowptr, neighbor, cuts, first_row, x.size(0));
    const auto& kernels = cpu::kernels<T, I>();
    std::vector<T> part(stream.n_blocks * d);
    out = horner<T>(
        inv_sqrt_degree, x, alpha, ridge, v,
        [&](int64_t layer, T weight, const T* scaled, T* result) {
          const bool last = layer == 0;
          const cpu::PropagateStreamArgs<T> args{inv_sqrt_degree.const_data_ptr<T>(),
                                                 x.const_data_ptr<T>(),
                                                 scaled,
                                                 last ? data_or_null<T>(ridge) : nullptr,
                                                 last ? data_or_null<T>(v) : nullptr,
                                                 result,
                                                 part.data(),
                                                 weight,
                                                 !last,
                                                 d};
          const bool ok = run_stream(
              stream,
              [&](int64_t first, int64_t end) {
                std::fill(result + first * d, result + end * d, T(0));
              },
              [&](int64_t block, int64_t begin, int64_t end) {
                return kernels.propagate_stream(args, stream, block, begin, end);
              },
              [&](int64_t first, int64_t end) { kernels.propagate_finish(args, first, end); });
          if (!ok) fail(kOp, kColumnsText);
        });
  });
  return *out;
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("propagate", TORCH_BOX(&ifru::ops::propagate));
  m.impl("propagate_stream", TORCH_BOX(&ifru::ops::propagate_stream));
}
