// The propagation kernels against plain double loops.
#include <limits>
#include <string>
#include <vector>

#include "../../kernels/cuda/propagate.cuh"
#include "device_array.h"
#include "graph.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

struct Shape {
  std::vector<int64_t> degrees;
  int64_t d;
  int64_t n_layers;
  bool ridge;
};

// (1): y <- alpha_L x, y <- alpha_k x + S A S y.
template <class T, class I>
std::vector<double> expected_propagate(const Graph<I>& graph, const std::vector<T>& s,
                                       const std::vector<T>& x, const std::vector<double>& alpha,
                                       const std::vector<T>& ridge, const std::vector<T>& v,
                                       int64_t d) {
  std::vector<double> y(x.size());
  for (size_t k = 0; k < y.size(); ++k) y[k] = alpha.back() * x[k];
  for (int64_t layer = static_cast<int64_t>(alpha.size()) - 2; layer >= 0; --layer) {
    std::vector<double> next(x.size());
    for (int64_t n = 0; n < graph.n_nodes(); ++n) {
      for (int64_t k = 0; k < d; ++k) {
        double sum = 0;
        for (int64_t j = graph.rowptr[n]; j < graph.rowptr[n + 1]; ++j) {
          const int64_t m = graph.neighbor[j];
          sum += double(s[m]) * y[m * d + k];
        }
        next[n * d + k] = alpha[layer] * x[n * d + k] + s[n] * sum;
      }
    }
    y = next;
  }
  for (size_t k = 0; !ridge.empty() && k < y.size(); ++k) y[k] += double(ridge[k / d]) * v[k];
  return y;
}

// What a call of the op holds on the device.
template <class T, class I>
struct Problem {
  std::vector<T> s, x, ridge, v;
  std::vector<double> alpha;
  Graph<I> graph;
  DeviceArray<int64_t> rowptr;
  DeviceArray<I> neighbor;
  DeviceArray<T> s_, x_, ridge_, v_, out, scratch, partial;
  cuda::Propagation<T, I> params{};

  Problem(const Shape& shape, const Graph<I>& g)
      : s(random_values<T>(g.n_nodes(), 1)),
        x(random_values<T>(g.n_nodes() * shape.d, 2)),
        ridge(random_values<T>(shape.ridge ? g.n_nodes() : 0, 3)),
        v(random_values<T>(shape.ridge ? g.n_nodes() * shape.d : 0, 4)),
        alpha(random_values<double>(shape.n_layers + 1, 5)),
        graph(g),
        rowptr(g.rowptr),
        neighbor(g.neighbor),
        s_(scaled_down(s, g)),
        x_(x),
        ridge_(ridge),
        v_(v),
        out(x.size()),
        scratch(x.size()),
        partial(cuda::n_segments(g.n_entries()) * shape.d) {
    params.rowptr = rowptr.data();
    params.neighbor = neighbor.data();
    params.inv_sqrt_degree = s_.data();
    params.x = x_.data();
    params.ridge = shape.ridge ? ridge_.data() : nullptr;
    params.v = shape.ridge ? v_.data() : nullptr;
    params.out = out.data();
    params.partial = partial.data();
    params.n_rows = g.n_nodes();
    params.n_entries = g.n_entries();
    params.d = shape.d;
  }
  std::vector<T> run(int64_t max_blocks = cuda::kMaxBlocks) {
    cuda::propagate<T, I>(params, alpha.data(), static_cast<int64_t>(alpha.size()) - 1,
                          scratch.data(), nullptr, max_blocks);
    return out.host();
  }

 private:
  // Divided by the root of the mean degree, so that layers neither explode nor vanish.
  static const std::vector<T>& scaled_down(std::vector<T>& s, const Graph<I>& g) {
    const T degree = T(1 + g.n_entries()) / T(1 + g.n_nodes());
    for (T& value : s) value /= std::sqrt(degree);
    return s;
  }
};

template <class T, class I>
void check_shape(const Shape& shape) {
  const auto graph = make_graph<I>(shape.degrees);
  Problem<T, I> problem(shape, graph);
  const auto got = problem.run();
  CHECK(error_of(got, expected_propagate(graph, problem.s, problem.x, problem.alpha, problem.ridge,
                                         problem.v, shape.d)) < kTolerance<T>);
  CHECK(got == problem.run());
  CHECK(got == problem.run(1));  // and the same bits for any grid
}

// Features that do not begin at a multiple of 16 bytes: views of a larger tensor.
template <class T, class I>
void check_unaligned(int64_t d) {
  const Shape shape{{3, 0, 40, 2, 5}, d, 1, false};
  Problem<T, I> problem(shape, make_graph<I>(shape.degrees));
  const auto expected = problem.run();
  auto shifted = problem.x;
  shifted.insert(shifted.begin(), T(0));
  DeviceArray<T> x(shifted);
  problem.params.x = x.data() + 1;
  const auto got = problem.run();
  CHECK(error_of(got, std::vector<double>(expected.begin(), expected.end())) < kTolerance<T>);
}

