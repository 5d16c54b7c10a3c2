// propagate, equation (1): check, allocate, run the Horner steps.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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

// Horner's recursion: step(args) computes one layer from the scaled one above it. The layers
// alternate between `out` and `scratch`, which is made here where it is needed and not given, so
// that the last one lands in `out`.
template <class T, class Step>
void horner(const Tensor& inv_sqrt_degree, const Tensor& x, const Tensor& alpha,
            const std::optional<Tensor>& ridge, const std::optional<Tensor>& v, const Tensor& out,
            std::optional<Tensor> scratch, const Step& step) {
  const int64_t n = x.size(0);
  const int64_t d = x.size(1);
  const int64_t n_layers = alpha.numel() - 1;
  const double* alpha_data = alpha.const_data_ptr<double>();
  cpu::HornerStep<T> args{inv_sqrt_degree.const_data_ptr<T>(),
                          x.const_data_ptr<T>(),
                          nullptr,
                          data_or_null<T>(ridge),
                          data_or_null<T>(v),
                          out.mutable_data_ptr<T>(),
                          static_cast<T>(alpha_data[0]),
                          false,
                          d};
  if (n_layers == 0) {
    scale_rows<T>(args.alpha, nullptr, args.x, args.ridge, args.v, n, d, args.out);
    return;
  }
  if (!scratch.has_value()) scratch = torch::stable::empty_like(x);
  T* buffers[2] = {out.mutable_data_ptr<T>(), scratch->mutable_data_ptr<T>()};
  scale_rows<T>(static_cast<T>(alpha_data[n_layers]), args.inv_sqrt_degree, args.x, nullptr,
                nullptr, n, d, buffers[n_layers % 2]);
  for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
    cpu::HornerStep<T> inner = args;
    inner.scaled = buffers[(layer + 1) % 2];
    inner.out = buffers[layer % 2];
    inner.alpha = static_cast<T>(alpha_data[layer]);
    inner.scale_output = layer > 0;
    if (layer > 0) inner.ridge = nullptr;
    step(inner);
  }
}

void propagate_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                   const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                   const std::optional<Tensor>& v, const Tensor& out,
                   const std::optional<Tensor>& scratch) {
  constexpr const char* kOp = "propagate";
  check_propagate(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v);
  check_buffers(kOp, {{"rowptr", rowptr}, {"neighbor", neighbor}}, inv_sqrt_degree, x, alpha, ridge,
                v, out, scratch);
  const int64_t n = x.size(0);
  const int64_t* rowptr_data = rowptr.const_data_ptr<int64_t>();
  check_rowptr(kOp, rowptr_data, n, neighbor.numel());
  dispatch(kOp, "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    const auto& kernels = cpu::kernels<T, I>();
    const cpu::Adjacency<I> adjacency{rowptr_data, neighbor.const_data_ptr<I>(), n};
    const auto step = [&](const cpu::HornerStep<T>& inner) {
      const cpu::PropagateArgs<T, I> args{inner, adjacency};
      const bool ok = parallel_rows(rowptr_data, n, [&](int64_t begin, int64_t end) {
        return kernels.propagate(args, begin, end);
      });
      if (!ok) fail_node_id(kOp, "neighbor", n);
    };
    horner<T>(inv_sqrt_degree, x, alpha, ridge, v, out, scratch, step);
  });
}

Tensor propagate(const Tensor& rowptr, const Tensor& neighbor, const Tensor& inv_sqrt_degree,
                 const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& ridge,
                 const std::optional<Tensor>& v) {
  Tensor out = torch::stable::empty_like(x);
  propagate_out(rowptr, neighbor, inv_sqrt_degree, x, alpha, ridge, v, out, std::nullopt);
  return out;
}

void propagate_stream_out(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                          int64_t first_row, const Tensor& inv_sqrt_degree, const Tensor& x,
                          const Tensor& alpha, const std::optional<Tensor>& ridge,
                          const std::optional<Tensor>& v, const Tensor& out,
                          const std::optional<Tensor>& scratch) {
  constexpr const char* kOp = "propagate_stream";
  check_propagate_values(kOp, inv_sqrt_degree, x, alpha, ridge, v);
  check_stream_shapes(kOp, rowptr, neighbor, cuts, x);
  check_buffers(kOp, {{"rowptr", rowptr}, {"neighbor", neighbor}, {"cuts", cuts}}, inv_sqrt_degree,
                x, alpha, ridge, v, out, scratch);
  dispatch(kOp, "x", x, "neighbor", neighbor, [&](auto value, auto index) {
    using T = decltype(value);
    using I = decltype(index);
    const auto stream = check_stream<I>(kOp, rowptr, neighbor, cuts, first_row, x.size(0));
    std::vector<T> part(stream.n_blocks * x.size(1));
    const auto step = [&](const cpu::HornerStep<T>& inner) {
      const cpu::PropagateStreamArgs<T, I> args{inner, stream, part.data()};
      if (!run_pass(cpu::kernels<T, I>().propagate_stream, args)) fail(kOp, kColumnsText);
    };
    horner<T>(inv_sqrt_degree, x, alpha, ridge, v, out, scratch, step);
  });
}

Tensor propagate_stream(const Tensor& rowptr, const Tensor& neighbor, const Tensor& cuts,
                        int64_t first_row, const Tensor& inv_sqrt_degree, const Tensor& x,
                        const Tensor& alpha, const std::optional<Tensor>& ridge,
                        const std::optional<Tensor>& v) {
  Tensor out = torch::stable::empty_like(x);
  propagate_stream_out(rowptr, neighbor, cuts, first_row, inv_sqrt_degree, x, alpha, ridge, v, out,
                       std::nullopt);
  return out;
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("propagate", TORCH_BOX(&ifru::ops::propagate));
  m.impl("propagate.out", TORCH_BOX(&ifru::ops::propagate_out));
  m.impl("propagate_stream", TORCH_BOX(&ifru::ops::propagate_stream));
  m.impl("propagate_stream.out", TORCH_BOX(&ifru::ops::propagate_stream_out));
}
