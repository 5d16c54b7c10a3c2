// One Horner step of the propagation, by gathering: each row sums its neighbours' rows.
// Regime: memory bound, about d * sizeof(T) gathered bytes per adjacency entry for d flops.
// Deterministic: one writer per row, neighbours in stored order, segments of a fixed length.

namespace {

// Turns row n's sum of scaled neighbours into the step's result, in place: equation (1).
template <class T, int D>
inline void finish_row(const HornerStep<T>& a, int64_t n, Row<T, D>& sum) {
  const T s = a.inv_sqrt_degree[n];
  sum.scale(s);
  sum.add(a.alpha, Row<T, D>::read(a.x + n * D));
  if (a.scale_output) sum.scale(s);
  if (a.ridge != nullptr) sum.add(a.ridge[n], Row<T, D>::read(a.v + n * D));
}

// The same where the sum stands in the output, for the features [first, first + n_features).
template <class T>
inline void finish_row_any(const HornerStep<T>& a, int64_t n, int64_t first, int64_t n_features) {
  const T s = a.inv_sqrt_degree[n];
  const T left = a.scale_output ? s : T(1);
  for (int64_t k = n * a.d + first; k < n * a.d + first + n_features; ++k) {
    a.out[k] = left * (a.alpha * a.x[k] + s * a.out[k]);
    if (a.ridge != nullptr) a.out[k] += a.ridge[n] * a.v[k];
  }
}

template <class T, class I, int D>
struct Propagate {
  static bool run(const PropagateArgs<T, I>& a, int64_t begin, int64_t end) {
    const auto& adj = a.adjacency;
    const int64_t limit = adj.rowptr[end];
    for (int64_t n = begin; n < end; ++n) {
      Row<T, D> sum = Row<T, D>::zero();
      const bool ok = for_segments(adj.rowptr[n], adj.rowptr[n + 1], [&](int64_t j, int64_t last) {
        Row<T, D> part = Row<T, D>::zero();
        for (; j < last; ++j) {
          // Across the row's end: most rows are shorter than the distance.
          if (j + kPrefetchDistance < limit) {
            prefetch_row(a.scaled, adj.neighbor[j + kPrefetchDistance], D);
          }
          const I m = adj.neighbor[j];
          if (!in_range(m, adj.n_nodes)) return false;
          part.add(Row<T, D>::read(a.scaled + int64_t(m) * D));
        }
        sum.add(part);
        return true;
      });
      if (!ok) return false;
      finish_row<T, D>(a, n, sum);
      sum.write(a.out + n * D);
    }
    return true;
  }
};

template <class T, class I>
struct Propagate<T, I, 0> {
  static bool run(const PropagateArgs<T, I>& a, int64_t begin, int64_t end) {
    const auto& adj = a.adjacency;
    for (int64_t n = begin; n < end; ++n) {
      const bool ok = for_tiles(a.d, [&](int64_t first, int64_t n_features) {
        T* out = a.out + n * a.d + first;
        set_zero(n_features, out);
        const bool found =
            for_segments(adj.rowptr[n], adj.rowptr[n + 1], [&](int64_t j, int64_t last) {
              T part[kTile];
              set_zero(n_features, part);
              for (; j < last; ++j) {
                const I m = adj.neighbor[j];
                if (!in_range(m, adj.n_nodes)) return false;
                axpy(n_features, T(1), a.scaled + int64_t(m) * a.d + first, part);
              }
              axpy(n_features, T(1), part, out);
              return true;
            });
        if (found) finish_row_any<T>(a, n, first, n_features);
        return found;
      });
      if (!ok) return false;
    }
    return true;
  }
};

}  // namespace