// Ids and ranges that lead out of the arrays poison their row and no other.
template <class T, class I>
void check_broken(int64_t d, int64_t length) {
  const Shape shape{{3, 0, length, 2, 5}, d, 1, false};
  const auto graph = make_graph<I>(shape.degrees);
  Problem<T, I> whole(shape, graph);
  const auto good = whole.run();
  const auto check_poisoned = [&](const Graph<I>& broken, int64_t first, int64_t last) {
    Problem<T, I> problem(shape, broken);
    problem.params.inv_sqrt_degree = whole.s_.data();
    const auto got = problem.run();
    for (int64_t k = 0; k < static_cast<int64_t>(got.size()); ++k) {
      const bool poisoned = k / d >= first && k / d <= last;
      CHECK(poisoned ? std::isnan(got[k]) : got[k] == good[k]);
    }
  };
  for (const I id : {static_cast<I>(5), static_cast<I>(-1), std::numeric_limits<I>::max()}) {
    Graph<I> broken = graph;
    for (const int64_t entry : {int64_t(3), 3 + length / 2, 2 + length}) {  // of row 2
      broken.neighbor = graph.neighbor;
      broken.neighbor[entry] = id;
      check_poisoned(broken, 2, 2);
    }
  }
  for (const int64_t offset : {int64_t(-1), length + 11, std::numeric_limits<int64_t>::max()}) {
    Graph<I> broken = graph;
    broken.rowptr[3] = offset;  // where row 2 ends and row 3 begins
    check_poisoned(broken, 2, 3);
  }
}

// Ranges within the arrays that are not in order: each row is right or NaN.
template <class T, class I>
void check_unordered() {
  const Shape shape{{700, 600, 800, 0}, 16, 1, false};
  auto graph = make_graph<I>(shape.degrees);
  for (const auto& rowptr : {std::vector<int64_t>{0, 2100, 700, 2000, 2100},
                             std::vector<int64_t>{0, 1500, 100, 1400, 2100}}) {
    graph.rowptr = rowptr;
    Problem<T, I> problem(shape, graph);
    const auto got = problem.run();
    graph.rowptr[1] = graph.rowptr[2];  // row 1 runs backwards: nothing to compare it with
    const auto expected = expected_propagate(graph, problem.s, problem.x, problem.alpha,
                                             problem.ridge, problem.v, shape.d);
    for (size_t k = 2 * 16; k < got.size(); ++k) {
      CHECK(std::isnan(got[k]) ||
            std::fabs(got[k] - expected[k]) < kTolerance<T> * (1 + std::fabs(expected[k])));
    }
    for (size_t k = 16; k < 2 * 16; ++k) CHECK(std::isnan(got[k]));
  }
}

template <class T, class I>
void check_all() {
  const std::vector<int64_t> ragged = {3, 0, 1, 33, 0, 7, 64, 2, 100, 5, 0};
  for (const int64_t d : {1, 3, 4, 7, 8, 16, 31, 32, 33, 48, 64, 96, 100, 128, 130, 260}) {
    check_shape<T, I>({ragged, d, 1, true});
  }
  for (const int64_t n_layers : {0, 1, 2, 3}) {
    for (const int64_t d : {5, 16, 64}) {
      check_shape<T, I>({ragged, d, n_layers, false});
      check_shape<T, I>({ragged, d, n_layers, true});
    }
  }
  check_shape<T, I>({{0}, 16, 2, true});  // nothing to gather
  check_shape<T, I>({{1}, 16, 2, true});  // its own neighbour
  check_shape<T, I>({ragged, 0, 2, true});
  check_shape<T, I>({std::vector<int64_t>(300, 2), 16, 1, false});  // more rows than a block has
  check_shape<T, I>({{0, 3000, 1, 2, 0, 700, 1025}, 16, 2, true});  // hubs
  check_shape<T, I>({{2, 1500, 0}, 130, 1, true});
  check_shape<T, I>({{600, 4, 513, 512, 511, 256}, 64, 1, false});  // at the limits
  check_shape<T, I>({{33, 32, 31, 34, 800}, 5, 1, true});
  for (const int64_t d : {16, 32, 64, 128, 7}) {
    check_unaligned<T, I>(d);
    check_broken<T, I>(d, 40);
    check_broken<T, I>(d, 1100);
  }
  check_unordered<T, I>();
}

}  // namespace

void test_propagate() {
  check_all<float, int32_t>();
  check_all<float, int64_t>();
  check_all<double, int32_t>();
  check_all<double, int64_t>();
}

}  // namespace ifru::test
