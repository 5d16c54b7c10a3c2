// The index of triples, and the pairwise kernels of every instruction set against double loops.
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "../host/triples.h"
#include "kernel_test.h"

namespace ifru::test {
namespace {

constexpr int64_t kUsers = 9;
constexpr int64_t kItems = 6;
constexpr int64_t kNodes = kUsers + kItems;

// Node ids of the triples in input order, and their index.
template <class I>
struct Index {
  std::vector<int64_t> user, positive, negative;
  std::vector<int64_t> rowptr = std::vector<int64_t>(kNodes + 1);
  std::vector<I> neighbor, other, triple, edge;

  explicit Index(int n) : neighbor(3 * n), other(3 * n), triple(2 * n), edge(n) {
    std::mt19937 random(1);
    for (int k = 0; k < n; ++k) {  // two isolated users, one hub, duplicates, equal items
      user.push_back(random() % 4 ? 4 : random() % 7);
      positive.push_back(random() % kItems);
      negative.push_back(random() % kItems);
    }
    host::build_triples<I>({user.data(), positive.data(), negative.data(), n, kUsers, kItems},
                           rowptr.data(), neighbor.data(), other.data(), triple.data(),
                           edge.data());
    for (int k = 0; k < n; ++k) {
      positive[k] += kUsers;
      negative[k] += kUsers;
    }
  }
  int64_t n_triples() const { return static_cast<int64_t>(edge.size()); }
  cpu::Triples<I> view() const {
    return {rowptr.data(), neighbor.data(), other.data(), triple.data(), n_triples(), kNodes};
  }
};

template <class I>
void check_index(int n) {
  const Index<I> x(n);
  CHECK(x.rowptr.front() == 0 && x.rowptr[kUsers] == n && x.rowptr.back() == 3 * n);
  std::vector<int> seen(n, 0);
  for (int64_t v = 0; v < kNodes; ++v) {
    for (int64_t j = x.rowptr[v]; j < x.rowptr[v + 1]; ++j) {
      const bool of_user = v < kUsers;
      const int64_t t = of_user ? j : x.triple[j - n];
      const int64_t e = x.edge[t];
      ++seen[e];
      if (of_user) {
        CHECK(v == x.user[e] && x.neighbor[j] == x.positive[e] && x.other[j] == x.negative[e]);
        CHECK(j == x.rowptr[v] || x.edge[j - 1] < x.edge[j]);
      } else {
        const bool positive = x.other[j] == -1;
        CHECK(v == (positive ? x.positive[e] : x.negative[e]));
        CHECK((positive ? x.neighbor[j] : x.other[j]) == x.user[e]);
        CHECK(positive || x.neighbor[j] == -1);
        CHECK(j == x.rowptr[v] || x.triple[j - n - 1] <= x.triple[j - n]);
      }
    }
  }
  for (const int count : seen) CHECK(count == 3);
}

template <class T, class I>
bool run(const cpu::PairwiseKernels<T, I>& kernels, const cpu::PairwiseArgs<T, I>& args) {
  return kernels.users(args, 0, 4) && kernels.users(args, 4, kUsers) &&
         kernels.items(args, kUsers, kUsers + 1) && kernels.items(args, kUsers + 1, kNodes);
}

template <class T, class I>
void check_products(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Index<I> x(900);
  const int64_t n = x.n_triples();
  const auto f = random_values<T>(kNodes * d, 2);
  const auto z = random_values<T>(kNodes * d, 3);
  const auto ridge = random_values<T>(kNodes, 5);
  const auto residual = random_values<T>(n, 6);  // in user order
  const auto curvature = random_values<T>(n, 7);
  std::vector<double> gradient(kNodes * d), hvp(kNodes * d), gauss_newton(kNodes * d);
  for (int64_t t = 0; t < n; ++t) {
    const int64_t u = x.user[x.edge[t]] * d;
    const int64_t i = x.positive[x.edge[t]] * d;
    const int64_t j = x.negative[x.edge[t]] * d;
    const double r = residual[t];
    double c = 0;
    for (int64_t k = 0; k < d; ++k) {
      c += z[u + k] * (double(f[i + k]) - f[j + k]) + f[u + k] * (double(z[i + k]) - z[j + k]);
    }
    c *= curvature[t];
    for (int64_t k = 0; k < d; ++k) {
      const double v = double(f[i + k]) - f[j + k];
      const double y = double(z[i + k]) - z[j + k];
      const auto add = [&](std::vector<double>& out, double along_f, double along_z) {
        out[u + k] += along_f * v + along_z * y;
        out[i + k] += along_f * f[u + k] + along_z * z[u + k];
        out[j + k] -= along_f * f[u + k] + along_z * z[u + k];
      };
      add(gradient, r, 0);
      add(hvp, c, r);
      add(gauss_newton, c, 0);
    }
  }
  for (int64_t k = 0; k < kNodes * d; ++k) {
    gradient[k] += double(ridge[k / d]) * f[k];
    hvp[k] += double(ridge[k / d]) * z[k];
    gauss_newton[k] += double(ridge[k / d]) * z[k];
  }

  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-11;
  std::vector<T> out(kNodes * d), change(n);
  cpu::PairwiseArgs<T, I> args{x.view(),     residual.data(), curvature.data(), f.data(), z.data(),
                               ridge.data(), change.data(),   out.data(),       d};
  CHECK(run(kernels.pairwise_hvp, args));
  check_close(out, hvp, tolerance);
  args.residual = nullptr;
  CHECK(run(kernels.pairwise_gauss_newton, args));
  check_close(out, gauss_newton, tolerance);
  args = {x.view(),     residual.data(), nullptr,    f.data(), f.data(),
          ridge.data(), nullptr,         out.data(), d};
  CHECK(run(kernels.pairwise_gradient, args));
  check_close(out, gradient, tolerance);

  // An id that is not there, or stands where it must not, is reported and not followed.
  Index<I> broken = x;
  args.triples = broken.view();
  for (std::vector<I>* ids : {&broken.neighbor, &broken.other, &broken.triple}) {
    for (const int64_t place : {int64_t{0}, n / 2, n, 3 * n / 2}) {
      for (const I id : {static_cast<I>(kNodes + n), static_cast<I>(-2),
                         std::numeric_limits<I>::min(), std::numeric_limits<I>::max()}) {
        const I before = (*ids)[place];
        (*ids)[place] = id;
        CHECK(!run(kernels.pairwise_gradient, args));
        (*ids)[place] = before;
      }
    }
  }
  for (std::vector<I>* ids : {&broken.neighbor, &broken.other}) {
    const std::vector<I> before = *ids;
    for (const int64_t place : {int64_t{0}, n}) {
      (*ids)[place] =
          before[place] == -1 ? 0 : -1;  // none of two in a user's row, two in an item's
      CHECK(!run(kernels.pairwise_gradient, args));
      (*ids)[place] = before[place];
    }
  }
  CHECK(run(kernels.pairwise_gradient, args));
}

template <class T, class I>
void check_derivatives(const cpu::Kernels<T, I>& kernels) {
  const std::vector<T> f = {T(1), T(0), T(2), T(-3), T(500), T(-500)};
  const std::vector<I> user(6, 0), positive = {0, 1, 2, 3, 4, 5}, negative = {0, 2, 1, 1, 1, 1};
  const std::vector<T> weight = {T(1), T(2), T(1), T(0.5), T(1), T(1)};
  std::vector<T> value(6), residual(6), curvature(6);
  std::vector<double> expected_value, expected_residual, expected_curvature;
  for (size_t t = 0; t < 6; ++t) {
    const double score = f[positive[t]] - f[negative[t]];
    const double decay = std::exp(-std::fabs(score));
    const double sigma = score > 0 ? 1 / (1 + decay) : decay / (1 + decay);
    const double miss = score > 0 ? decay / (1 + decay) : 1 / (1 + decay);
    expected_value.push_back(weight[t] * (std::fmax(-score, 0.0) + std::log1p(decay)));
    expected_residual.push_back(-weight[t] * miss);
    expected_curvature.push_back(weight[t] * sigma * miss);
  }
  cpu::PairwiseDerivativeArgs<T, I> args{
      user.data(),  positive.data(), negative.data(),  f.data(), weight.data(),
      value.data(), residual.data(), curvature.data(), 6,        1};
  CHECK(kernels.pairwise_derivatives(args, 0, 6));
  check_close(value, expected_value);
  check_close(residual, expected_residual);
  check_close(curvature, expected_curvature);
  args.n_nodes = 5;
  CHECK(!kernels.pairwise_derivatives(args, 0, 6));
}

template <class T, class I>
void check_kernels(const cpu::Kernels<T, I>& kernels) {
  for (const int64_t d : {1, 7, 16, 32, 33, 48, 64, 96, 100, 128, 1100}) check_products(kernels, d);
  check_derivatives(kernels);
}

bool refuses(int64_t user, int64_t positive, int64_t negative) {
  std::vector<int64_t> rowptr(4);
  std::vector<int32_t> ids(9);
  try {
    host::build_triples<int32_t>({&user, &positive, &negative, 1, 1, 2}, rowptr.data(), ids.data(),
                                 ids.data() + 3, ids.data() + 6, ids.data() + 8);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

void test_pairwise() {
  for (const int n : {0, 1, 900}) {
    check_index<int32_t>(n);
    check_index<int64_t>(n);
  }
  CHECK(!refuses(0, 1, 1));
  CHECK(refuses(1, 0, 0));
  CHECK(refuses(0, 2, 0));
  CHECK(refuses(0, 0, -1));
  for_each_table([](const cpu::KernelTable& table) {
    check_kernels(table.f32_i32);
    check_kernels(table.f32_i64);
    check_kernels(table.f64_i32);
    check_kernels(table.f64_i64);
  });
}

}  // namespace ifru::test
