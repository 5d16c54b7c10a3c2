// Gradient, Hessian-vector and Gauss-Newton products, equations (5) and (6), in one pass over the
// interactions: the rows of one side (usually the users) stream by and stay in registers, the other
// side's rows are read and written where they lie. Each interaction (n, m) is visited once:
//
//   delta = <z_n, f_m> + <f_n, z_m>;  c = w delta
//   out_n += c f_m + r z_m   (registers)      out_m += c f_n + r z_n   (memory)
//
// Regime: memory bound, 2 d sizeof(T) gathered bytes per interaction and as many read and written,
// against twice the gathers for a pass over each side; what is accessed at random is the smaller
// side's table, whose popular rows stay in the cache. Nothing is stored per interaction.
//
// Threads own blocks of columns and follow each other through the rows (csrc/ops/stream.h), so
// every row has one writer at a time. out_n is summed in the order of its columns and out_m in the
// order of the rows, whatever the number of blocks: the same bits for any number of blocks and
// threads.

namespace {

// Interactions ahead of the arithmetic whose rows are prefetched.
constexpr int64_t kStreamDistance = 16;

// Rows with more interactions are summed cut by cut: the partial sums keep the rounding error of a
// hub of a million interactions at that of a few thousand. Cuts bound the blocks as well, so that
// where a sum is divided does not depend on the blocks.
constexpr int64_t kLongRow = 512;

enum class Product { kGradient, kHvp, kGaussNewton };

// What fits the registers: one's own two rows beside the sum, and the neighbour's two rows as well.
// What does not is read again as an operand, which the first-level cache serves better than spills.
template <class T, int D>
constexpr int kRowRegisters = D * int(sizeof(T)) / IFRU_VECTOR_BYTES;
template <class T, int D>
constexpr bool kOwnInRegisters = 3 * kRowRegisters<T, D> + 3 <= IFRU_VECTOR_REGISTERS;
template <class T, int D>
constexpr bool kAllInRegisters = 5 * kRowRegisters<T, D> <= IFRU_VECTOR_REGISTERS;

// Row `p` of D features: a copy in registers, or the place it is read from each time.
template <class T, int D, bool kCopied>
struct Operand {
  Row<T, D> row;
  explicit Operand(const T* p) : row(Row<T, D>::read(p)) {}
  Vec<T> part(int k) const { return row.part[k]; }
};
template <class T, int D>
struct Operand<T, D, false> {
  const T* p;
  explicit Operand(const T* place) : p(place) {}
  Vec<T> part(int k) const { return load(p + k * kWidth<T>); }
};

template <class T, int K, class X, class Y>
inline Vec<T> products(const X& x, const Y& y) {
  Vec<T> sum = x.part(0) * y.part(0);
  for (int k = 1; k < K; ++k) sum += x.part(k) * y.part(k);
  return sum;
}

template <class T, class I, int D, Product kProduct>
struct Edges {
  using R = Row<T, D>;
  using Own = Operand<T, D, kOwnInRegisters<T, D>>;
  using Other = Operand<T, D, kAllInRegisters<T, D>>;
  static constexpr bool kCurvature = kProduct != Product::kGradient;
  static constexpr bool kResidual = kProduct != Product::kGaussNewton;
  static constexpr int K = R::kVectors;

  const StreamArgs<T, I>& a;
  const T* f_n;
  const T* z_n;
  int64_t low;  // columns of the block
  int64_t high;
  int64_t limit;  // end of the interactions that may be prefetched

