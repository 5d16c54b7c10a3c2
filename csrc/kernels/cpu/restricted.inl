// Curvature products restricted to some rows S, equation (6): the vector is zero outside S and only
// rows S of the product are wanted, so only interactions that touch S are visited, each once per
// endpoint in S. Exact for matrix factorisation, where H_SS is this operator.
// Regime: a request's few thousand entries; the gathers are of rows all over the table.
// Deterministic: one writer per row, neighbours in stored order, segments of a fixed length.

namespace {

template <class T, class I, bool kExact>
bool restricted_rows(const RestrictedArgs<T, I>& a, int64_t begin, int64_t end) {
  const int64_t d = a.d;
  for (int64_t s = begin; s < end; ++s) {
    if (!in_range(a.rows[s], a.n_nodes)) return false;
    const T* f_n = a.f + int64_t(a.rows[s]) * d;
    const T* z_n = a.z + s * d;
    const bool ok = for_tiles(d, [&](int64_t tile, int64_t n_features) {
      T* out = a.out + s * d + tile;
      set_zero(n_features, out);
      if (a.ridge != nullptr) axpy(n_features, a.ridge[s], z_n + tile, out);
      return for_segments(a.rowptr[s], a.rowptr[s + 1], [&](int64_t first, int64_t last) {
        T part[kTile];
        set_zero(n_features, part);
        for (int64_t j = first; j < last; ++j) {
          if (!in_range(a.neighbor[j], a.n_nodes) || a.local[j] >= a.n_rows) return false;
          const T* f_m = a.f + int64_t(a.neighbor[j]) * d;
          T delta = dot(d, z_n, f_m);
          if (a.local[j] >= 0) {
            const T* z_m = a.z + int64_t(a.local[j]) * d;
            delta += dot(d, f_n, z_m);
            if constexpr (kExact) axpy(n_features, a.residual[j], z_m + tile, part);
          }
          axpy(n_features, a.curvature[j] * delta, f_m + tile, part);
        }
        axpy(n_features, T(1), part, out);
        return true;
      });
    });
    if (!ok) return false;
  }
  return true;
}

}  // namespace
