// Every kernel of every instruction set that this processor has, against plain double loops.
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "../host/adjacency.h"
#include "../host/neighborhood.h"
#include "../host/stream.h"
#include "kernel_test.h"

namespace ifru::test {
namespace {

constexpr int64_t kUsers = 9;
constexpr int64_t kItems = 6;

template <class I>
struct Graph {
  int64_t n_nodes = kUsers + kItems;
  std::vector<int64_t> rowptr;
  std::vector<I> neighbor;
  std::vector<I> edge;

  cpu::Adjacency<I> view() const { return {rowptr.data(), neighbor.data(), n_nodes}; }
};

// Users of whom two are isolated, items, one hub whose row is long, duplicate interactions.
template <class I>
Graph<I> make_graph() {
  std::mt19937 random(1);
  std::vector<int64_t> user;
  std::vector<int64_t> item;
  for (int k = 0; k < 900; ++k) {
    user.push_back(random() % 4 ? 4 : random() % 7);
    item.push_back(random() % kItems);
  }
  Graph<I> graph;
  graph.rowptr.resize(graph.n_nodes + 1);
  graph.neighbor.resize(2 * user.size());
  graph.edge.resize(2 * user.size());
  host::build_adjacency<I>(
      {user.data(), item.data(), static_cast<int64_t>(user.size()), kUsers, kItems},
      graph.rowptr.data(), graph.neighbor.data(), graph.edge.data());
  return graph;
}

// The users' rows in blocks of items.
template <class I>
struct Streamed {
  std::vector<int64_t> cuts;
  std::vector<int64_t> rowptr;
  std::vector<I> neighbor;
  std::vector<I> edge;

  Streamed(const Graph<I>& graph, int64_t n_cuts, int64_t n_blocks)
      : cuts(host::balanced_cuts(graph.rowptr.data(), kUsers, graph.n_nodes, n_cuts)),
        rowptr(n_blocks * (kUsers + 1)),
        neighbor(graph.rowptr[kUsers]),
        edge(graph.rowptr[kUsers]),
        n_blocks_(n_blocks) {
    host::order_by_blocks<I>(graph.rowptr.data(), graph.neighbor.data(), graph.edge.data(), 0,
                             kUsers, cuts.data(), n_cuts, n_blocks, rowptr.data(), neighbor.data(),
                             edge.data());
  }
  cpu::Stream<I> view() const {
    return {rowptr.data(),
            neighbor.data(),
            cuts.data(),
            n_blocks_,
            static_cast<int64_t>(cuts.size()) - 1,
            kUsers,
            0};
  }

 private:
  int64_t n_blocks_;
};

// Runs a pass block by block, the rows in two chunks.
template <class Args>
bool run_blocks(const cpu::PassKernels<Args>& kernels, const Args& a) {
  const int64_t per_block = a.stream.n_cuts / a.stream.n_blocks;
  bool ok = true;
  for (int64_t block = 0; block < a.stream.n_blocks; ++block) {
    const int64_t first = a.stream.cuts[block * per_block];
    const int64_t last = a.stream.cuts[(block + 1) * per_block];
    kernels.start(a, first, last);
    ok = kernels.rows(a, block, 0, 4) && kernels.rows(a, block, 4, kUsers) && ok;
    kernels.finish(a, first, last);
  }
  return ok;
}

template <class T, class I>
void check_propagate(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const auto f = random_values<T>(n * d, 2);
  const auto z = random_values<T>(n * d, 3);
  const auto s = random_values<T>(n, 4);
  const auto ridge = random_values<T>(n, 5);
  std::vector<T> out(n * d);
  std::vector<double> expected(n * d);
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t k = 0; k < d; ++k) {
      double sum = 0;
      for (int64_t j = graph.rowptr[v]; j < graph.rowptr[v + 1]; ++j) {
        sum += z[graph.neighbor[j] * d + k];
      }
      const double own = f[v * d + k];
      expected[v * d + k] = s[v] * (0.25 * own + s[v] * sum) + double(ridge[v]) * own;
    }
  }
  cpu::PropagateArgs<T, I> args{
      {s.data(), f.data(), z.data(), ridge.data(), f.data(), out.data(), T(0.25), true, d},
      graph.view()};
  CHECK(kernels.propagate(args, 0, n));
  check_close(out, expected, sizeof(T) == 4 ? 1e-3 : 1e-11);
  Graph<I> broken = graph;
  for (const I id : {static_cast<I>(n), static_cast<I>(-1), std::numeric_limits<I>::max()}) {
    broken.neighbor[graph.neighbor.size() / 2] = id;
    args.adjacency = broken.view();
    CHECK(!kernels.propagate(args, 0, n));
  }
}

