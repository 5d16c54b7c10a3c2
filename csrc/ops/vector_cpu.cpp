// Vector updates of conjugate gradients: dot, cg_update, cg_direction.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../kernels/cpu/kernels.h"
#include "dispatch.h"
#include "parallel.h"
#include "vector_checks.h"

namespace ifru::ops {
namespace {

constexpr int64_t kBlock = 4096;  // elements summed by one call: 16 KiB of each float32 operand

int64_t rows_per_block(int64_t d) { return std::max<int64_t>(1, kBlock / std::max<int64_t>(1, d)); }

Tensor dot(const Tensor& x, const Tensor& y) {
  check_dot(x, y);
  Tensor out = torch::stable::new_empty(x, {}, ScalarType::Double);
  dispatch_value("dot", "x", x.scalar_type(), [&](auto value) {
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
  check_cg_update(x, r, p, ap, alpha, inverse, dots);
  dispatch_value("cg_update", "x", x.scalar_type(), [&](auto value) {
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
  check_cg_direction(p, r, beta, inverse);
  dispatch_value("cg_direction", "p", p.scalar_type(), [&](auto value) {
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
