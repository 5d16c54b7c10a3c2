// Loss, residual and curvature of interactions and triples against plain double loops.
#include <array>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "../../kernels/cuda/derivatives.cuh"
#include "device_array.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;

// Value, residual and curvature: [E] each.
template <class T>
using Results = std::array<std::vector<T>, 3>;

// (2) and (3), term by term; of a score in float64.
std::array<double, 3> expected_loss(int n_ids, Loss loss, double s, double y) {
  if (n_ids == 2 && loss == Loss::kMse) return {0.5 * (s - y) * (s - y), s - y, 1};
  const double label = n_ids == 2 ? y : 1;
  const double decay = std::exp(-std::fabs(s));
  const double sigma = s > 0 ? 1 / (1 + decay) : decay / (1 + decay);
  const double miss = s > 0 ? decay / (1 + decay) : 1 / (1 + decay);  // sigma(-s)
  return {std::fmax(s, 0.0) - label * s + std::log1p(decay), (1 - label) * sigma - label * miss,
          sigma * miss};
}

template <class T, class I, int K>
struct Problem {
  std::array<std::vector<I>, K> ids;
  std::vector<T> f, label, weight;
  int64_t n_nodes, d;

  Problem(int64_t n_examples, int64_t nodes, int64_t n_features, bool weighted)
      : f(random_values<T>(nodes * n_features, 1)),
        label(random_values<T>(n_examples, 2)),
        weight(random_values<T>(weighted ? n_examples : 0, 3)),
        n_nodes(nodes),
        d(n_features) {
    std::mt19937 random(7);
    for (auto& side : ids) {
      for (int64_t e = 0; e < n_examples; ++e) side.push_back(static_cast<I>(random() % n_nodes));
    }
    for (T& y : label) y = T(y > 0);
  }
  int64_t n_examples() const { return static_cast<int64_t>(label.size()); }

  // Rows of f begin `shift` elements past an aligned address.
  Results<T> run(Loss loss, int64_t shift = 0, int64_t max_blocks = 1 << 20) const {
    auto shifted = f;
    shifted.insert(shifted.begin(), shift, T(0));
    DeviceArray<T> f_(shifted), label_(label), weight_(weight);
    DeviceArray<T> value(label.size()), residual(label.size()), curvature(label.size());
    std::array<std::unique_ptr<DeviceArray<I>>, K> ids_;
    cuda::DerivativeParams<T, I, K> params{{},
                                           f_.data() + shift,
                                           K == 2 ? label_.data() : nullptr,
                                           weight.empty() ? nullptr : weight_.data(),
                                           value.data(),
                                           residual.data(),
                                           curvature.data(),
                                           n_examples(),
                                           n_nodes,
                                           d,
                                           loss};
    for (int k = 0; k < K; ++k) {
      ids_[k] = std::make_unique<DeviceArray<I>>(ids[k]);
      params.ids[k] = ids_[k]->data();
    }
    cuda::derivatives(params, nullptr, max_blocks);
    return {value.host(), residual.host(), curvature.host()};
  }
  std::array<double, 3> expected(Loss loss, int64_t e) const {
    double s = 0;
    for (int64_t k = 0; k < d; ++k) {
      const auto at = [&](int which) { return double(f[ids[which][e] * d + k]); };
      s += at(0) * (K == 2 ? at(1) : at(1) - at(K - 1));
    }
    auto parts = expected_loss(K, loss, s, label[e]);
    for (double& part : parts) part *= weight.empty() ? 1.0 : double(weight[e]);
    return parts;
  }
};

template <class T>
void check_results(const Results<T>& got, const Results<double>& expected) {
  for (int k = 0; k < 3; ++k) CHECK(error_of(got[k], expected[k]) < kTolerance<T>);
}