// The one-pass form against the gather.
template <class T, class I>
void check_propagate_stream(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const auto f = random_values<T>(n * d, 2);
  const auto z = random_values<T>(n * d, 3);
  const auto s = random_values<T>(n, 4);
  const auto ridge = random_values<T>(n, 5);
  std::vector<T> gathered(n * d);
  cpu::HornerStep<T> step{s.data(), f.data(), z.data(), ridge.data(), f.data(), gathered.data(),
                          T(0.25),  true,     d};
  CHECK(kernels.propagate({step, graph.view()}, 0, n));
  const std::vector<double> expected(gathered.begin(), gathered.end());
  for (const int64_t n_blocks : {1, 2, 4}) {
    const Streamed<I> streamed(graph, 4, n_blocks);
    std::vector<T> out(n * d), scratch(n_blocks * d);
    step.out = out.data();
    const cpu::PropagateStreamArgs<T, I> args{step, streamed.view(), scratch.data()};
    CHECK(run_blocks(kernels.propagate_stream, args));
    check_close(out, expected, sizeof(T) == 4 ? 1e-3 : 1e-11);
  }
}

template <class T, class I>
void check_stream(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const int64_t edges = static_cast<int64_t>(graph.neighbor.size()) / 2;
  const auto f = random_values<T>(n * d, 2);
  const auto z = random_values<T>(n * d, 3);
  const auto ridge = random_values<T>(n, 5);
  const auto residual = random_values<T>(edges, 6);  // in interaction order
  const auto curvature = random_values<T>(edges, 7);
  std::vector<double> gradient(n * d), hvp(n * d), gauss_newton(n * d);
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t j = graph.rowptr[v]; j < graph.rowptr[v + 1]; ++j) {
      const int64_t m = graph.neighbor[j];
      const double r = residual[graph.edge[j]];
      const double w = curvature[graph.edge[j]];
      double delta = 0;
      for (int64_t k = 0; k < d; ++k) {
        delta += double(z[v * d + k]) * f[m * d + k] + double(f[v * d + k]) * z[m * d + k];
      }
      for (int64_t k = 0; k < d; ++k) {
        gradient[v * d + k] += r * f[m * d + k];
        gauss_newton[v * d + k] += w * delta * f[m * d + k];
        hvp[v * d + k] += w * delta * f[m * d + k] + r * z[m * d + k];
      }
    }
    for (int64_t k = v * d; k < (v + 1) * d; ++k) {
      gradient[k] += double(ridge[v]) * f[k];
      hvp[k] += double(ridge[v]) * z[k];
      gauss_newton[k] += double(ridge[v]) * z[k];
    }
  }

  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-11;
  std::vector<std::vector<T>> first;
  for (const int64_t n_blocks : {1, 2, 4}) {
    const Streamed<I> streamed(graph, 4, n_blocks);
    std::vector<T> r, w;
    for (const I e : streamed.edge) {
      r.push_back(residual[e]);
      w.push_back(curvature[e]);
    }
    std::vector<T> scratch(n_blocks * d);
    std::vector<std::vector<T>> out(3, std::vector<T>(n * d));
    cpu::StreamArgs<T, T, I> args{streamed.view(), r.data(),       w.data(),
                                  f.data(),        z.data(),       ridge.data(),
                                  out[0].data(),   scratch.data(), d};
    CHECK(run_blocks(kernels.products.hvp, args));
    args.out = out[1].data();
    args.residual = nullptr;
    CHECK(run_blocks(kernels.products.gauss_newton, args));
    args = {streamed.view(), r.data(),      nullptr,        f.data(), f.data(),
            ridge.data(),    out[2].data(), scratch.data(), d};
    CHECK(run_blocks(kernels.gradient, args));
    check_close(out[0], hvp, tolerance);
    check_close(out[1], gauss_newton, tolerance);
    check_close(out[2], gradient, tolerance);
    if (first.empty()) first = out;
    CHECK(out == first);  // the same bits for any number of blocks

    // A column outside its block is reported and not followed.
    Streamed<I> broken(graph, 4, n_blocks);
    for (const I id : {static_cast<I>(n), static_cast<I>(0), static_cast<I>(-1),
                       std::numeric_limits<I>::max()}) {
      broken.neighbor[edges / 2] = id;
      args.stream = broken.view();
      CHECK(!run_blocks(kernels.gradient, args));
    }
  }
}

