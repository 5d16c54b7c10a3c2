// Diagonal and blocks of the Gauss-Newton matrix, equation (7), row by row.
// Regime: the diagonal is memory bound, one gathered row per entry. A block is compute bound, d^2 /
// 2 multiply-adds per entry: a few entries are added at a time, while a row of the block is in
// registers, and the lower triangle is a copy.
// Deterministic: one writer per row, entries in stored order, segments of a fixed length.

namespace {

// v_e = f_neighbor - f_other into `v`; false for an id that is neither a node nor -1.
template <class T, class I>
inline bool entry_vector(const DiagonalArgs<T, I>& a, int64_t e, int64_t first, int64_t n_features,
                         T* v) {
  set_zero(n_features, v);
  const auto add = [&](T sign, I id) {
    if (id == I(-1)) return true;
    if (!in_range(id, a.n_nodes)) return false;
    axpy(n_features, sign, a.f + int64_t(id) * a.d + first, v);
    return true;
  };
  return add(T(1), a.neighbor[e]) && (a.other == nullptr || add(T(-1), a.other[e]));
}

template <class T>
inline void add_squares(int64_t d, T w, const T* v, T* sum) {
  int64_t k = 0;
  for (; k + kWidth<T> <= d; k += kWidth<T>) {
    store(sum + k, load(sum + k) + w * load(v + k) * load(v + k));
  }
  for (; k < d; ++k) sum[k] += w * v[k] * v[k];
}

template <class T, class I>
bool diagonal_rows(const DiagonalArgs<T, I>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const bool ok = for_tiles(a.d, [&](int64_t first, int64_t n_features) {
      T* out = a.out + row * a.d + first;
      for (int64_t k = 0; k < n_features; ++k) out[k] = a.ridge == nullptr ? T(0) : a.ridge[row];
      return for_segments(a.rowptr[row], a.rowptr[row + 1], [&](int64_t e, int64_t last) {
        T part[kTile];
        T v[kTile];
        set_zero(n_features, part);
        for (; e < last; ++e) {
          if (e + kPrefetchDistance < a.rowptr[end]) {
            prefetch_row(a.f, a.neighbor[e + kPrefetchDistance], a.d);
          }
          if (!entry_vector(a, e, first, n_features, v)) return false;
          add_squares(n_features, a.curvature[e], v, part);
        }
        axpy(n_features, T(1), part, out);
        return true;
      });
    });
    if (!ok) return false;
  }
  return true;
}

// Adds the entries [e, last), at most kBlockEntries of them, to the upper triangle of `block`, from
// each row's diagonal on (rounded down to whole vectors).
template <class T, class I>
inline bool add_outer_products(const DiagonalArgs<T, I>& a, int64_t e, int64_t last, T* block,
                               T* v) {
  const int64_t d = a.d;
  const int64_t n = last - e;
  for (int64_t m = 0; m < n; ++m) {
    if (!entry_vector(a, e + m, 0, d, v + m * d)) return false;
  }
  for (int64_t i = 0; i < d; ++i) {
    T scale[kBlockEntries];
    for (int64_t m = 0; m < n; ++m) scale[m] = a.curvature[e + m] * v[m * d + i];
    T* row = block + i * d;
    int64_t k = i - i % kWidth<T>;
    for (; k + kWidth<T> <= d; k += kWidth<T>) {
      Vec<T> sum = load(row + k);
      for (int64_t m = 0; m < n; ++m) sum += scale[m] * load(v + m * d + k);
      store(row + k, sum);
    }
    for (; k < d; ++k) {
      for (int64_t m = 0; m < n; ++m) row[k] += scale[m] * v[m * d + k];
    }
  }
  return true;
}

template <class T, class I>
bool block_rows(const DiagonalArgs<T, I>& a, int64_t begin, int64_t end, T* scratch) {
  const int64_t d = a.d;
  T* part = scratch;       // [d, d]
  T* v = scratch + d * d;  // [kBlockEntries, d]
  for (int64_t row = begin; row < end; ++row) {
    T* out = a.out + row * d * d;
    set_zero(d * d, out);
    const bool ok =
        for_segments(a.rowptr[row], a.rowptr[row + 1], [&](int64_t first, int64_t last) {
          set_zero(d * d, part);
          for (int64_t e = first; e < last; e += kBlockEntries) {
            const int64_t stop = e + kBlockEntries < last ? e + kBlockEntries : last;
            if (!add_outer_products(a, e, stop, part, v)) return false;
          }
          axpy(d * d, T(1), part, out);
          return true;
        });
    if (!ok) return false;
    for (int64_t i = 0; i < d; ++i) {
      if (a.ridge != nullptr) out[i * d + i] += a.ridge[row];
      for (int64_t k = 0; k < i; ++k) out[i * d + k] = out[k * d + i];
    }
  }
  return true;
}

}  // namespace
