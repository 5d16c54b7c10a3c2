// The products of the pairwise loss against plain double loops.
#include <limits>
#include <vector>

#include "../../kernels/cuda/pairwise.cuh"
#include "device_array.h"
#include "tests.h"
#include "triple_index.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

enum class Product { kGradient, kHvp, kGaussNewton };
constexpr Product kProducts[] = {Product::kGradient, Product::kHvp, Product::kGaussNewton};

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-3 : 1e-11;

struct Shape {
  int64_t n_triples, n_users, n_items;
  int64_t d;
  bool ridge;
};

// Triples of which one user has three quarters, with duplicates, equal items and empty rows.
template <class T, class I>
struct Problem : TripleIndex<I> {
  using TripleIndex<I>::rowptr;
  using TripleIndex<I>::neighbor;
  using TripleIndex<I>::other;
  using TripleIndex<I>::triple;
  using TripleIndex<I>::edge;
  Shape shape;
  std::vector<T> f, z, ridge, residual, curvature;  // the last two in user order

  explicit Problem(const Shape& s)
      : shape(s),
        f(random_values<T>(n_nodes() * s.d, 1)),
        z(random_values<T>(n_nodes() * s.d, 2)),
        ridge(random_values<T>(s.ridge ? n_nodes() : 0, 3)),
        residual(random_values<T>(s.n_triples, 4)),
        curvature(random_values<T>(s.n_triples, 5)) {
    std::mt19937 random(7);
    std::vector<int64_t> user, positive, negative;
    for (int64_t t = 0; t < s.n_triples; ++t) {
      user.push_back(random() % 4 ? s.n_users / 2 : random() % (s.n_users - 1));
      positive.push_back(random() % s.n_items);
      negative.push_back(random() % s.n_items);
    }
    TripleIndex<I>::operator=(make_triples<I>(user, positive, negative, s.n_users, s.n_items));
  }
  int64_t n_nodes() const { return shape.n_users + shape.n_items; }
  int64_t row_of(int64_t entry) const {
    int64_t n = 0;
    while (rowptr[n + 1] <= entry) ++n;
    return n;
  }

  // Rows of f begin `shift` elements past an aligned address.
  std::vector<T> run(Product product, int64_t max_blocks = cuda::kMaxBlocks,
                     int64_t shift = 0) const {
    const int64_t d = shape.d;
    auto shifted = f;
    shifted.insert(shifted.begin(), shift, T(0));
    DeviceArray<int64_t> rowptr_(rowptr);
    DeviceArray<I> neighbor_(neighbor), other_(other), triple_(triple);
    DeviceArray<T> residual_(residual), curvature_(curvature), f_(shifted), z_(z), ridge_(ridge);
    DeviceArray<T> change(std::vector<T>(shape.n_triples, std::numeric_limits<T>::quiet_NaN()));
    DeviceArray<T> partial(cuda::n_segments(3 * shape.n_triples) * d);
    DeviceArray<T> out(std::vector<T>(n_nodes() * d));  // no NaN but what a row is poisoned with
    const bool gradient = product == Product::kGradient;
    const cuda::TripleRows<T, I> rows{
        {rowptr_.data(), partial.data(), n_nodes(), 3 * shape.n_triples, d},
        neighbor_.data(),
        other_.data(),
        triple_.data(),
        product == Product::kGaussNewton ? nullptr : residual_.data(),
        gradient ? nullptr : curvature_.data(),
        f_.data() + shift,
        gradient ? f_.data() + shift : z_.data(),
        ridge.empty() ? nullptr : ridge_.data(),
        gradient ? nullptr : change.data(),
        out.data(),
        shape.n_triples};
    gradient ? cuda::pairwise_gradient(rows, nullptr, max_blocks)
             : cuda::pairwise_product(rows, nullptr, max_blocks);
    return out.host();
  }
  // (5) and (6) for (3).
  std::vector<double> expected(Product product) const {
    const int64_t d = shape.d;
    std::vector<double> out(n_nodes() * d);
    for (int64_t t = 0; t < shape.n_triples; ++t) {
      const int64_t u = row_of(t) * d, i = neighbor[t] * d, j = other[t] * d;
      double along_f = residual[t], along_z = 0;
      if (product != Product::kGradient) {
        double delta = 0;
        for (int64_t k = 0; k < d; ++k) {
          delta += z[u + k] * (double(f[i + k]) - f[j + k]);
          delta += f[u + k] * (double(z[i + k]) - z[j + k]);
        }
        along_f = curvature[t] * delta;
        along_z = product == Product::kHvp ? double(residual[t]) : 0;
      }
      for (int64_t k = 0; k < d; ++k) {
        out[u + k] += along_f * (double(f[i + k]) - f[j + k]);
        out[u + k] += along_z * (double(z[i + k]) - z[j + k]);
        out[i + k] += along_f * f[u + k] + along_z * z[u + k];
        out[j + k] -= along_f * f[u + k] + along_z * z[u + k];
      }
    }
    const std::vector<T>& v = product == Product::kGradient ? f : z;
    for (size_t k = 0; !ridge.empty() && k < out.size(); ++k) out[k] += double(ridge[k / d]) * v[k];
    return out;
  }
};

