// One Horner step of the propagation in one pass over the edges: out_n sums its columns' rows in
// registers, and its own row is added to each column's sum in memory. Compared with a gather from
// both sides only the smaller side's tables are accessed at random, which pays where the features
// exceed the cache; within it, the gather has fewer stores (see gather.inl).
// Deterministic: as in stream.inl, for any number of blocks and threads.

namespace {

template <class T, class I, int D>
struct PropagateEdges {
  const PropagateStreamArgs<T, I>& a;
  int64_t n;
  const Bounds& in;

  // The edges [j, last) of row n; adds to `sum`. False for a column outside the block.
  bool operator()(int64_t j, const int64_t last, Row<T, D>& sum) const {
    const I* const neighbor = a.stream.neighbor;
    const T* const scaled = a.scaled;
    T* const out = a.out;
    const int64_t low = in.low, high = in.high, limit = in.limit;
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
};

template <class T, class I>
struct PropagateEdges<T, I, 0> {
  const PropagateStreamArgs<T, I>& a;
  int64_t n;
  const Bounds& in;

  bool operator()(int64_t j, int64_t last, AnyRow<T>& row) const {
    for (; j < last; ++j) {
      const int64_t m = static_cast<int64_t>(a.stream.neighbor[j]);
      if (m < in.low || m >= in.high) return false;
      axpy(a.d, T(1), a.scaled + m * a.d, row.sum);
      axpy(a.d, T(1), a.scaled + n * a.d, a.out + m * a.d);
    }
    return true;
  }
};

template <class T, class I>
void zero_columns(const PropagateStreamArgs<T, I>& a, int64_t first, int64_t last) {
  set_zero((last - first) * a.d, a.out + first * a.d);
}

// Rows [begin, end) of one block; the last block finishes them.
template <class T, class I, int D>
struct PropagateRows {
  static bool run(const PropagateStreamArgs<T, I>& a, int64_t block, int64_t begin, int64_t end) {
    const Stream<I>& s = a.stream;
    const Bounds in = bounds(s, block, end);
    const bool last_block = block + 1 == s.n_blocks;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = s.first_row + row;
      const PropagateEdges<T, I, D> edges{a, n, in};
      if constexpr (D == 0) {
        AnyRow<T> sum{a.d, a.out + n * a.d, a.scratch + block * a.d};
        if (block == 0) set_zero(a.d, sum.sum);
        if (!sum_row(s, block, row, sum, edges)) return false;
        if (last_block) finish_row_any<T>(a, n, 0, a.d);
      } else {
        Row<T, D> sum = block == 0 ? Row<T, D>::zero() : Row<T, D>::read(a.out + n * D);
        if (!sum_row(s, block, row, sum, edges)) return false;
        if (last_block) finish_row<T, D>(a, n, sum);
        sum.write(a.out + n * D);
      }
    }
    return true;
  }
};

// The columns [first, last) after all rows have passed.
template <class T, class I, int D>
struct PropagateColumns {
  static void run(const PropagateStreamArgs<T, I>& a, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; ++m) {
      if constexpr (D == 0) {
        finish_row_any<T>(a, m, 0, a.d);
      } else {
        Row<T, D> sum = Row<T, D>::read(a.out + m * D);
        finish_row<T, D>(a, m, sum);
        sum.write(a.out + m * D);
      }
    }
  }
};

}  // namespace
