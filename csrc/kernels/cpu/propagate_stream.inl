// One Horner step of the propagation in one pass over the edges: out_n sums its columns' rows in
// registers, and its own row is added to each column's sum in memory. Compared with a gather from
// both sides only the smaller side's tables are accessed at random, which pays where the features
// exceed the cache; within it, the gather has fewer stores (see gather.inl).
// Deterministic: as in stream.inl, for any number of blocks and threads.

namespace {

// Turns a sum of scaled neighbours into the step's result, in place: equation (1).
template <class T, int D>
inline void finish_row(const PropagateStreamArgs<T>& a, int64_t n, Row<T, D>& sum) {
  const T s = a.inv_sqrt_degree[n];
  sum.scale(s);
  sum.add(a.alpha, Row<T, D>::read(a.x + n * D));
  if (a.scale_output) sum.scale(s);
  if (a.ridge != nullptr) sum.add(a.ridge[n], Row<T, D>::read(a.v + n * D));
}

template <class T>
inline void finish_row_any(const PropagateStreamArgs<T>& a, int64_t n) {
  const T s = a.inv_sqrt_degree[n];
  const T left = a.scale_output ? s : T(1);
  for (int64_t k = n * a.d; k < (n + 1) * a.d; ++k) {
    a.out[k] = left * (a.alpha * a.x[k] + s * a.out[k]);
    if (a.ridge != nullptr) a.out[k] += a.ridge[n] * a.v[k];
  }
}

// The edges [j, last) of row n. False for a column outside the block.
template <class T, class I, int D>
inline bool propagate_edges(const PropagateStreamArgs<T>& a, const I* neighbor, int64_t n,
                            int64_t j, int64_t last, int64_t low, int64_t high, int64_t limit,
                            Row<T, D>& sum) {
  const T* const scaled = a.scaled;
  T* const out = a.out;
  const Row<T, D> own = Row<T, D>::read(scaled + n * D);
  Row<T, D> total = sum;
  for (; j < last; ++j) {
    if (j + kStreamDistance < limit) {
      prefetch_row(scaled, neighbor[j + kStreamDistance], D);
      prefetch_row(out, neighbor[j + kStreamDistance], D);
    }
    const int64_t m = static_cast<int64_t>(neighbor[j]);
    if (m < low || m >= high) return false;
    total.add(Row<T, D>::read(scaled + m * D));
    T* const out_m = out + m * D;
    for (int k = 0; k < Row<T, D>::kVectors; ++k) {
      store(out_m + k * kWidth<T>, load(out_m + k * kWidth<T>) + own.part[k]);
    }
  }
  sum = total;
  return true;
}

template <class T, class I>
inline bool propagate_edges_any(const PropagateStreamArgs<T>& a, const I* neighbor, int64_t n,
                                int64_t j, int64_t last, int64_t low, int64_t high, T* sum) {
  for (; j < last; ++j) {
    const int64_t m = static_cast<int64_t>(neighbor[j]);
    if (m < low || m >= high) return false;
    axpy(a.d, T(1), a.scaled + m * a.d, sum);
    axpy(a.d, T(1), a.scaled + n * a.d, a.out + m * a.d);
  }
  return true;
}

template <class T, class I, int D>
struct PropagateStream {
  static bool run(const PropagateStreamArgs<T>& a, const Stream<I>& s, int64_t block, int64_t begin,
                  int64_t end) {
    using R = Row<T, D>;
    const int64_t* rowptr = s.rowptr + block * (s.n_rows + 1);
    const int64_t per_block = s.n_cuts / s.n_blocks;
    const int64_t low = s.cuts[block * per_block];
    const int64_t high = s.cuts[(block + 1) * per_block];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = s.first_row + row;
      R sum = block == 0 ? R::zero() : R::read(a.out + n * D);
      const auto add = [&](int64_t first, int64_t last, R& part) {
        return propagate_edges<T, I, D>(a, s.neighbor, n, first, last, low, high, rowptr[end],
                                        part);
      };
      if (row_length(s, row) <= kLongRow) {
        if (!add(rowptr[row], rowptr[row + 1], sum)) return false;
      } else {
        const bool ok =
            for_cuts(s, block, rowptr[row], rowptr[row + 1], [&](int64_t first, int64_t last) {
              R part = R::zero();
              if (!add(first, last, part)) return false;
              sum.add(part);
              return true;
            });
        if (!ok) return false;
      }
      if (block + 1 == s.n_blocks) finish_row<T, D>(a, n, sum);
      sum.write(a.out + n * D);
    }
    return true;
  }
  static void finish(const PropagateStreamArgs<T>& a, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; ++m) {
      Row<T, D> sum = Row<T, D>::read(a.out + m * D);
      finish_row<T, D>(a, m, sum);
      sum.write(a.out + m * D);
    }
  }
};

template <class T, class I>
struct PropagateStream<T, I, 0> {
  static bool run(const PropagateStreamArgs<T>& a, const Stream<I>& s, int64_t block, int64_t begin,
                  int64_t end) {
    const int64_t* rowptr = s.rowptr + block * (s.n_rows + 1);
    const int64_t per_block = s.n_cuts / s.n_blocks;
    const int64_t low = s.cuts[block * per_block];
    const int64_t high = s.cuts[(block + 1) * per_block];
    T* part = a.scratch + block * a.d;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = s.first_row + row;
      T* sum = a.out + n * a.d;
      if (block == 0) set_zero(a.d, sum);
      if (row_length(s, row) <= kLongRow) {
        if (!propagate_edges_any(a, s.neighbor, n, rowptr[row], rowptr[row + 1], low, high, sum)) {
          return false;
        }
      } else {
        const bool ok =
            for_cuts(s, block, rowptr[row], rowptr[row + 1], [&](int64_t first, int64_t last) {
              set_zero(a.d, part);
              if (!propagate_edges_any(a, s.neighbor, n, first, last, low, high, part))
                return false;
              axpy(a.d, T(1), part, sum);
              return true;
            });
        if (!ok) return false;
      }
      if (block + 1 == s.n_blocks) finish_row_any(a, n);
    }
    return true;
  }
  static void finish(const PropagateStreamArgs<T>& a, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; ++m) finish_row_any(a, m);
  }
};

// The columns [first, last) after all rows have passed.
template <class T, class I, int D>
struct PropagateFinish {
  static bool run(const PropagateStreamArgs<T>& a, int64_t first, int64_t last) {
    PropagateStream<T, I, D>::finish(a, first, last);
    return true;
  }
};

}  // namespace
