// Every kernel of every instruction set that this processor has, against plain double loops.
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../host/adjacency.h"
#include "../host/neighborhood.h"
#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/kernels.h"
#include "check.h"

namespace ifru::test {
namespace {

template <class I>
struct Graph {
  int64_t n_nodes = 0;
  std::vector<int64_t> rowptr;
  std::vector<I> neighbor;

  cpu::Adjacency<I> view() const { return {rowptr.data(), neighbor.data(), n_nodes}; }
};

// Nine users of which two are isolated, six items, one hub, duplicate interactions.
template <class I>
Graph<I> make_graph() {
  std::mt19937 random(1);
  std::vector<int64_t> user;
  std::vector<int64_t> item;
  for (int k = 0; k < 60; ++k) {
    user.push_back(random() % 3 ? random() % 7 : 4);
    item.push_back(random() % 6);
  }
  Graph<I> graph;
  graph.n_nodes = 9 + 6;
  graph.rowptr.resize(graph.n_nodes + 1);
  graph.neighbor.resize(2 * user.size());
  std::vector<I> edge(2 * user.size());
  host::build_adjacency<I>({user.data(), item.data(), static_cast<int64_t>(user.size()), 9, 6},
                           graph.rowptr.data(), graph.neighbor.data(), edge.data());
  return graph;
}

template <class T>
std::vector<T> random_values(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

template <class T>
void check_close(const std::vector<T>& got, const std::vector<double>& expected,
                 double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-12) {
  double worst = 0;
  for (size_t k = 0; k < got.size(); ++k) {
    worst = std::fmax(worst, std::fabs(got[k] - expected[k]) / (1 + std::fabs(expected[k])));
  }
  CHECK(worst <= tolerance);
}

template <class T, class I>
void check_rows(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const int64_t entries = static_cast<int64_t>(graph.neighbor.size());
  const auto f = random_values<T>(n * d, 2);
  const auto z = random_values<T>(n * d, 3);
  const auto s = random_values<T>(n, 4);
  const auto ridge = random_values<T>(n, 5);
  const auto residual = random_values<T>(entries, 6);
  const auto curvature = random_values<T>(entries, 7);
  std::vector<T> out(n * d);

  std::vector<double> propagated(n * d), gradient(n * d), hvp(n * d), gauss_newton(n * d);
  for (int64_t v = 0; v < n; ++v) {
    std::vector<double> sum(d, 0.0);
    for (int64_t j = graph.rowptr[v]; j < graph.rowptr[v + 1]; ++j) {
      const int64_t m = graph.neighbor[j];
      double delta = 0;
      for (int64_t k = 0; k < d; ++k) {
        delta += double(z[v * d + k]) * f[m * d + k] + double(f[v * d + k]) * z[m * d + k];
      }
      for (int64_t k = 0; k < d; ++k) {
        sum[k] += z[m * d + k];
        gradient[v * d + k] += double(residual[j]) * f[m * d + k];
        gauss_newton[v * d + k] += double(curvature[j]) * delta * f[m * d + k];
        hvp[v * d + k] +=
            double(curvature[j]) * delta * f[m * d + k] + double(residual[j]) * z[m * d + k];
      }
    }
    for (int64_t k = v * d; k < (v + 1) * d; ++k) {
      propagated[k] = s[v] * (0.25 * f[k] + s[v] * sum[k - v * d]) + double(ridge[v]) * f[k];
      gradient[k] += double(ridge[v]) * f[k];
      hvp[k] += double(ridge[v]) * z[k];
      gauss_newton[k] += double(ridge[v]) * z[k];
    }
  }

  const cpu::PropagateArgs<T, I> propagate{graph.view(), s.data(), f.data(),   z.data(),
                                           ridge.data(), f.data(), out.data(), T(0.25),
                                           true,         d};
  CHECK(kernels.propagate(propagate, 0, n));
  check_close(out, propagated);
  const cpu::GradientArgs<T, I> gradient_args{graph.view(), residual.data(), f.data(),
                                              ridge.data(), out.data(),      d};
  CHECK(kernels.gradient(gradient_args, 0, n));
  check_close(out, gradient);
  cpu::CurvatureArgs<T, I> product{graph.view(), residual.data(), curvature.data(), f.data(),
                                   z.data(),     ridge.data(),    out.data(),       d};
  CHECK(kernels.hvp(product, 0, n));
  check_close(out, hvp);
  product.residual = nullptr;
  CHECK(kernels.gauss_newton(product, 0, n));
  check_close(out, gauss_newton);

  // An id outside the nodes is reported and not followed.
  Graph<I> broken = graph;
  for (const I id : {static_cast<I>(n), static_cast<I>(-1)}) {
    broken.neighbor[entries / 2] = id;
    product.adjacency = broken.view();
    CHECK(!kernels.gauss_newton(product, 0, n));
  }
}

// The restricted products against the full ones, with a vector that is zero outside the rows.
template <class T, class I>
void check_restricted(const cpu::Kernels<T, I>& kernels, int64_t d) {
  const Graph<I> graph = make_graph<I>();
  const int64_t n = graph.n_nodes;
  const auto f = random_values<T>(n * d, 2);
  const auto ridge = random_values<T>(n, 5);
  const std::vector<int64_t> rows = {0, 3, 4, 9, 12};
  const int64_t n_rows = static_cast<int64_t>(rows.size());
  std::vector<I> edge(graph.neighbor.size());
  for (size_t j = 0; j < edge.size(); ++j) edge[j] = static_cast<I>(j);  // marks the entry
  const auto slice = host::slice_rows<I>(graph.rowptr.data(), graph.neighbor.data(), edge.data(), n,
                                         rows.data(), n_rows);
  const auto residual = random_values<T>(edge.size(), 6);
  const auto curvature = random_values<T>(edge.size(), 7);
  std::vector<T> local_residual, local_curvature, local_ridge;
  for (const I j : slice.edge) {
    local_residual.push_back(residual[j]);
    local_curvature.push_back(curvature[j]);
  }
  const auto z = random_values<T>(n_rows * d, 3);
  std::vector<T> whole_z(n * d), whole(n * d), out(n_rows * d);
  for (int64_t s = 0; s < n_rows; ++s) {
    local_ridge.push_back(ridge[rows[s]]);
    for (int64_t k = 0; k < d; ++k) whole_z[rows[s] * d + k] = z[s * d + k];
  }
  const std::vector<I> ids(rows.begin(), rows.end());
  cpu::RestrictedArgs<T, I> part{slice.rowptr.data(),
                                 ids.data(),
                                 slice.neighbor.data(),
                                 slice.local.data(),
                                 local_residual.data(),
                                 local_curvature.data(),
                                 f.data(),
                                 z.data(),
                                 local_ridge.data(),
                                 out.data(),
                                 n_rows,
                                 n,
                                 d};
  cpu::CurvatureArgs<T, I> full{graph.view(),   residual.data(), curvature.data(), f.data(),
                                whole_z.data(), ridge.data(),    whole.data(),     d};
  for (const bool exact : {true, false}) {
    part.residual = exact ? local_residual.data() : nullptr;
    full.residual = exact ? residual.data() : nullptr;
    CHECK((exact ? kernels.restricted_hvp : kernels.restricted_gauss_newton)(part, 0, n_rows));
    CHECK((exact ? kernels.hvp : kernels.gauss_newton)(full, 0, n));
    std::vector<double> expected;
    for (const int64_t row : rows) {
      for (int64_t k = 0; k < d; ++k) expected.push_back(whole[row * d + k]);
    }
    check_close(out, expected);
  }
  part.n_nodes = 5;
  CHECK(!kernels.restricted_gauss_newton(part, 0, n_rows));
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
    check_rows(table.f32_i32, d);
    check_rows(table.f32_i64, d);
    check_rows(table.f64_i32, d);
    check_rows(table.f64_i64, d);
    check_restricted(table.f32_i32, d);
    check_restricted(table.f32_i64, d);
    check_restricted(table.f64_i32, d);
    check_restricted(table.f64_i64, d);
    check_vectors(table.f32, 5, d);
    check_vectors(table.f64, 5, d);
  }
  check_derivatives(table.f32_i32);
  check_derivatives(table.f32_i64);
  check_derivatives(table.f64_i32);
  check_derivatives(table.f64_i64);
}

}  // namespace

void test_kernels() {
  const std::string supported = cpu::supported_isas();
  check_table(cpu::kBaselineTable);
#if defined(IFRU_X86_ISA_UNITS)
  if (supported.find("avx2") != std::string::npos) check_table(cpu::kAvx2Table);
  if (supported.find("avx512") != std::string::npos) check_table(cpu::kAvx512Table);
#endif
  std::printf("instruction sets tested: %s\n", supported.c_str());
}

}  // namespace ifru::test