// What a stored number means, from its fields.
double value_of(uint16_t bits, int n_mantissa) {
  const int exponent_mask = (1 << (15 - n_mantissa)) - 1;
  const int bias = exponent_mask / 2;
  const int exponent = bits >> n_mantissa & exponent_mask;
  const int mantissa = bits & ((1 << n_mantissa) - 1);
  const int whole = exponent == 0 ? mantissa : mantissa | 1 << n_mantissa;
  const double size = std::ldexp(whole, (exponent == 0 ? 1 : exponent) - bias - n_mantissa);
  return bits & 0x8000 ? -size : size;
}

// Every sixteen-bit number: a row without interactions and with a ridge of one is the vector's own.
template <class S, class I>
void check_storage(const cpu::ProductKernels<S, float, I>& kernels, int64_t d, int n_mantissa) {
  const std::vector<int64_t> rowptr = {0, 0}, cuts = {1, 2};
  const std::vector<float> ridge = {1, 1};
  const std::vector<S> f(2 * d, S{0});
  std::vector<S> z(2 * d);
  std::vector<float> out(2 * d), scratch(d);
  const cpu::StreamArgs<S, float, I> args{{rowptr.data(), nullptr, cuts.data(), 1, 1, 1, 0},
                                          nullptr,
                                          nullptr,
                                          f.data(),
                                          z.data(),
                                          ridge.data(),
                                          out.data(),
                                          scratch.data(),
                                          d};
  const int infinite = 0x8000 - (1 << n_mantissa);
  bool equal = true;
  for (int first = 0; first < 0x10000; first += static_cast<int>(2 * d)) {
    for (int64_t k = 0; k < 2 * d; ++k) z[k].bits = static_cast<uint16_t>(first + k);
    kernels.hvp.start(args, 1, 2);
    CHECK(kernels.hvp.rows(args, 0, 0, 1));
    for (int64_t k = 0; k < 2 * d; ++k) {
      const int magnitude = z[k].bits & 0x7fff;
      if (magnitude < infinite) {
        equal &= double(out[k]) == value_of(z[k].bits, n_mantissa);
      } else if (magnitude == infinite) {
        equal &= std::isinf(out[k]) && std::signbit(out[k]) == (z[k].bits >> 15);
      } else {
        equal &= std::isnan(out[k]);
      }
    }
  }
  CHECK(equal);
}

