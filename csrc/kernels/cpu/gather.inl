// The two gather-and-add kernels: one Horner step of the propagation, and the gradient.
// Regime: memory bound, about d * sizeof(T) gathered bytes per adjacency entry for 2d flops.
// Deterministic: one writer per row, neighbours in stored order, segments of a fixed length.

namespace {

// sum_j c_j x_m over the entries of one row, features in registers; c = 1 where kWeighted is off.
// False if a neighbour is outside the nodes.
template <bool kWeighted, int D, class T, class I>
inline bool gather_row(const Adjacency<I>& adj, int64_t row, const T* coefficient, const T* x,
                       Row<T, D>& sum) {
  sum = Row<T, D>::zero();
  const int64_t stop = adj.rowptr[row + 1];
  return for_segments(adj.rowptr[row], stop, [&](int64_t first, int64_t last) {
    Row<T, D> part = Row<T, D>::zero();
    for (int64_t j = first; j < last; ++j) {
      if (!in_range(adj.neighbor[j], adj.n_nodes)) return false;
      if (j + kPrefetchDistance < stop) {
        prefetch_row(x + int64_t(adj.neighbor[j + kPrefetchDistance]) * D, D);
      }
      const Row<T, D> x_m = Row<T, D>::read(x + int64_t(adj.neighbor[j]) * D);
      if constexpr (kWeighted) {
        part.add(coefficient[j], x_m);
      } else {
        part.add(x_m);
      }
    }
    sum.add(part);
    return true;
  });
}

// The same for one tile of n_features features, beginning at `x` of each row; adds to `out`.
template <bool kWeighted, class T, class I>
inline bool gather_tile(const Adjacency<I>& adj, int64_t row, const T* coefficient, const T* x,
                        int64_t d, int64_t n_features, T scale, T* out) {
  return for_segments(adj.rowptr[row], adj.rowptr[row + 1], [&](int64_t first, int64_t last) {
    T part[kTile];
    set_zero(n_features, part);
    for (int64_t j = first; j < last; ++j) {
      if (!in_range(adj.neighbor[j], adj.n_nodes)) return false;
      axpy(n_features, kWeighted ? coefficient[j] : T(1), x + int64_t(adj.neighbor[j]) * d, part);
    }
    axpy(n_features, scale, part, out);
    return true;
  });
}

template <class T, class I, int D>
struct Propagate {
  static bool run(const PropagateArgs<T, I>& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      Row<T, D> sum;
      if (!gather_row<false>(a.adjacency, n, static_cast<const T*>(nullptr), a.scaled, sum)) {
        return false;
      }
      const T s = a.inv_sqrt_degree[n];
      sum.scale(s);
      sum.add(a.alpha, Row<T, D>::read(a.x + n * D));
      if (a.scale_output) sum.scale(s);
      if (a.ridge != nullptr) sum.add(a.ridge[n], Row<T, D>::read(a.v + n * D));
      sum.write(a.out + n * D);
    }
    return true;
  }
};

template <class T, class I>
struct Propagate<T, I, 0> {
  static bool run(const PropagateArgs<T, I>& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T s = a.inv_sqrt_degree[n];
      const T left = a.scale_output ? s : T(1);
      const bool ok = for_tiles(a.d, [&](int64_t first, int64_t n_features) {
        const int64_t own = n * a.d + first;
        set_zero(n_features, a.out + own);
        axpy(n_features, left * a.alpha, a.x + own, a.out + own);
        if (a.ridge != nullptr) axpy(n_features, a.ridge[n], a.v + own, a.out + own);
        return gather_tile<false>(a.adjacency, n, static_cast<const T*>(nullptr), a.scaled + first,
                                  a.d, n_features, left * s, a.out + own);
      });
      if (!ok) return false;
    }
    return true;
  }
};

template <class T, class I, int D>
struct Gradient {
  static bool run(const GradientArgs<T, I>& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      Row<T, D> sum;
      if (!gather_row<true>(a.adjacency, n, a.residual, a.f, sum)) return false;
      if (a.ridge != nullptr) sum.add(a.ridge[n], Row<T, D>::read(a.f + n * D));
      sum.write(a.out + n * D);
    }
    return true;
  }
};

template <class T, class I>
struct Gradient<T, I, 0> {
  static bool run(const GradientArgs<T, I>& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const bool ok = for_tiles(a.d, [&](int64_t first, int64_t n_features) {
        const int64_t own = n * a.d + first;
        set_zero(n_features, a.out + own);
        if (a.ridge != nullptr) axpy(n_features, a.ridge[n], a.f + own, a.out + own);
        return gather_tile<true>(a.adjacency, n, a.residual, a.f + first, a.d, n_features, T(1),
                                 a.out + own);
      });
      if (!ok) return false;
    }
    return true;
  }
};

}  // namespace
