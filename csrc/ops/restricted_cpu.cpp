// restricted_hvp and restricted_ggn, equation (6) on some rows.

#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/kernels.h"
#include "parallel.h"
#include "restricted.h"

namespace ifru::ops {
namespace {

struct Cpu {
  static void run_restricted(const char* op, const RestrictedTensors& t, const Tensor& out) {
    const int64_t n_rows = t.rows.numel();
    const int64_t* rowptr = t.rowptr.const_data_ptr<int64_t>();
    check_rowptr(op, rowptr, n_rows, t.neighbor.numel());
    dispatch(op, "f", t.f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      const cpu::RestrictedArgs<T, I> args{rowptr,
                                           t.rows.const_data_ptr<I>(),
                                           t.neighbor.const_data_ptr<I>(),
                                           t.local.const_data_ptr<I>(),
                                           data_or_null<T>(t.residual),
                                           t.curvature.const_data_ptr<T>(),
                                           t.f.const_data_ptr<T>(),
                                           t.z.const_data_ptr<T>(),
                                           data_or_null<T>(t.ridge),
                                           out.mutable_data_ptr<T>(),
                                           n_rows,
                                           t.f.size(0),
                                           t.f.size(1)};
      const auto& kernels = cpu::kernels<T, I>();
      const auto product =
          t.residual.has_value() ? kernels.restricted_hvp : kernels.restricted_gauss_newton;
      const bool ok = parallel_rows(
          rowptr, n_rows, [&](int64_t begin, int64_t end) { return product(args, begin, end); });
      if (!ok) {
        fail(op, "rows, neighbor and local: expected node ids in [0, ", t.f.size(0),
             ") and positions below ", n_rows, ", found others");
      }
    });
  }
};

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("restricted_hvp", TORCH_BOX(&ifru::ops::restricted_hvp<ifru::ops::Cpu>));
  m.impl("restricted_ggn", TORCH_BOX(&ifru::ops::restricted_ggn<ifru::ops::Cpu>));
}
