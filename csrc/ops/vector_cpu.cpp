// Vector updates of conjugate gradients: dot, cg_update, cg_direction.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"

namespace ifru::ops {
namespace {

constexpr int64_t kBlock = 4096;  // elements summed by one call: 16 KiB of each float32 operand

int64_t rows_per_block(int64_t d) { return std::max<int64_t>(1, kBlock / std::max<int64_t>(1, d)); }

void check_scalars(const char* op, const char* name, const Tensor& t, const Tensor& like,
                   int64_t dim, int64_t n) {
  check_shape(op, name, t, dim, n);
  if (t.scalar_type() != ScalarType::Double || t.is_cuda() != like.is_cuda()) {
    fail(op, name, ": expected float64 on the device of the vectors");
  }
}

Tensor dot(const Tensor& x, const Tensor& y) {
  constexpr const char* kOp = "dot";
  if (!x.is_contiguous()) fail(kOp, "x: expected a contiguous tensor");
  check_same(kOp, "y", y, "x", x);
  if (!y.is_contiguous() || y.numel() != x.numel()) {
    fail(kOp, "y: expected ", x.numel(), " contiguous elements as in x, got ", shape_text(y));
  }
  Tensor out = torch::stable::new_empty(x, {}, ScalarType::Double);
  dispatch_value(kOp, "x", x.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const auto& kernels = cpu::vector_kernels<T>();
    const T* x_data = x.const_data_ptr<T>();
    const T* y_data = y.const_data_ptr<T>();
    const auto sums =
        parallel_sums<1>(x.numel(), kBlock, [&](int64_t begin, int64_t end, double* s) {
          s[0] = kernels.dot(x_data, y_data, begin, end);
        });
    out.mutable_data_ptr<double>()[0] = sums[0];
  });
  return out;
}

void cg_update(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& ap,
               const Tensor& alpha, const std::optional<Tensor>& inverse, const Tensor& dots) {
  constexpr const char* kOp = "cg_update";
  check_shape(kOp, "x", x, 2, -1);
  check_value(kOp, "r", r, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "p", p, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "ap", ap, "x", x, 2, x.size(0), x.size(1));
  check_value(kOp, "inverse", inverse, "x", x, 1, x.size(0));
  check_scalars(kOp, "alpha", alpha, x, 0, -1);
  check_scalars(kOp, "dots", dots, x, 1, 2);
  dispatch_value(kOp, "x", x.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const auto& kernels = cpu::vector_kernels<T>();
    const cpu::CgUpdateArgs<T> args{x.mutable_data_ptr<T>(),
                                    r.mutable_data_ptr<T>(),
                                    p.const_data_ptr<T>(),
                                    ap.const_data_ptr<T>(),
                                    data_or_null<T>(inverse),
                                    static_cast<T>(alpha.const_data_ptr<double>()[0]),
                                    x.size(1)};
    const auto sums = parallel_sums<2>(
        x.size(0), rows_per_block(x.size(1)),
        [&](int64_t begin, int64_t end, double* s) { kernels.cg_update(args, begin, end, s); });
    std::copy(sums.begin(), sums.end(), dots.mutable_data_ptr<double>());
  });
}

void cg_direction(const Tensor& p, const Tensor& r, const Tensor& beta,
                  const std::optional<Tensor>& inverse) {
  constexpr const char* kOp = "cg_direction";
  check_shape(kOp, "p", p, 2, -1);
  check_value(kOp, "r", r, "p", p, 2, p.size(0), p.size(1));
  check_value(kOp, "inverse", inverse, "p", p, 1, p.size(0));
  check_scalars(kOp, "beta", beta, p, 0, -1);
  dispatch_value(kOp, "p", p.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const auto& kernels = cpu::vector_kernels<T>();
    const cpu::CgDirectionArgs<T> args{p.mutable_data_ptr<T>(), r.const_data_ptr<T>(),
                                       data_or_null<T>(inverse),
                                       static_cast<T>(beta.const_data_ptr<double>()[0]), p.size(1)};
    parallel_items(p.size(0), [&](int64_t begin, int64_t end) {
      kernels.cg_direction(args, begin, end);
      return true;
    });
  });
}

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("dot", TORCH_BOX(&ifru::ops::dot));
  m.impl("cg_update", TORCH_BOX(&ifru::ops::cg_update));
  m.impl("cg_direction", TORCH_BOX(&ifru::ops::cg_direction));
}
