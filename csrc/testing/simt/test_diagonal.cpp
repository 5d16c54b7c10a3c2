// The Gauss-Newton matrix's blocks against plain double loops.
#include <limits>
#include <vector>

#include "../../kernels/cuda/diagonal.cuh"
#include "device_array.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-4 : 1e-12;

constexpr int64_t kNodes = 9;

// Rows of the given lengths over kNodes nodes, drawn with repetition; one id in ten is -1.
template <class T, class I>
struct Problem {
  std::vector<int64_t> rowptr = {0};
  std::vector<I> neighbor, other;
  std::vector<T> curvature, f, ridge;
  int64_t d;

  Problem(const std::vector<int64_t>& degrees, int64_t n_features, bool pairs, bool with_ridge)
      : f(random_values<T>(kNodes * n_features, 1)),
        ridge(random_values<T>(with_ridge ? degrees.size() : 0, 2)),
        d(n_features) {
    std::mt19937 random(7);
    const auto draw = [&] { return static_cast<I>(random() % 10 ? random() % kNodes : -1); };
    for (const int64_t degree : degrees) {
      for (int64_t j = 0; j < degree; ++j) {
        neighbor.push_back(draw());
        if (pairs) other.push_back(draw());
      }
      rowptr.push_back(n_entries());
    }
    curvature = random_values<T>(n_entries(), 3);
  }
  int64_t n_rows() const { return static_cast<int64_t>(rowptr.size()) - 1; }
  int64_t n_entries() const { return static_cast<int64_t>(neighbor.size()); }

  std::vector<T> blocks(int64_t max_blocks = 1 << 20) const {
    DeviceArray<int64_t> rowptr_(rowptr);
    DeviceArray<I> neighbor_(neighbor), other_(other);
    DeviceArray<T> curvature_(curvature), f_(f), ridge_(ridge), out(n_rows() * d * d);
    const cuda::DiagonalParams<T, I> params{rowptr_.data(),
                                            neighbor_.data(),
                                            other.empty() ? nullptr : other_.data(),
                                            curvature_.data(),
                                            f_.data(),
                                            ridge.empty() ? nullptr : ridge_.data(),
                                            out.data(),
                                            n_rows(),
                                            n_entries(),
                                            kNodes,
                                            d};
    cuda::ggn_blocks(params, nullptr, max_blocks);
    return out.host();
  }
  // (7): [R, d, d].
  std::vector<double> expected() const {
    std::vector<double> out(n_rows() * d * d);
    for (int64_t n = 0; n < n_rows(); ++n) {
      double* block = out.data() + n * d * d;
      for (int64_t e = rowptr[n]; e < rowptr[n + 1]; ++e) {
        const auto v = [&](int64_t k) {
          const double p = neighbor[e] < 0 ? 0.0 : double(f[neighbor[e] * d + k]);
          return other.empty() || other[e] < 0 ? p : p - double(f[other[e] * d + k]);
        };
        for (int64_t i = 0; i < d; ++i) {
          for (int64_t j = 0; j < d; ++j) block[i * d + j] += curvature[e] * v(i) * v(j);
        }
      }
      for (int64_t i = 0; i < d && !ridge.empty(); ++i) block[i * d + i] += ridge[n];
    }
    return out;
  }
};

template <class T, class I>
void check_shape(const std::vector<int64_t>& degrees, int64_t d, bool pairs, bool ridge) {
  const Problem<T, I> problem(degrees, d, pairs, ridge);
  const auto got = problem.blocks();
  CHECK(error_of(got, problem.expected()) < kTolerance<T>);
  CHECK(got == problem.blocks(1));  // the same bits for any grid
  bool symmetric = true;
  for (size_t k = 0; k < got.size(); ++k) {
    const size_t n = k / (d * d), i = k / d % d, j = k % d;
    symmetric &= got[k] == got[(n * d + j) * d + i];
  }
  CHECK(symmetric);  // to the last bit
}

// Ids and ranges that lead out of the arrays poison their row and no other.
template <class T, class I>
void check_broken(int64_t d, bool pairs) {
  const Problem<T, I> whole({3, 0, 40, 2, 5}, d, pairs, true);
  const auto good = whole.blocks();
  const auto check_poisoned = [&](const Problem<T, I>& broken, int64_t first, int64_t last) {
    const auto got = broken.blocks();
    for (int64_t k = 0; k < static_cast<int64_t>(got.size()); ++k) {
      const int64_t row = k / (d * d);
      const bool poisoned = row >= first && row <= last;
      CHECK(poisoned ? std::isnan(got[k]) : got[k] == good[k]);
    }
  };
  for (const I id : {static_cast<I>(kNodes), static_cast<I>(-2), std::numeric_limits<I>::max(),
                     std::numeric_limits<I>::min()}) {
    for (const int64_t entry : {3, 42}) {  // the first and the last of row 2
      auto broken = whole;
      broken.neighbor[entry] = id;
      check_poisoned(broken, 2, 2);
      if (!pairs) continue;
      broken = whole;
      broken.other[entry] = id;
      check_poisoned(broken, 2, 2);
    }
  }
  for (const int64_t offset : {int64_t(-1), int64_t(51), std::numeric_limits<int64_t>::max()}) {
    auto broken = whole;
    broken.rowptr[3] = offset;  // where row 2 ends and row 3 begins
    check_poisoned(broken, 2, 3);
  }
}

template <class T, class I>
void check_all() {
  const std::vector<int64_t> ragged = {3, 0, 1, 33, 0, 7};
  for (const int64_t d : {0, 1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 70}) {
    check_shape<T, I>(ragged, d, false, true);
    check_shape<T, I>(ragged, d, true, false);
  }
  check_shape<T, I>({}, 16, true, true);
  check_shape<T, I>({0, 31, 700, 32, 64}, 16, true, true);  // a hub, and whole stages
  check_shape<T, I>({100}, 130, true, true);
  for (const int64_t d : {5, 40}) {
    check_broken<T, I>(d, false);
    check_broken<T, I>(d, true);
  }
}

}  // namespace

void test_diagonal() {
  check_all<float, int32_t>();
  check_all<float, int64_t>();
  check_all<double, int32_t>();
  check_all<double, int64_t>();
}

}  // namespace ifru::test
