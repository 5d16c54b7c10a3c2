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

// Whether a row has no interaction in a block.
template <class I>
inline bool is_empty(const Stream<I>& s, int64_t block, int64_t row) {
  const int64_t* p = s.rowptr + block * (s.n_rows + 1) + row;
  return p[0] == p[1];
}

// A row's sum where d has no specialisation: in the output itself, parts of it in the scratch row.
template <class T>
struct AnyRow {
  int64_t d;
  T* sum;
  T* scratch;

  AnyRow fresh() const {
    set_zero(d, scratch);
    return {d, scratch, nullptr};
  }
  void add(const AnyRow& x) { axpy(d, T(1), x.sum, sum); }
};

// Adds the interactions of one row in one block to `sum`: edges(first, last, sum) at once for a
// short row, between one cut and the next for a long one. False if a call of edges was, or if a
// column is beyond the block's last cut.
template <class I, class Sum, class Edges>
inline bool sum_row(const Stream<I>& s, int64_t block, int64_t row, Sum& sum, const Edges& edges) {
  int64_t j = s.rowptr[block * (s.n_rows + 1) + row];
  const int64_t last = s.rowptr[block * (s.n_rows + 1) + row + 1];
  if (row_length(s, row) <= kLongRow) return edges(j, last, sum);
  const int64_t per_block = s.n_cuts / s.n_blocks;
  for (int64_t cut = block * per_block; cut < (block + 1) * per_block; ++cut) {
    const int64_t next = first_not_below(s.neighbor, j, last, s.cuts[cut + 1]);
    if (next > j) {
      auto part = sum.fresh();
      if (!edges(j, next, part)) return false;
      sum.add(part);
    }
    j = next;
  }
  return j == last;
}

// What the edges of a row may touch.
struct Bounds {
  int64_t low;  // columns of the block
  int64_t high;
  int64_t limit;  // end of the interactions that may be prefetched
};

template <class I>
inline Bounds bounds(const Stream<I>& s, int64_t block, int64_t end) {
  const int64_t per_block = s.n_cuts / s.n_blocks;
  return {s.cuts[block * per_block], s.cuts[(block + 1) * per_block],
          s.rowptr[block * (s.n_rows + 1) + end]};
}

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
template <class S, int D, bool kCopied>
struct Operand {
  Row<Value<S>, D> row;
  explicit Operand(const S* p) : row(Row<Value<S>, D>::read(p)) {}
  Vec<Value<S>> part(int k) const { return row.part[k]; }
};
template <class S, int D>
struct Operand<S, D, false> {
  const S* p;
  explicit Operand(const S* place) : p(place) {}
  Vec<Value<S>> part(int k) const { return load(p + k * kWidth<Value<S>>); }
};

template <class T, int K, class X, class Y>
inline Vec<T> products(const X& x, const Y& y) {
  Vec<T> sum = x.part(0) * y.part(0);
  for (int k = 1; k < K; ++k) sum += x.part(k) * y.part(k);
  return sum;
}

template <class S, class T, class I, int D, Product kProduct>
struct Edges {
  using R = Row<T, D>;
  using Own = Operand<S, D, kOwnInRegisters<T, D>>;
  using Other = Operand<S, D, kAllInRegisters<T, D>>;
  static constexpr bool kCurvature = kProduct != Product::kGradient;
  static constexpr bool kResidual = kProduct != Product::kGaussNewton;
  static constexpr int K = R::kVectors;

  const StreamArgs<S, T, I>& a;
  int64_t n;
  const Bounds& in;

  // The interactions [j, last) of row n; adds to `sum`. False for a column outside the block.
  bool operator()(int64_t j, const int64_t last, R& sum) const {
    // Locals: the stores below could change a member, for all the compiler knows.
    const I* const neighbor = a.stream.neighbor;
    const T* const residual = a.residual;
    const T* const curvature = a.curvature;
    const S* const f = a.f;
    const S* const z = a.z;
    T* const out = a.out;
    const int64_t low = in.low, high = in.high, limit = in.limit;
    const Own own_f(f + n * D);
    const Own own_z(z + n * D);
    R total = sum;
    for (; j < last; ++j) {
      if (j + kStreamDistance < limit) {
        const I ahead = neighbor[j + kStreamDistance];
        prefetch_row(f, ahead, D);
        if constexpr (kCurvature) prefetch_row(z, ahead, D);
        prefetch_row(out, ahead, D);
      }
      const int64_t m = static_cast<int64_t>(neighbor[j]);
      if (m < low || m >= high) return false;
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

// Any number of features.
template <class S, class T, class I, Product kProduct>
struct Edges<S, T, I, 0, kProduct> {
  static constexpr bool kCurvature = kProduct != Product::kGradient;
  static constexpr bool kResidual = kProduct != Product::kGaussNewton;

  const StreamArgs<S, T, I>& a;
  int64_t n;
  const Bounds& in;

  bool operator()(int64_t j, int64_t last, AnyRow<T>& row) const {
    const int64_t d = a.d;
    const S* f_n = a.f + n * d;
    const S* z_n = a.z + n * d;
    for (; j < last; ++j) {
      const int64_t m = static_cast<int64_t>(a.stream.neighbor[j]);
      if (m < in.low || m >= in.high) return false;
      const S* f_m = a.f + m * d;
      T* out_m = a.out + m * d;
      if constexpr (kCurvature) {
        const S* z_m = a.z + m * d;
        const T c = a.curvature[j] * (dot(d, z_n, f_m) + dot(d, f_n, z_m));
        axpy(d, c, f_m, row.sum);
        axpy(d, c, f_n, out_m);
        if constexpr (kResidual) {
          axpy(d, a.residual[j], z_m, row.sum);
          axpy(d, a.residual[j], z_n, out_m);
        }
      } else {
        axpy(d, a.residual[j], f_m, row.sum);
        axpy(d, a.residual[j], f_n, out_m);
      }
    }
    return true;
  }
};

// The columns' rows hold the ridge's part when the rows begin to pass.
template <class S, class T, class I>
void start_columns(const StreamArgs<S, T, I>& a, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m) {
    set_zero(a.d, a.out + m * a.d);
    if (a.ridge != nullptr) axpy(a.d, a.ridge[m], a.z + m * a.d, a.out + m * a.d);
  }
}

// Rows [begin, end) of one block.
template <class S, Product kProduct>
struct StreamRows {
  template <class T, class I, int D>
  struct Of {
    static bool run(const StreamArgs<S, T, I>& a, int64_t block, int64_t begin, int64_t end) {
      const Stream<I>& s = a.stream;
      const Bounds in = bounds(s, block, end);
      for (int64_t row = begin; row < end; ++row) {
        if (block > 0 && is_empty(s, block, row)) continue;
        const int64_t n = s.first_row + row;
        const Edges<S, T, I, D, kProduct> edges{a, n, in};
        if constexpr (D == 0) {
          AnyRow<T> sum{a.d, a.out + n * a.d, a.scratch + block * a.d};
          if (block == 0) start_columns(a, n, n + 1);
          if (!sum_row(s, block, row, sum, edges)) return false;
        } else {
          Row<T, D> sum = Row<T, D>::zero();
          if (block > 0) {
            sum = Row<T, D>::read(a.out + n * D);
          } else if (a.ridge != nullptr) {
            sum.add(a.ridge[n], Row<T, D>::read(a.z + n * D));
          }
          if (!sum_row(s, block, row, sum, edges)) return false;
          sum.write(a.out + n * D);
        }
      }
      return true;
    }
  };
};

}  // namespace
