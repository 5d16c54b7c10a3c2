// Pairwise loss, equations (3), (5) and (6): derivatives, gradient, HVP, Gauss-Newton product.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "derivatives_checks.h"
#include "pairwise.h"
#include "parallel.h"

namespace ifru::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> pairwise_derivatives(const Tensor& user, const Tensor& positive,
                                                        const Tensor& negative, const Tensor& f,
                                                        const std::optional<Tensor>& weight) {
  constexpr const char* kOp = "pairwise_derivatives";
  check_pairwise_derivatives(user, positive, negative, f, weight);
  const int64_t n_triples = user.numel();
  const auto per_triple = [&] { return torch::stable::new_empty(f, {n_triples}); };
  Tensor value = per_triple();
  Tensor residual = per_triple();
  Tensor curvature = per_triple();
  dispatch(kOp, "f", f, "user", user, [&](auto value_tag, auto index_tag) {
    using T = decltype(value_tag);
    using I = decltype(index_tag);
    const cpu::PairwiseDerivativeArgs<T, I> args{user.const_data_ptr<I>(),
                                                 positive.const_data_ptr<I>(),
                                                 negative.const_data_ptr<I>(),
                                                 f.const_data_ptr<T>(),
                                                 data_or_null<T>(weight),
                                                 value.mutable_data_ptr<T>(),
                                                 residual.mutable_data_ptr<T>(),
                                                 curvature.mutable_data_ptr<T>(),
                                                 f.size(0),
                                                 f.size(1)};
    const auto& kernels = cpu::kernels<T, I>();
    const bool ok = parallel_items(n_triples, [&](int64_t begin, int64_t end) {
      return kernels.pairwise_derivatives(args, begin, end);
    });
    if (!ok) fail_node_id(kOp, "user, positive and negative", f.size(0));
  });
  return {value, residual, curvature};
}

// The row after the last user's: the one at which the triples, each once, have been passed.
int64_t first_item(const char* op, const int64_t* rowptr, int64_t n_nodes, int64_t n_triples) {
  const int64_t* boundary = std::lower_bound(rowptr, rowptr + n_nodes, n_triples);
  if (*boundary != n_triples) {
    fail(op, "rowptr: expected the users' rows to end at entry ", n_triples,
         ", the number of triples, got ", *boundary);
  }
  return boundary - rowptr;
}

struct Cpu {
  static void run_pairwise(const char* op, const PairwiseTensors& t, const Tensor& out) {
    const Tensor& f = t.f;
    const int64_t n_triples = t.n_triples();
    const int64_t n_nodes = f.size(0);
    const int64_t* rows = t.rowptr.const_data_ptr<int64_t>();
    check_rowptr(op, rows, n_nodes, t.neighbor.numel());
    const int64_t n_users = first_item(op, rows, n_nodes, n_triples);

    dispatch(op, "f", f, "neighbor", t.neighbor, [&](auto value_tag, auto index_tag) {
      using T = decltype(value_tag);
      using I = decltype(index_tag);
      std::vector<T> change(t.curvature.has_value() ? n_triples : 0);
      const T* f_data = f.const_data_ptr<T>();
      const cpu::PairwiseArgs<T, I> args{
          {rows, t.neighbor.const_data_ptr<I>(), t.other.const_data_ptr<I>(),
           t.triple.const_data_ptr<I>(), n_triples, n_nodes},
          data_or_null<T>(t.residual),
          data_or_null<T>(t.curvature),
          f_data,
          t.z.has_value() ? t.z->const_data_ptr<T>() : f_data,
          data_or_null<T>(t.ridge),
          change.data(),
          out.mutable_data_ptr<T>(),
          f.size(1)};
      const auto& kernels = cpu::kernels<T, I>();
      const auto& kernel = !t.curvature.has_value() ? kernels.pairwise_gradient
                           : t.residual.has_value() ? kernels.pairwise_hvp
                                                    : kernels.pairwise_gauss_newton;
      if (!parallel_rows(rows, n_users, [&](int64_t begin, int64_t end) {
            return kernel.users(args, begin, end);
          })) {
        fail(op, "neighbor and other: expected node ids in [0, ", n_nodes,
             ") in the users' rows, found one outside");
      }
      if (!parallel_rows(rows + n_users, n_nodes - n_users, [&](int64_t begin, int64_t end) {
            return kernel.items(args, n_users + begin, n_users + end);
          })) {
        fail(op, "neighbor, other and triple: expected one node id in [0, ", n_nodes,
             ") beside -1 and a triple below ", n_triples, " in the items' rows, found others");
      }
    });
  }
};

}  // namespace
}  // namespace ifru::ops

STABLE_TORCH_LIBRARY_IMPL(ifru_ext, CPU, m) {
  m.impl("pairwise_derivatives", TORCH_BOX(&ifru::ops::pairwise_derivatives));
  m.impl("pairwise_gradient", TORCH_BOX(&ifru::ops::pairwise_gradient<ifru::ops::Cpu>));
  m.impl("pairwise_hvp", TORCH_BOX(&ifru::ops::pairwise_hvp<ifru::ops::Cpu>));
  m.impl("pairwise_ggn", TORCH_BOX(&ifru::ops::pairwise_ggn<ifru::ops::Cpu>));
}
