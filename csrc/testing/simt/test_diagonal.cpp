// The Gauss-Newton matrix's diagonal and blocks against plain double loops.
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

  // Rows of f begin `shift` elements past an aligned address.
  template <class Op>
  std::vector<T> run(int64_t row_size, int64_t shift, Op&& op) const {
    auto shifted = f;
    shifted.insert(shifted.begin(), shift, T(0));
    DeviceArray<int64_t> rowptr_(rowptr);
    DeviceArray<I> neighbor_(neighbor), other_(other);
    DeviceArray<T> curvature_(curvature), f_(shifted), ridge_(ridge), out(n_rows() * row_size);
    DeviceArray<T> partial(cuda::n_segments(n_entries()) * d);
    op(cuda::CurvatureRows<T, I>{{rowptr_.data(), partial.data(), n_rows(), n_entries(), d},
                                 neighbor_.data(),
                                 other.empty() ? nullptr : other_.data(),
                                 curvature_.data(),
                                 f_.data() + shift,
                                 ridge.empty() ? nullptr : ridge_.data(),
                                 out.data(),
                                 kNodes});
    return out.host();
  }
  std::vector<T> blocks(int64_t max_blocks = cuda::kMaxBlocks) const {
    return run(d * d, 0, [&](const auto& rows) { cuda::ggn_blocks(rows, nullptr, max_blocks); });
  }
  std::vector<T> diagonal(int64_t max_blocks = cuda::kMaxBlocks, int64_t shift = 0) const {
    return run(d, shift, [&](const auto& rows) { cuda::ggn_diagonal(rows, nullptr, max_blocks); });
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
void check_blocks(const std::vector<int64_t>& degrees, int64_t d, bool pairs, bool ridge) {
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

template <class T, class I>
void check_diagonal(const std::vector<int64_t>& degrees, int64_t d, bool pairs, bool ridge) {
  const Problem<T, I> problem(degrees, d, pairs, ridge);
  const auto blocks = problem.expected();
  std::vector<double> expected;
  for (int64_t k = 0; k < problem.n_rows() * d; ++k) expected.push_back(blocks[k * d + k % d]);
  const auto got = problem.diagonal();
  CHECK(error_of(got, expected) < kTolerance<T>);
  CHECK(got == problem.diagonal(1));
  CHECK(error_of(problem.diagonal(cuda::kMaxBlocks, 1), expected) < kTolerance<T>);
}

// Ids and ranges that lead out of the arrays poison their row and no other.
template <class T, class I>
void check_broken(int64_t d, int64_t length, bool pairs) {
  const Problem<T, I> whole({3, 0, length, 2, 5}, d, pairs, true);
  const auto good_blocks = whole.blocks();
  const auto good_diagonal = whole.diagonal();
  const auto check_poisoned = [&](const Problem<T, I>& broken, int64_t first, int64_t last) {
    const auto check = [&](const std::vector<T>& got, const std::vector<T>& good, int64_t size) {
      for (int64_t k = 0; k < static_cast<int64_t>(got.size()); ++k) {
        const bool poisoned = k / size >= first && k / size <= last;
        CHECK(poisoned ? std::isnan(got[k]) : got[k] == good[k]);
      }
    };
    check(broken.blocks(), good_blocks, d * d);
    check(broken.diagonal(), good_diagonal, d);
  };
  for (const I id : {static_cast<I>(kNodes), static_cast<I>(-2), std::numeric_limits<I>::max(),
                     std::numeric_limits<I>::min()}) {
    for (const int64_t entry : {int64_t(3), 3 + length / 2, 2 + length}) {  // of row 2
      auto broken = whole;
      broken.neighbor[entry] = id;
      check_poisoned(broken, 2, 2);
      if (!pairs) continue;
      broken = whole;
      broken.other[entry] = id;
      check_poisoned(broken, 2, 2);
    }
  }
  for (const int64_t offset : {int64_t(-1), length + 11, std::numeric_limits<int64_t>::max()}) {
    auto broken = whole;
    broken.rowptr[3] = offset;  // where row 2 ends and row 3 begins
    check_poisoned(broken, 2, 3);
  }
}

template <class T, class I>
void check_all() {
  const std::vector<int64_t> ragged = {3, 0, 1, 33, 0, 7};
  for (const int64_t d : {0, 1, 7, 16, 17, 32, 33, 70}) {
    check_blocks<T, I>(ragged, d, false, true);
    check_blocks<T, I>(ragged, d, true, false);
  }
  check_blocks<T, I>({}, 16, true, true);
  check_blocks<T, I>({0, 31, 300, 32, 64}, 16, true, true);  // several stages, and whole ones
  check_blocks<T, I>({40}, 100, true, true);
  for (const int64_t d : {0, 1, 4, 7, 16, 32, 33, 64, 128, 130, 260}) {
    check_diagonal<T, I>(ragged, d, false, true);
    check_diagonal<T, I>(ragged, d, true, false);
  }
  check_diagonal<T, I>({}, 16, true, true);
  check_diagonal<T, I>({0, 513, 1100, 512, 1}, 16, true, true);  // hubs
  check_diagonal<T, I>({700, 2}, 130, false, false);
  check_broken<T, I>(5, 40, false);
}

}  // namespace

void test_diagonal() {
  check_all<float, int32_t>();
  check_all<float, int64_t>();
  check_all<double, int32_t>();
  check_all<double, int64_t>();
  check_broken<float, int64_t>(8, 600, true);  // in a hub
}

}  // namespace ifru::test