template <class T, class I>
void check_shape(const Shape& shape) {
  const Problem<T, I> problem(shape);
  for (const Product product : kProducts) {
    const auto expected = problem.expected(product);
    const auto got = problem.run(product);
    CHECK(error_of(got, expected) < kTolerance<T>);
    CHECK(got == problem.run(product, 1));  // the same bits for any grid
  }
}

// Features that do not begin at a multiple of 16 bytes.
template <class T, class I>
void check_unaligned(const Shape& shape) {
  const Problem<T, I> problem(shape);
  for (const Product product : kProducts) {
    const auto got = problem.run(product, cuda::kMaxBlocks, 1);
    CHECK(error_of(got, problem.expected(product)) < kTolerance<T>);
  }
}

// The rows in `poisoned` are NaN; no other is, and the others have the bits of `good`.
template <class T>
void check_poisoned(const std::vector<T>& got, const std::vector<T>& good, int64_t d,
                    const std::vector<int64_t>& poisoned) {
  for (size_t k = 0; k < got.size(); ++k) {
    bool is_poisoned = false;
    for (const int64_t row : poisoned) is_poisoned |= static_cast<int64_t>(k) / d == row;
    CHECK(is_poisoned ? std::isnan(got[k]) : got[k] == good[k]);
  }
}

// Ids that lead out of the arrays, or stand where they must not, poison their row and, in a user's
// entry, the rows of the triple.
template <class T, class I>
void check_broken_ids(const Shape& shape, Product product) {
  const Problem<T, I> whole(shape);
  const int64_t n = shape.n_triples, d = shape.d;
  const auto good = whole.run(product);
  const auto check = [&](auto which, int64_t place, std::initializer_list<I> ids) {
    for (const I id : ids) {
      auto broken = whole;
      (broken.*which)[place] = id;
      std::vector<int64_t> rows = {
          whole.row_of(which == &Problem<T, I>::triple ? place + n : place)};
      if (rows[0] < shape.n_users && product != Product::kGradient) {
        rows.push_back(whole.neighbor[place]);
        rows.push_back(whole.other[place]);
      }
      check_poisoned(broken.run(product), good, d, rows);
    }
  };
  constexpr I kMax = std::numeric_limits<I>::max();
  constexpr I kMin = std::numeric_limits<I>::min();
  const I end = static_cast<I>(whole.n_nodes());
  for (const int64_t place : {int64_t(0), n / 2}) {  // of users' rows
    check(&Problem<T, I>::neighbor, place, {end, I(-1), kMax});
    check(&Problem<T, I>::other, place, {end, I(-1), kMin});
  }
  for (const int64_t place : {n, 2 * n, 3 * n - 1}) {  // of items' rows: one id and one -1
    const bool positive = whole.other[place] == -1;
    const auto id = positive ? &Problem<T, I>::neighbor : &Problem<T, I>::other;
    const auto none = positive ? &Problem<T, I>::other : &Problem<T, I>::neighbor;
    check(id, place, {end, I(-1), I(-2), kMax, kMin});
    check(none, place, {I(0), I(-2), kMin});
    check(&Problem<T, I>::triple, place - n, {static_cast<I>(n), I(-1), kMax, kMin});
  }
}