  // The interactions [j, last) of row n; adds to `sum`. False for a column outside the block.
  bool operator()(int64_t j, const int64_t last, R& sum) const {
    // Locals: the stores below could change a member, for all the compiler knows.
    const I* const neighbor = a.stream.neighbor;
    const T* const residual = a.residual;
    const T* const curvature = a.curvature;
    const T* const f = a.f;
    const T* const z = a.z;
    T* const out = a.out;
    const int64_t low_ = low, high_ = high, limit_ = limit;
    const Own own_f(f_n);
    const Own own_z(z_n);
    R total = sum;
    for (; j < last; ++j) {
      if (j + kStreamDistance < limit_) {
        const I ahead = neighbor[j + kStreamDistance];
        prefetch_row(f, ahead, D);
        if constexpr (kCurvature) prefetch_row(z, ahead, D);
        prefetch_row(out, ahead, D);
      }
      const int64_t m = static_cast<int64_t>(neighbor[j]);
      if (m < low_ || m >= high_) return false;
      const Other other_f(f + m * D);
      T* const out_m = out + m * D;
      const T r = kResidual ? residual[j] : T(0);
      if constexpr (!kCurvature) {
        for (int k = 0; k < K; ++k) total.part[k] += r * other_f.part(k);
        for (int k = 0; k < K; ++k) {
          store(out_m + k * kWidth<T>, load(out_m + k * kWidth<T>) + r * own_f.part(k));
        }
      } else {
        const Other other_z(z + m * D);
        const Vec<T> delta = products<T, K>(own_z, other_f) + products<T, K>(own_f, other_z);
        const T c = curvature[j] * horizontal_sum<T>(delta);
        // Keeps the compiler from carrying the neighbour's rows over in registers it has not.
        if constexpr (!kAllInRegisters<T, D>) asm volatile("" ::: "memory");
        for (int k = 0; k < K; ++k) {
          total.part[k] += c * other_f.part(k);
          if constexpr (kResidual) total.part[k] += r * other_z.part(k);
        }
        for (int k = 0; k < K; ++k) {
          Vec<T> o = load(out_m + k * kWidth<T>) + c * own_f.part(k);
          if constexpr (kResidual) o += r * own_z.part(k);
          store(out_m + k * kWidth<T>, o);
        }
      }
    }
    sum = total;
    return true;
  }
};

// Any number of features: the sum is the row of `out` itself, long rows use the scratch row.
template <class T, class I, Product kProduct>
struct Edges<T, I, 0, kProduct> {
  static constexpr bool kCurvature = kProduct != Product::kGradient;
  static constexpr bool kResidual = kProduct != Product::kGaussNewton;

  const StreamArgs<T, I>& a;
  const T* f_n;
  const T* z_n;
  int64_t low;
  int64_t high;