// Products of stored features against those of the same numbers as float.
template <class S, class I>
void check_stored_products(const cpu::Kernels<float, I>& plain,
                           const cpu::ProductKernels<S, float, I>& stored, int64_t d,
                           int n_mantissa) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const int64_t edges = static_cast<int64_t>(graph.neighbor.size()) / 2;
  std::mt19937 random(8);
  const int one = ((1 << (15 - n_mantissa)) - 1) / 2 << n_mantissa;
  std::vector<S> stored_f(n * d), stored_z(n * d);
  std::vector<float> f, z;
  for (auto* pair : {&stored_f, &stored_z}) {
    for (S& x : *pair) {
      x.bits = static_cast<uint16_t>((one + random() % 64) | (random() % 2 ? 0x8000 : 0));
      (pair == &stored_f ? f : z).push_back(static_cast<float>(value_of(x.bits, n_mantissa)));
    }
  }
  const auto ridge = random_values<float>(n, 5);
  const auto residual = random_values<float>(edges, 6);
  const auto curvature = random_values<float>(edges, 7);
  const Streamed<I> streamed(graph, 4, 2);
  std::vector<float> expected(n * d), out(n * d), scratch(2 * d);
  for (const bool exact : {true, false}) {
    const float* r = exact ? residual.data() : nullptr;
    const cpu::StreamArgs<float, float, I> args{
        streamed.view(), r, curvature.data(), f.data(), z.data(), ridge.data(), expected.data(),
        scratch.data(),  d};
    const cpu::StreamArgs<S, float, I> stored_args{streamed.view(),
                                                   r,
                                                   curvature.data(),
                                                   stored_f.data(),
                                                   stored_z.data(),
                                                   ridge.data(),
                                                   out.data(),
                                                   scratch.data(),
                                                   d};
    CHECK(run_blocks(exact ? plain.products.hvp : plain.products.gauss_newton, args));
    CHECK(run_blocks(exact ? stored.hvp : stored.gauss_newton, stored_args));
    check_close(out, std::vector<double>(expected.begin(), expected.end()), 1e-4);
  }
}

// The restricted products against loops over the slice's definition.
template <class T, class I>
void check_restricted(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const std::vector<int64_t> rows = {0, 3, 4, 9, 12};
  const int64_t n_rows = static_cast<int64_t>(rows.size());
  const auto slice = host::slice_rows<I>(graph.rowptr.data(), graph.neighbor.data(),
                                         graph.edge.data(), n, rows.data(), n_rows);
  const int64_t entries = static_cast<int64_t>(slice.neighbor.size());
  const auto f = random_values<T>(n * d, 2);
  const auto z = random_values<T>(n_rows * d, 3);
  const auto ridge = random_values<T>(n_rows, 5);
  const auto residual = random_values<T>(entries, 6);
  const auto curvature = random_values<T>(entries, 7);
  std::vector<double> whole_z(n * d);
  for (int64_t s = 0; s < n_rows; ++s) {
    for (int64_t k = 0; k < d; ++k) whole_z[rows[s] * d + k] = z[s * d + k];
  }
  std::vector<double> hvp(n_rows * d), gauss_newton(n_rows * d);
  for (int64_t s = 0; s < n_rows; ++s) {
    for (int64_t j = slice.rowptr[s]; j < slice.rowptr[s + 1]; ++j) {
      const int64_t m = slice.neighbor[j];
      double delta = 0;
      for (int64_t k = 0; k < d; ++k) {
        delta += double(z[s * d + k]) * f[m * d + k] + f[rows[s] * d + k] * whole_z[m * d + k];
      }
      for (int64_t k = 0; k < d; ++k) {
        gauss_newton[s * d + k] += curvature[j] * delta * f[m * d + k];
        hvp[s * d + k] += curvature[j] * delta * f[m * d + k] + residual[j] * whole_z[m * d + k];
      }
    }
    for (int64_t k = s * d; k < (s + 1) * d; ++k) {
      hvp[k] += double(ridge[s]) * z[k];
      gauss_newton[k] += double(ridge[s]) * z[k];
    }
  }
  const std::vector<I> ids(rows.begin(), rows.end());
  std::vector<T> out(n_rows * d);
  cpu::RestrictedArgs<T, I> args{slice.rowptr.data(),
                                 ids.data(),
                                 slice.neighbor.data(),
                                 slice.local.data(),
                                 residual.data(),
                                 curvature.data(),
                                 f.data(),
                                 z.data(),
                                 ridge.data(),
                                 out.data(),
                                 n_rows,
                                 n,
                                 d};
  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-11;
  CHECK(kernels.restricted_hvp(args, 0, n_rows));
  check_close(out, hvp, tolerance);
  args.residual = nullptr;
  CHECK(kernels.restricted_gauss_newton(args, 0, n_rows));
  check_close(out, gauss_newton, tolerance);
  args.n_nodes = 5;
  CHECK(!kernels.restricted_gauss_newton(args, 0, n_rows));
}