template <class T, class I, int K>
void check_shape(int64_t n_examples, int64_t d, Loss loss, bool weighted) {
  const Problem<T, I, K> problem(n_examples, 11, d, weighted);
  Results<double> expected;
  for (int64_t e = 0; e < n_examples; ++e) {
    const auto parts = problem.expected(loss, e);
    for (int k = 0; k < 3; ++k) expected[k].push_back(parts[k]);
  }
  const auto got = problem.run(loss);
  check_results(got, expected);
  CHECK(got == problem.run(loss, 0, 1));  // the same bits for any grid
  check_results(problem.run(loss, 1), expected);
}

// Scores at which exp(s) overflows or sigma(s) rounds to 0 or 1: digits are kept.
template <class T, int K>
void check_extremes() {
  const std::vector<T> scores = {T(0),   T(1e-8), T(3),   T(-3),     T(30),
                                 T(-30), T(80),   T(-80), T(3.0e38), T(-3.0e38)};
  Problem<T, int32_t, K> problem(static_cast<int64_t>(scores.size()), 12, 1, false);
  problem.f = {T(1), T(0)};
  problem.f.insert(problem.f.end(), scores.begin(), scores.end());
  for (int k = 0; k < K; ++k) problem.ids[k].assign(scores.size(), k == 2 ? 1 : 0);
  for (size_t e = 0; e < scores.size(); ++e) problem.ids[1][e] = static_cast<int32_t>(2 + e);
  for (const T label : {T(0), T(1)}) {
    problem.label.assign(scores.size(), label);
    const auto got = problem.run(Loss::kBce);
    for (size_t e = 0; e < scores.size(); ++e) {
      const auto expected = problem.expected(Loss::kBce, static_cast<int64_t>(e));
      for (int k = 0; k < 3; ++k) {
        const double scale = std::fabs(expected[k]) + std::numeric_limits<T>::min();
        CHECK(std::fabs(got[k][e] - expected[k]) <= kTolerance<T> * scale);
      }
    }
  }
}

// An id out of bounds makes its own results NaN and no other.
template <class T, class I, int K>
void check_broken(Loss loss, int64_t d) {
  Problem<T, I, K> problem(40, 5, d, false);
  const auto good = problem.run(loss);
  for (const I id : {static_cast<I>(5), static_cast<I>(-1), std::numeric_limits<I>::max(),
                     std::numeric_limits<I>::min()}) {
    for (auto& side : problem.ids) {
      const I before = std::exchange(side[13], id);
      const auto got = problem.run(loss);
      side[13] = before;
      for (int k = 0; k < 3; ++k) {
        for (size_t e = 0; e < 40; ++e) {
          CHECK(e == 13 ? std::isnan(got[k][e]) : got[k][e] == good[k][e]);
        }
      }
    }
  }
}

template <class T, class I>
void check_all() {
  for (const int64_t d : {0, 1, 3, 4, 7, 8, 16, 31, 32, 48, 64, 100, 128, 130, 260}) {
    check_shape<T, I, 2>(45, d, Loss::kBce, true);
    check_shape<T, I, 3>(45, d, Loss::kBce, true);
  }
  for (const int64_t n_examples : {0, 1, 2, 33, 1000}) {
    check_shape<T, I, 2>(n_examples, 16, Loss::kMse, false);
    check_shape<T, I, 2>(n_examples, 5, Loss::kMse, true);
    check_shape<T, I, 3>(n_examples, 16, Loss::kBce, false);
  }
  for (const int64_t d : {5, 16, 260}) {
    check_broken<T, I, 2>(Loss::kBce, d);
    check_broken<T, I, 2>(Loss::kMse, d);
    check_broken<T, I, 3>(Loss::kBce, d);
  }
}

}  // namespace

void test_derivatives() {
  check_all<float, int32_t>();
  check_all<float, int64_t>();
  check_all<double, int32_t>();
  check_all<double, int64_t>();
  check_extremes<float, 2>();
  check_extremes<double, 2>();
  check_extremes<float, 3>();
  check_extremes<double, 3>();
}

}  // namespace ifru::test
