// The kernels of gradient and curvature products against plain double loops.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../../kernels/cuda/product.cuh"
#include "device_array.h"
#include "graph.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

// --- storage types, by arithmetic ----------------------------------------------------------------

template <class S>
S stored(double x) {
  return static_cast<S>(x);
}
template <>
BFloat16 stored(double x) {
  const float narrow = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
Float16 stored(double x) {
  const int sign = std::signbit(x) ? 0x8000 : 0;
  const int exponent = std::max(std::ilogb(std::fabs(x)), -14);
  const int mantissa = static_cast<int>(std::ldexp(std::fabs(x), 10 - exponent));  // of 2^-10
  return {static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + mantissa))};
}

double value_of(float x) { return x; }
double value_of(double x) { return x; }
double value_of(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
double value_of(Float16 x) {
  const int exponent = x.bits >> 10 & 31;
  const double size =
      std::ldexp((x.bits & 1023) + (exponent > 0 ? 1024 : 0), (exponent > 0 ? exponent : 1) - 25);
  return x.bits & 0x8000 ? -size : size;
}

template <class S>
std::vector<S> stored_values(int64_t n, unsigned seed, double scale) {
  std::vector<S> values;
  for (const double x : random_values<double>(n, seed)) values.push_back(stored<S>(scale * x));
  return values;
}

// --- one problem ---------------------------------------------------------------------------------

enum class Kind { kGradient, kHvp, kGaussNewton };

struct Shape {
  std::vector<int64_t> degrees;
  int64_t d;
  Kind kind = Kind::kHvp;
  bool ridge = true;
  bool restricted = false;
  double scale = 1;  // of the features
};

// What a call of an op holds. Restricted rows are every other node, and their entries are drawn
// from all of twice as many.
template <class S, class T, class I>
struct Problem {
  Shape shape;
  Graph<I> graph;
  std::vector<I> rows, local;
  std::vector<T> residual, curvature, ridge;
  std::vector<S> f, z;
  int64_t shift = 0;  // elements by which f, z and out miss a multiple of 16 bytes

  explicit Problem(const Shape& s) : shape(s), graph(make_graph<I>(s.degrees)) {
    const int64_t n = graph.n_nodes();
    if (shape.restricted) {
      for (I& m : graph.neighbor) m = 2 * m + (m % 3 == 0);
      for (int64_t k = 0; k < n; ++k) rows.push_back(static_cast<I>(2 * k));
      for (const I m : graph.neighbor) local.push_back(m % 2 == 0 ? m / 2 : I(-1 - m));
    }
    residual = random_values<T>(graph.n_entries(), 1);
    curvature = random_values<T>(graph.n_entries(), 2);
    ridge = random_values<T>(shape.ridge ? n : 0, 3);
    f = stored_values<S>(n_nodes() * shape.d, 4, shape.scale);
    z = stored_values<S>(n * shape.d, 5, 1);
  }

  int64_t n_rows() const { return graph.n_nodes(); }
  int64_t n_nodes() const { return n_rows() * (shape.restricted ? 2 : 1); }

  std::vector<T> run(int64_t max_blocks = cuda::kMaxBlocks) const {
    const auto shifted = [&](std::vector<S> values) {
      values.insert(values.begin(), shift, S{});
      return values;
    };
    DeviceArray<int64_t> rowptr_(graph.rowptr);
    DeviceArray<I> neighbor_(graph.neighbor), rows_(rows), local_(local);
    DeviceArray<T> residual_(residual), curvature_(curvature), ridge_(ridge);
    DeviceArray<S> f_(shifted(f)), z_(shifted(z));
    DeviceArray<T> out(z.size() + shift);
    DeviceArray<T> partial(cuda::n_segments(graph.n_entries()) * shape.d);
    const cuda::RowSet<T> set{rowptr_.data(), partial.data(), n_rows(), graph.n_entries(), shape.d};
    const T* const ridge_data = shape.ridge ? ridge_.data() : nullptr;
    if (shape.kind == Kind::kGradient) {
      if constexpr (std::is_same_v<S, T>) {
        cuda::gradient<T, I>({set, neighbor_.data(), residual_.data(), f_.data() + shift,
                              ridge_data, out.data() + shift},
                             nullptr, max_blocks);
      }
    } else {
      cuda::product<S, T, I>(
          {set, shape.restricted ? rows_.data() : nullptr, neighbor_.data(),
           shape.restricted ? local_.data() : nullptr,
           shape.kind == Kind::kHvp ? residual_.data() : nullptr, curvature_.data(),
           f_.data() + shift, z_.data() + shift, ridge_data, out.data() + shift, n_nodes()},
          nullptr, max_blocks);
    }
    const auto all = out.host();
    return {all.begin() + shift, all.end()};
  }

  // Equations (5) and (6).
  std::vector<double> expected() const {
    const int64_t d = shape.d;
    const bool is_gradient = shape.kind == Kind::kGradient;
    std::vector<double> out;
    for (int64_t n = 0; n < n_rows(); ++n) {
      const S* f_n = f.data() + (shape.restricted ? int64_t(rows[n]) : n) * d;
      const S* z_n = (is_gradient ? f : z).data() + n * d;
      std::vector<double> sum(d);
      for (int64_t k = 0; k < d && shape.ridge; ++k) sum[k] = ridge[n] * value_of(z_n[k]);
      for (int64_t j = graph.rowptr[n]; j < graph.rowptr[n + 1]; ++j) {
        const int64_t m = graph.neighbor[j];
        const int64_t place = shape.restricted ? int64_t(local[j]) : m;
        const S* f_m = f.data() + m * d;
        std::vector<double> z_m(d);
        for (int64_t k = 0; k < d && place >= 0; ++k) z_m[k] = value_of(z[place * d + k]);
        double delta = 0;
        for (int64_t k = 0; k < d; ++k) {
          delta += value_of(z_n[k]) * value_of(f_m[k]) + value_of(f_n[k]) * z_m[k];
        }
        const double c = is_gradient ? residual[j] : curvature[j] * delta;
        const double r = shape.kind == Kind::kHvp ? residual[j] : 0;
        for (int64_t k = 0; k < d; ++k) sum[k] += c * value_of(f_m[k]) + r * z_m[k];
      }
      out.insert(out.end(), sum.begin(), sum.end());
    }
    return out;
  }
};

// Sums of d products cancel: the error is measured against the largest element.
template <class T>
double relative_error(const std::vector<T>& got, const std::vector<double>& expected) {
  double scale = 1, worst = 0;
  for (const double x : expected) scale = std::fmax(scale, std::fabs(x));
  for (size_t k = 0; k < got.size(); ++k) {
    const double error = std::fabs(got[k] - expected[k]) / scale;
    worst = std::isnan(error) ? INFINITY : std::fmax(worst, error);
  }
  return worst;
}

template <class S, class T, class I>
void check_shape(const Shape& shape) {
  const Problem<S, T, I> problem(shape);
  const auto got = problem.run();
  CHECK(relative_error(got, problem.expected()) < kTolerance<T> / 10);
  CHECK(got == problem.run());
  CHECK(got == problem.run(1));  // and the same bits for any grid
}

// Features that do not begin at a multiple of 16 bytes: views of a larger tensor.
template <class S, class T, class I>
void check_unaligned(const Shape& shape) {
  Problem<S, T, I> problem(shape);
  problem.shift = 1;
  CHECK(relative_error(problem.run(), problem.expected()) < kTolerance<T> / 10);
}

// --- ids and ranges that lead out of the arrays: they poison their row and no other --------------

template <class S, class T, class I>
void check_broken(const Shape& shape) {
  constexpr I kMax = std::numeric_limits<I>::max();
  const Problem<S, T, I> whole(shape);
  const auto good = whole.run();
  const auto check = [&](int64_t first, int64_t last, const auto& break_it) {
    auto problem = whole;
    break_it(problem);
    const auto got = problem.run();
    for (int64_t k = 0; k < static_cast<int64_t>(got.size()); ++k) {
      const bool poisoned = k / shape.d >= first && k / shape.d <= last;
      CHECK(poisoned ? std::isnan(got[k]) : got[k] == good[k]);
    }
  };
  const int64_t length = shape.degrees[2];
  for (const int64_t entry : {int64_t(3), 3 + length / 2, 2 + length}) {  // of row 2
    for (const I id : {static_cast<I>(whole.n_nodes()), I(-1), kMax}) {
      check(2, 2, [&](auto& problem) { problem.graph.neighbor[entry] = id; });
    }
  }
  for (const int64_t offset : {int64_t(-1), length + 11, std::numeric_limits<int64_t>::max()}) {
    check(2, 3, [&](auto& problem) { problem.graph.rowptr[3] = offset; });
  }
  if (!shape.restricted) return;
  for (const I place : {static_cast<I>(whole.n_rows()), kMax}) {
    check(2, 2, [&](auto& problem) { problem.local[3] = place; });
  }
  for (const I id : {static_cast<I>(whole.n_nodes()), I(-1), kMax}) {
    check(1, 1, [&](auto& problem) { problem.rows[1] = id; });  // without an entry
    check(2, 2, [&](auto& problem) { problem.rows[2] = id; });
  }
}

// What an entry whose neighbour is none of the rows has as its residual is not read.
template <class T, class I>
void check_outside() {
  Problem<T, T, I> problem({{3, 0, 40, 2, 5}, 16, Kind::kHvp, true, true});
  const auto good = problem.run();
  for (size_t j = 0; j < problem.local.size(); ++j) {
    if (problem.local[j] < 0) problem.residual[j] = std::numeric_limits<T>::quiet_NaN();
  }
  CHECK(problem.run() == good);
}

// Ranges within the arrays that are not in order: each row from `first` on is right or NaN, and one
// that runs backwards is NaN. Rows before share segments with others, which nothing tells.
template <class S, class T, class I>
void check_unordered(Kind kind) {
  struct Case {
    std::vector<int64_t> rowptr;
    int64_t first;
  };
  for (const auto& [rowptr, first] :
       {Case{{0, 2100, 700, 2000, 2100}, 1}, Case{{0, 1500, 100, 1400, 2100}, 1},
        Case{{1000, 2100, 2100, 0, 900}, 0}, Case{{1200, 1900, 700, 1400, 2100}, 0}}) {
    Problem<S, T, I> problem({{700, 600, 800, 0}, 8, kind});
    problem.graph.rowptr = rowptr;
    const auto got = problem.run();
    const auto expected = problem.expected();  // of a row that runs backwards, without an entry
    double scale = 1;
    for (const double x : expected) scale = std::fmax(scale, std::fabs(x));
    for (size_t k = first * 8; k < got.size(); ++k) {
      const bool right = std::fabs(got[k] - expected[k]) < kTolerance<T> / 10 * scale;
      const bool backwards = rowptr[k / 8] > rowptr[k / 8 + 1];
      CHECK(std::isnan(got[k]) || (right && !backwards));
    }
  }
}

// --- the order of summation ----------------------------------------------------------------------

// The sum of ones and of 2^24, beside which float loses a one. All features are one.
float sum_of(const std::vector<int64_t>& degrees, const std::vector<float>& residual) {
  Problem<float, float, int32_t> problem({degrees, 4, Kind::kGradient, false});
  problem.residual = residual;
  problem.f.assign(problem.f.size(), 1.0f);
  return problem.run()[0];
}

void check_order() {
  constexpr float kLarge = 1 << 24;
  constexpr int kTeams = 8;  // at d = 4
  // A short row is summed in the order of its entries; a middle one by all teams, each its own.
  std::vector<float> residual(cuda::kShortRow, 1.0f);
  residual[0] = kLarge;
  CHECK(sum_of({cuda::kShortRow}, residual) == kLarge);
  residual.push_back(0.0f);
  CHECK(sum_of({cuda::kShortRow + 1}, residual) > kLarge);
  // A long row that begins where a segment does has that segment summed with the others: its sum is
  // the first team's, and meets what that team adds of the row's end.
  const int64_t length = cuda::kLongRow + kTeams * 8;
  residual.assign(length, 0.0f);
  residual[1] = kLarge;
  for (int64_t j = cuda::kLongRow; j < length; j += kTeams) residual[j] = 1.0f;
  CHECK(sum_of({length}, residual) == kLarge);
}

// --- all of it -----------------------------------------------------------------------------------

const std::vector<int64_t> kRagged = {3, 0, 1, 33, 0, 7, 64, 2, 100, 5, 0};

template <class S, class T, class I>
void check_kind(Kind kind) {
  // Each layout, full and not; for some, more than one tile.
  for (const int64_t d : {1, 3, 7, 8, 16, 31, 33, 48, 64, 96, 100, 128, 130, 256, 260, 264}) {
    check_shape<S, T, I>({{3, 0, 1, 33, 0, 7, 2}, d, kind});
  }
  for (const int64_t d : {5, 16, 260}) {
    check_shape<S, T, I>({kRagged, d, kind, false});
    check_unaligned<S, T, I>({kRagged, d, kind});
  }
  check_shape<S, T, I>({{0, 1100, 1, 2, 0, 600}, 16, kind});  // hubs
  check_shape<S, T, I>({{2, 600, 0}, 264, kind});
  check_shape<S, T, I>({{4, 513, 512, 511, 256}, 32, kind});  // at the limits
  check_shape<S, T, I>({{512, 768, 0, 1024}, 16, kind});      // rows of whole segments
  check_shape<S, T, I>({{512}, 16, kind});                    // the most entries without a long row
  check_shape<S, T, I>({{33, 32, 31, 34}, 7, kind});
  check_shape<S, T, I>({{0}, 16, kind});                           // nothing to sum
  check_shape<S, T, I>({{1}, 16, kind});                           // its own neighbour
  check_shape<S, T, I>({std::vector<int64_t>(200, 2), 16, kind});  // more rows than a block has
  for (const int64_t d : {7, 16, 130}) check_broken<S, T, I>({{3, 0, 40, 2, 5}, d, kind});
}

// Gradient and products of one dtype: all rows, and some.
template <class T, class I>
void check_values() {
  check_kind<T, T, I>(Kind::kGradient);
  check_kind<T, T, I>(Kind::kHvp);
  for (const Kind kind : {Kind::kHvp, Kind::kGaussNewton}) {
    for (const int64_t d : {3, 16, 48, 130}) {
      check_shape<T, T, I>({kRagged, d, kind, d != 48, true});
    }
    check_shape<T, T, I>({{0, 600, 1, 2, 0, 40}, 16, kind, true, true});
  }
  check_broken<T, T, I>({{3, 0, 40, 2, 5}, 16, Kind::kHvp, true, true});
  check_outside<T, I>();
  for (const Kind kind : {Kind::kGradient, Kind::kHvp}) {
    check_broken<T, T, I>({{3, 0, 1100, 2, 5}, 8, kind});
    check_unordered<T, T, I>(kind);
  }
}

template <class S, class I>
void check_sixteen_bits() {
  check_kind<S, float, I>(Kind::kHvp);
  check_shape<S, float, I>({kRagged, 16, Kind::kHvp, true, false, 1e-5});  // subnormal halves
  for (const int64_t d : {7, 64, 260}) {
    check_shape<S, float, I>({kRagged, d, Kind::kGaussNewton});
  }
}

}  // namespace

void test_product() {
  check_order();
  check_values<float, int32_t>();
  check_values<float, int64_t>();
  check_values<double, int32_t>();
  check_values<double, int64_t>();
  check_sixteen_bits<BFloat16, int32_t>();
  check_sixteen_bits<BFloat16, int64_t>();
  check_sixteen_bits<Float16, int32_t>();
  check_sixteen_bits<Float16, int64_t>();
}

}  // namespace ifru::test