// Diagonal and blocks of rows with long ones among them, against loops.
template <class T, class I>
void check_diagonal(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const int64_t entries = static_cast<int64_t>(graph.neighbor.size());
  const auto f = random_values<T>(n * d, 2);
  const auto ridge = random_values<T>(n, 5);
  const auto curvature = random_values<T>(entries, 7);
  std::vector<I> other(entries);
  for (int64_t e = 0; e < entries; ++e) other[e] = static_cast<I>(e % (n + 1) - 1);
  std::vector<double> blocks(n * d * d), diagonal(n * d);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t e = graph.rowptr[row]; e < graph.rowptr[row + 1]; ++e) {
      const auto v = [&](int64_t k) {
        return double(f[graph.neighbor[e] * d + k]) - (other[e] < 0 ? 0 : f[other[e] * d + k]);
      };
      for (int64_t i = 0; i < d; ++i) {
        diagonal[row * d + i] += curvature[e] * v(i) * v(i);
        for (int64_t k = 0; k < d; ++k) blocks[(row * d + i) * d + k] += curvature[e] * v(i) * v(k);
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      diagonal[row * d + i] += ridge[row];
      blocks[(row * d + i) * d + i] += ridge[row];
    }
  }
  std::vector<T> out(n * d * d), scratch(d * (d + cpu::kBlockEntries));
  cpu::DiagonalArgs<T, I> args{graph.rowptr.data(),
                               graph.neighbor.data(),
                               other.data(),
                               curvature.data(),
                               f.data(),
                               ridge.data(),
                               out.data(),
                               n,
                               d};
  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-11;
  CHECK(kernels.blocks(args, 0, n, scratch.data()));
  check_close(out, blocks, tolerance);
  out.resize(n * d);
  args.out = out.data();
  CHECK(kernels.diagonal(args, 0, n));
  check_close(out, diagonal, tolerance);
  other[entries / 2] = static_cast<I>(n);
  CHECK(!kernels.diagonal(args, 0, n));
  out.resize(n * d * d);
  args.out = out.data();
  CHECK(!kernels.blocks(args, 0, n, scratch.data()));
}

template <class T>
void check_vectors(const cpu::VectorKernels<T>& kernels, int64_t n_rows, int64_t d) {
  const int64_t n = n_rows * d;
  auto x = random_values<T>(n, 1);
  auto r = random_values<T>(n, 2);
  auto p = random_values<T>(n, 3);
  const auto ap = random_values<T>(n, 4);
  const auto inverse = random_values<T>(n_rows, 5);
  std::vector<double> new_x(n), new_r(n), new_p(n);
  double rr = 0, rz = 0, xr = 0;
  for (int64_t k = 0; k < n; ++k) {
    const double m = inverse[k / d];
    new_x[k] = x[k] + 0.25 * p[k];
    new_r[k] = r[k] - 0.25 * ap[k];
    new_p[k] = m * new_r[k] - 0.5 * p[k];
    rr += new_r[k] * new_r[k];
    rz += new_r[k] * m * new_r[k];
    xr += new_x[k] * new_r[k];
  }
  double dots[2];
  const auto frozen = x;
  std::vector<T> poison(n, std::numeric_limits<T>::quiet_NaN());
  kernels.cg_update({x.data(), r.data(), poison.data(), poison.data(), nullptr, T(0), d}, 0, n_rows,
                    dots);
  CHECK(x == frozen);  // alpha = 0 changes nothing
  kernels.cg_update({x.data(), r.data(), p.data(), ap.data(), inverse.data(), T(0.25), d}, 0,
                    n_rows, dots);
  kernels.cg_direction({p.data(), r.data(), inverse.data(), T(-0.5), d}, 0, n_rows);
  check_close(x, new_x);
  check_close(r, new_r);
  check_close(p, new_p);
  const std::vector<double> sums = {dots[0], dots[1], kernels.dot(x.data(), r.data(), 0, n)};
  check_close(sums, {rr, rz, xr}, sizeof(T) == 4 ? 1e-5 : 1e-12);
}