// Ids are bounded, no more: a user's entry may name any node, the first and the last too.
template <class T, class I>
void check_any_node(const Shape& shape, Product product) {
  const Problem<T, I> whole(shape);
  const int64_t d = shape.d, place = shape.n_triples / 2, row = whole.row_of(place);
  for (const auto which : {&Problem<T, I>::neighbor, &Problem<T, I>::other}) {
    for (const int64_t node : {int64_t(0), whole.n_nodes() - 1}) {
      auto changed = whole;
      (changed.*which)[place] = static_cast<I>(node);
      const auto of_row = [&](const auto& all) {
        return std::vector(all.begin() + row * d, all.begin() + (row + 1) * d);
      };
      CHECK(error_of(of_row(changed.run(product)), of_row(changed.expected(product))) <
            kTolerance<T>);
    }
  }
}

// Ranges that lead out of the arrays poison their rows; what a user's row did not visit, its items.
template <class T, class I>
void check_broken_ranges(const Shape& shape, Product product) {
  const Problem<T, I> whole(shape);
  const auto good = whole.run(product);
  const int64_t d = shape.d, n = shape.n_triples;
  const auto check = [&](int64_t boundary, int64_t offset) {
    auto broken = whole;
    broken.rowptr[boundary] = offset;  // where one row ends and the next begins
    std::vector<int64_t> rows = {boundary - 1, boundary};
    for (int64_t t = 0; t < n && product != Product::kGradient; ++t) {
      const int64_t u = whole.row_of(t);
      if (u != rows[0] && u != rows[1]) continue;
      rows.push_back(whole.neighbor[t]);
      rows.push_back(whole.other[t]);
    }
    check_poisoned(broken.run(product), good, d, rows);
  };
  for (const int64_t boundary : {shape.n_users / 2 + 1, shape.n_users + 1}) {
    check(boundary, -1);
    check(boundary, 3 * n + 1);
    check(boundary, std::numeric_limits<int64_t>::max());
  }
  check(shape.n_users - 1, 3 * n + 1);
  // A row of users' and items' entries.
  if (product != Product::kGradient) check(shape.n_users - 1, n + 1);
}

template <class T, class I>
void check_all() {
  for (const int64_t d : {1, 4, 7, 16, 32, 33, 64, 128, 130, 260}) {
    check_shape<T, I>({60, 9, 20, d, true});
  }
  check_shape<T, I>({700, 9, 1, 16, true});  // hubs on both sides
  check_shape<T, I>({750, 7, 3, 5, false});
  check_shape<T, I>({150, 100, 45, 16, false});
  check_shape<T, I>({1, 2, 1, 16, true});
  check_shape<T, I>({0, 3, 2, 16, true});
  check_shape<T, I>({10, 3, 2, 0, true});
  for (const int64_t d : {16, 7, 260}) check_unaligned<T, I>({60, 9, 20, d, true});
  for (const Product product : kProducts) {
    check_any_node<T, I>({60, 9, 6, 16, true}, product);
    check_broken_ids<T, I>({60, 9, 6, 16, true}, product);
  }
}

}  // namespace

void test_pairwise() {
  check_all<float, int32_t>();
  check_all<float, int64_t>();
  check_all<double, int32_t>();
  check_all<double, int64_t>();
  check_shape<float, int32_t>({700, 4, 2, 260, true});  // a hub whose rows come in tiles
  for (const Product product : kProducts) {
    check_broken_ids<float, int32_t>({700, 9, 6, 5, false}, product);
    check_broken_ranges<float, int64_t>({700, 9, 30, 5, true}, product);
  }
}

}  // namespace ifru::test
