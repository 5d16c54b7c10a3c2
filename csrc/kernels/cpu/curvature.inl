// Hessian-vector and Gauss-Newton products, equation (6), fused: each neighbour's rows f_m and z_m
// are read once, delta is formed and used in registers, nothing is stored per interaction. The
// product delta is formed twice, once in the user's row and once in the item's: 4d flops are
// cheaper than a trip to memory.
// Regime: memory bound, 2 d sizeof(T) gathered bytes per adjacency entry for 8d flops (6d for
// Gauss-Newton). Deterministic: one writer per row, neighbours in stored order, segments of a fixed
// length.

namespace {

template <class T, class I, int D, bool kExact>
bool curvature_rows(const CurvatureArgs<T, I>& a, int64_t begin, int64_t end) {
  const auto& adj = a.adjacency;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t stop = adj.rowptr[n + 1];
    const Row<T, D> f_n = Row<T, D>::read(a.f + n * D);
    const Row<T, D> z_n = Row<T, D>::read(a.z + n * D);
    Row<T, D> sum = Row<T, D>::zero();
    const bool ok = for_segments(adj.rowptr[n], stop, [&](int64_t first, int64_t last) {
      Row<T, D> part = Row<T, D>::zero();
      for (int64_t j = first; j < last; ++j) {
        if (!in_range(adj.neighbor[j], adj.n_nodes)) return false;
        if (j + kPrefetchDistance < stop) {
          const int64_t ahead = int64_t(adj.neighbor[j + kPrefetchDistance]) * D;
          prefetch_row(a.f + ahead, D);
          prefetch_row(a.z + ahead, D);
        }
        const Row<T, D> f_m = Row<T, D>::read(a.f + int64_t(adj.neighbor[j]) * D);
        const Row<T, D> z_m = Row<T, D>::read(a.z + int64_t(adj.neighbor[j]) * D);
        const T delta = horizontal_sum<T>(z_n.products(f_m) + f_n.products(z_m));
        part.add(a.curvature[j] * delta, f_m);
        if constexpr (kExact) part.add(a.residual[j], z_m);
      }
      sum.add(part);
      return true;
    });
    if (!ok) return false;
    if (a.ridge != nullptr) sum.add(a.ridge[n], z_n);
    sum.write(a.out + n * D);
  }
  return true;
}

// Any number of features. Beyond one tile, delta is formed again for each.
template <class T, class I, bool kExact>
bool curvature_rows_any(const CurvatureArgs<T, I>& a, int64_t begin, int64_t end) {
  const auto& adj = a.adjacency;
  const int64_t d = a.d;
  for (int64_t n = begin; n < end; ++n) {
    const bool ok = for_tiles(d, [&](int64_t tile, int64_t n_features) {
      T* out = a.out + n * d + tile;
      set_zero(n_features, out);
      if (a.ridge != nullptr) axpy(n_features, a.ridge[n], a.z + n * d + tile, out);
      return for_segments(adj.rowptr[n], adj.rowptr[n + 1], [&](int64_t first, int64_t last) {
        T part[kTile];
        set_zero(n_features, part);
        for (int64_t j = first; j < last; ++j) {
          if (!in_range(adj.neighbor[j], adj.n_nodes)) return false;
          const T* f_m = a.f + int64_t(adj.neighbor[j]) * d;
          const T* z_m = a.z + int64_t(adj.neighbor[j]) * d;
          const T delta = dot(d, a.z + n * d, f_m) + dot(d, a.f + n * d, z_m);
          axpy(n_features, a.curvature[j] * delta, f_m + tile, part);
          if constexpr (kExact) axpy(n_features, a.residual[j], z_m + tile, part);
        }
        axpy(n_features, T(1), part, out);
        return true;
      });
    });
    if (!ok) return false;
  }
  return true;
}

template <class T, class I, int D>
struct Hvp {
  static bool run(const CurvatureArgs<T, I>& a, int64_t begin, int64_t end) {
    if constexpr (D == 0) {
      return curvature_rows_any<T, I, true>(a, begin, end);
    } else {
      return curvature_rows<T, I, D, true>(a, begin, end);
    }
  }
};

template <class T, class I, int D>
struct GaussNewton {
  static bool run(const CurvatureArgs<T, I>& a, int64_t begin, int64_t end) {
    if constexpr (D == 0) {
      return curvature_rows_any<T, I, false>(a, begin, end);
    } else {
      return curvature_rows<T, I, D, false>(a, begin, end);
    }
  }
};

}  // namespace