template <class T, class I>
void check_derivatives(const cpu::Kernels<T, I>& kernels) {
  const int64_t d = 1;
  const std::vector<T> f = {T(1), T(0), T(2), T(-3), T(500), T(-500)};
  const std::vector<I> left = {0, 0, 0, 0, 0, 0};
  const std::vector<I> right = {0, 1, 2, 3, 4, 5};
  const std::vector<T> label = {T(1), T(0), T(0.5), T(1), T(0), T(1)};
  const std::vector<T> weight = {T(1), T(2), T(1), T(0.5), T(1), T(1)};
  std::vector<T> value(6), residual(6), curvature(6);
  for (const Loss loss : {Loss::kBce, Loss::kMse}) {
    std::vector<double> expected_value, expected_residual, expected_curvature;
    for (size_t e = 0; e < 6; ++e) {
      const double score = f[e];
      const double y = label[e];
      const double c = weight[e];
      const double sigma = 1 / (1 + std::exp(-score));
      const double softplus = std::fmax(score, 0.0) + std::log1p(std::exp(-std::fabs(score)));
      const bool bce = loss == Loss::kBce;
      expected_value.push_back(c * (bce ? softplus - y * score : 0.5 * (score - y) * (score - y)));
      expected_residual.push_back(c * (bce ? sigma - y : score - y));
      expected_curvature.push_back(c * (bce ? sigma * (1 - sigma) : 1.0));
    }
    cpu::DerivativeArgs<T, I> args{left.data(),
                                   right.data(),
                                   f.data(),
                                   label.data(),
                                   weight.data(),
                                   value.data(),
                                   residual.data(),
                                   curvature.data(),
                                   6,
                                   d,
                                   loss};
    CHECK(kernels.derivatives(args, 0, 6));
    check_close(value, expected_value);
    check_close(residual, expected_residual);
    check_close(curvature, expected_curvature);
    args.n_nodes = 5;
    CHECK(!kernels.derivatives(args, 0, 6));
  }
}

void check_table(const cpu::KernelTable& table) {
  for (const int64_t d : {1, 7, 16, 32, 33, 48, 64, 96, 100, 128, 1100}) {
    check_propagate(table.f32_i32, d);
    check_propagate_stream(table.f32_i32, d);
    check_stream(table.f32_i32, d);
    check_propagate(table.f32_i64, d);
    check_propagate_stream(table.f32_i64, d);
    check_stream(table.f32_i64, d);
    check_propagate(table.f64_i32, d);
    check_propagate_stream(table.f64_i32, d);
    check_stream(table.f64_i32, d);
    check_propagate(table.f64_i64, d);
    check_propagate_stream(table.f64_i64, d);
    check_stream(table.f64_i64, d);
    check_restricted(table.f32_i32, d);
    check_restricted(table.f32_i64, d);
    check_restricted(table.f64_i32, d);
    check_restricted(table.f64_i64, d);
    check_vectors(table.f32, 5, d);
    check_vectors(table.f64, 5, d);
    check_diagonal(table.f32_i32, d);
    check_diagonal(table.f64_i64, d);
    check_stored_products(table.f32_i32, table.bf16_i32, d, 7);
    check_stored_products(table.f32_i64, table.bf16_i64, d, 7);
    check_stored_products(table.f32_i32, table.f16_i32, d, 10);
    check_stored_products(table.f32_i64, table.f16_i64, d, 10);
  }
  for (const int64_t d : {16, 100}) {
    check_storage(table.bf16_i32, d, 7);
    check_storage(table.f16_i64, d, 10);
  }
  check_derivatives(table.f32_i32);
  check_derivatives(table.f32_i64);
  check_derivatives(table.f64_i32);
  check_derivatives(table.f64_i64);
}

}  // namespace

void test_kernels() { for_each_table(check_table); }

}  // namespace ifru::test