  bool operator()(int64_t j, int64_t last, T* sum) const {
    const int64_t d = a.d;
    for (; j < last; ++j) {
      const int64_t m = static_cast<int64_t>(a.stream.neighbor[j]);
      if (m < low || m >= high) return false;
      const T* f_m = a.f + m * d;
      T* out_m = a.out + m * d;
      if constexpr (kCurvature) {
        const T* z_m = a.z + m * d;
        const T c = a.curvature[j] * (dot(d, z_n, f_m) + dot(d, f_n, z_m));
        axpy(d, c, f_m, sum);
        axpy(d, c, f_n, out_m);
        if constexpr (kResidual) {
          axpy(d, a.residual[j], z_m, sum);
          axpy(d, a.residual[j], z_n, out_m);
        }
      } else {
        axpy(d, a.residual[j], f_m, sum);
        axpy(d, a.residual[j], f_n, out_m);
      }
    }
    return true;
  }
};

// First interaction of [j, last) whose column is not below `column`; the columns ascend.
template <class I>
inline int64_t first_not_below(const I* neighbor, int64_t j, int64_t last, int64_t column) {
  while (j < last) {
    const int64_t middle = j + (last - j) / 2;
    if (static_cast<int64_t>(neighbor[middle]) < column) {
      j = middle + 1;
    } else {
      last = middle;
    }
  }
  return j;
}

// Interactions of a row in all blocks.
template <class I>
inline int64_t row_length(const Stream<I>& s, int64_t row) {
  int64_t length = 0;
  for (int64_t block = 0; block < s.n_blocks; ++block) {
    const int64_t* p = s.rowptr + block * (s.n_rows + 1) + row;
    length += p[1] - p[0];
  }
  return length;
}

// Calls body(first, last) for the interactions [j, last) of a long row between one cut and the
// next.
template <class I, class Body>
inline bool for_cuts(const Stream<I>& s, int64_t block, int64_t j, int64_t last, Body&& body) {
  const int64_t per_block = s.n_cuts / s.n_blocks;
  for (int64_t cut = block * per_block; cut < (block + 1) * per_block; ++cut) {
    const int64_t next = first_not_below(s.neighbor, j, last, s.cuts[cut + 1]);
    if (next > j && !body(j, next)) return false;
    j = next;
  }
  return j == last;  // a column beyond the block's last cut is left over
}

// Rows [begin, end) of one block.
template <class T, class I, int D, Product kProduct>
bool stream_rows(const StreamArgs<T, I>& a, int64_t block, int64_t begin, int64_t end) {
  using R = Row<T, D>;
  const Stream<I>& s = a.stream;
  const int64_t* rowptr = s.rowptr + block * (s.n_rows + 1);
  const T* start = kProduct == Product::kGradient ? a.f : a.z;  // what the ridge multiplies
  const int64_t per_block = s.n_cuts / s.n_blocks;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = s.first_row + row;
    const int64_t j = rowptr[row];
    const int64_t last = rowptr[row + 1];
    R sum = R::zero();
    if (block > 0) {
      sum = R::read(a.out + n * D);
    } else if (a.ridge != nullptr) {
      sum.add(a.ridge[n], R::read(start + n * D));
    }
    const Edges<T, I, D, kProduct> edges{a,
                                         a.f + n * D,
                                         a.z + n * D,
                                         s.cuts[block * per_block],
                                         s.cuts[(block + 1) * per_block],
                                         rowptr[end]};
    if (row_length(s, row) <= kLongRow) {
      if (!edges(j, last, sum)) return false;
    } else {
      const bool ok = for_cuts(s, block, j, last, [&](int64_t first, int64_t next) {
        R part = R::zero();
        if (!edges(first, next, part)) return false;
        sum.add(part);
        return true;
      });
      if (!ok) return false;
    }
    sum.write(a.out + n * D);
  }
  return true;
}

template <class T, class I, Product kProduct>
bool stream_rows_any(const StreamArgs<T, I>& a, int64_t block, int64_t begin, int64_t end) {
  const Stream<I>& s = a.stream;
  const int64_t d = a.d;
  const int64_t* rowptr = s.rowptr + block * (s.n_rows + 1);
  const T* start = kProduct == Product::kGradient ? a.f : a.z;
  const int64_t per_block = s.n_cuts / s.n_blocks;
  T* part = a.scratch + block * d;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = s.first_row + row;
    T* sum = a.out + n * d;
    if (block == 0) {
      set_zero(d, sum);
      if (a.ridge != nullptr) axpy(d, a.ridge[n], start + n * d, sum);
    }
    const Edges<T, I, 0, kProduct> edges{a, a.f + n * d, a.z + n * d, s.cuts[block * per_block],
                                         s.cuts[(block + 1) * per_block]};
    if (row_length(s, row) <= kLongRow) {
      if (!edges(rowptr[row], rowptr[row + 1], sum)) return false;
    } else {
      const bool ok = for_cuts(s, block, rowptr[row], rowptr[row + 1], [&](int64_t j, int64_t e) {
        set_zero(d, part);
        if (!edges(j, e, part)) return false;
        axpy(d, T(1), part, sum);
        return true;
      });
      if (!ok) return false;
    }
  }
  return true;
}

template <Product kProduct>
struct StreamKernel {
  template <class T, class I, int D>
  struct Of {
    static bool run(const StreamArgs<T, I>& a, int64_t block, int64_t begin, int64_t end) {
      if constexpr (D == 0) {
        return stream_rows_any<T, I, kProduct>(a, block, begin, end);
      } else {
        return stream_rows<T, I, D, kProduct>(a, block, begin, end);
      }
    }
  };
};

}  // namespace
