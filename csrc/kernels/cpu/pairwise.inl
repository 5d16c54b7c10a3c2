// Pairwise loss, equation (3): derivatives of each triple, and gradient, Hessian-vector and
// Gauss-Newton products by gathering, in two phases. A row has one writer in each of them:
//
//   users' rows   delta = <z_u, f_i - f_j> + <f_u, z_i - z_j>;  c = w delta, kept for the items
//                 out_u += c (f_i - f_j) + r (z_i - z_j)
//   items' rows   out_i += c f_u + r z_u  where i is the positive,  -= where it is the negative
//
// Regime: memory bound, four gathered rows per triple, then two for each of its two items. What is
// stored per triple is c alone. A pass over the triples that writes the items' rows where they lie
// would need threads to own blocks of both items at once.
// Deterministic: entries in stored order, segments of a fixed length.

namespace {

// Any number of features: <x, p - q>, and y += a (p - q).
template <class T>
inline T dot_difference(int64_t d, const T* x, const T* p, const T* q) {
  Vec<T> sum = {};
  T tail = 0;
  int64_t k = 0;
  for (; k + kWidth<T> <= d; k += kWidth<T>) sum += load(x + k) * (load(p + k) - load(q + k));
  for (; k < d; ++k) tail += x[k] * (p[k] - q[k]);
  return horizontal_sum<T>(sum) + tail;
}

template <class T>
inline void axpy_difference(int64_t d, T a, const T* p, const T* q, T* y) {
  int64_t k = 0;
  for (; k + kWidth<T> <= d; k += kWidth<T>) {
    store(y + k, load(y + k) + a * (load(p + k) - load(q + k)));
  }
  for (; k < d; ++k) y[k] += a * (p[k] - q[k]);
}

template <class T, class I>
bool pairwise_derivatives(const PairwiseDerivativeArgs<T, I>& a, int64_t begin, int64_t end) {
  const auto score_of = [&a](int64_t t, T& margin, T&) {
    const I u = a.user[t], i = a.positive[t], j = a.negative[t];
    if (!in_range(u, a.n_nodes) || !in_range(i, a.n_nodes) || !in_range(j, a.n_nodes)) return false;
    margin =
        dot_difference(a.d, a.f + int64_t(u) * a.d, a.f + int64_t(i) * a.d, a.f + int64_t(j) * a.d);
    return true;
  };
  return derivatives_of<T>(a, begin, end, score_of,
                           [](T margin, T) { return pairwise_loss(margin); });
}

// The row p - q of D features: a copy in registers, or the places it is read from each time.
template <class T, int D, bool kCopied>
struct Difference {
  Row<T, D> row;
  Difference(const T* p, const T* q) : row(Row<T, D>::read(p)) {
    row.add(T(-1), Row<T, D>::read(q));
  }
  Vec<T> part(int k) const { return row.part[k]; }
};
template <class T, int D>
struct Difference<T, D, false> {
  const T* p;
  const T* q;
  Difference(const T* p_place, const T* q_place) : p(p_place), q(q_place) {}
  Vec<T> part(int k) const { return load(p + k * kWidth<T>) - load(q + k * kWidth<T>); }
};

template <class T, class I, int D, Product kProduct>
bool pairwise_users(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
  using R = Row<T, D>;
  using Own = Operand<T, D, kOwnInRegisters<T, D>>;
  using Other = Difference<T, D, kAllInRegisters<T, D>>;
  constexpr bool kCurvature = kProduct != Product::kGradient;
  constexpr bool kResidual = kProduct != Product::kGaussNewton;
  constexpr int K = R::kVectors;
  const int64_t* const rowptr = a.triples.rowptr;
  const I* const positive = a.triples.neighbor;
  const I* const negative = a.triples.other;
  const int64_t n_nodes = a.triples.n_nodes;
  const int64_t limit = rowptr[end];
  const T* const f = a.f;
  const T* const z = a.z;
  for (int64_t n = begin; n < end; ++n) {
    const Own own_f(f + n * D);
    const Own own_z(z + n * D);
    R sum = R::zero();
    const bool ok = for_segments(rowptr[n], rowptr[n + 1], [&](int64_t t, int64_t last) {
      R total = R::zero();
      for (; t < last; ++t) {
        if (t + kPrefetchDistance < limit) {
          const I i = positive[t + kPrefetchDistance];
          const I j = negative[t + kPrefetchDistance];
          prefetch_row(f, i, D);
          prefetch_row(f, j, D);
          if constexpr (kCurvature) {
            prefetch_row(z, i, D);
            prefetch_row(z, j, D);
          }
        }
        if (!in_range(positive[t], n_nodes) || !in_range(negative[t], n_nodes)) return false;
        const int64_t i = int64_t(positive[t]) * D;
        const int64_t j = int64_t(negative[t]) * D;
        const Other v(f + i, f + j);
        const T r = kResidual ? a.residual[t] : T(0);
        if constexpr (!kCurvature) {
          for (int k = 0; k < K; ++k) total.part[k] += r * v.part(k);
        } else {
          const Other y(z + i, z + j);
          const Vec<T> delta = products<T, K>(own_z, v) + products<T, K>(own_f, y);
          const T c = a.curvature[t] * horizontal_sum<T>(delta);
          a.change[t] = c;
          // Keeps the compiler from carrying the items' rows over in registers it has not.
          if constexpr (!kAllInRegisters<T, D>) asm volatile("" ::: "memory");
          for (int k = 0; k < K; ++k) {
            total.part[k] += c * v.part(k);
            if constexpr (kResidual) total.part[k] += r * y.part(k);
          }
        }
      }
      sum.add(total);
      return true;
    });
    if (!ok) return false;
    if (a.ridge != nullptr) sum.add(a.ridge[n], R::read(z + n * D));
    sum.write(a.out + n * D);
  }
  return true;
}

template <class T, class I, Product kProduct>
bool pairwise_users_any(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
  const Triples<I>& s = a.triples;
  const int64_t d = a.d;
  for (int64_t n = begin; n < end; ++n) {
    const T* f_n = a.f + n * d;
    const T* z_n = a.z + n * d;
    const bool ok = for_tiles(d, [&](int64_t tile, int64_t n_features) {
      T* out = a.out + n * d + tile;
      set_zero(n_features, out);
      if (a.ridge != nullptr) axpy(n_features, a.ridge[n], z_n + tile, out);
      return for_segments(s.rowptr[n], s.rowptr[n + 1], [&](int64_t t, int64_t last) {
        T part[kTile];
        set_zero(n_features, part);
        for (; t < last; ++t) {
          if (!in_range(s.neighbor[t], s.n_nodes) || !in_range(s.other[t], s.n_nodes)) return false;
          const int64_t i = int64_t(s.neighbor[t]) * d;
          const int64_t j = int64_t(s.other[t]) * d;
          T c;
          if constexpr (kProduct == Product::kGradient) {
            c = a.residual[t];
          } else {
            if (tile == 0) {  // the other tiles find it there
              a.change[t] = a.curvature[t] * (dot_difference(d, z_n, a.f + i, a.f + j) +
                                              dot_difference(d, f_n, a.z + i, a.z + j));
            }
            c = a.change[t];
          }
          axpy_difference(n_features, c, a.f + i + tile, a.f + j + tile, part);
          if constexpr (kProduct == Product::kHvp) {
            axpy_difference(n_features, a.residual[t], a.z + i + tile, a.z + j + tile, part);
          }
        }
        axpy(n_features, T(1), part, out);
        return true;
      });
    });
    if (!ok) return false;
  }
  return true;
}

// An entry of an item's row: one of its two ids is there, the other is -1.
template <class I>
struct ItemEntry {
  int64_t user;
  int64_t triple;
  bool positive;

  // False if it is not one, or names what does not exist.
  bool read(const Triples<I>& s, int64_t entry) {
    const int64_t p = s.neighbor[entry];
    const int64_t q = s.other[entry];
    positive = p >= 0;
    user = positive ? p : q;
    triple = s.triple[entry - s.n_triples];
    return (positive ? q : p) == -1 && in_range(user, s.n_nodes) && in_range(triple, s.n_triples);
  }
};

template <class T, class I, int D, Product kProduct>
bool pairwise_items(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
  using R = Row<T, D>;
  constexpr bool kExact = kProduct == Product::kHvp;
  const Triples<I>& s = a.triples;
  const T* const change = kProduct == Product::kGradient ? a.residual : a.change;
  const int64_t limit = s.rowptr[end];
  for (int64_t n = begin; n < end; ++n) {
    R sum = R::zero();
    const bool ok = for_segments(s.rowptr[n], s.rowptr[n + 1], [&](int64_t j, int64_t last) {
      R part = R::zero();
      for (; j < last; ++j) {
        // What is read per entry is two rows where a user's is four: twice as far ahead.
        if (j + kStreamDistance < limit) {
          ItemEntry<I> ahead;
          ahead.read(s, j + kStreamDistance);
          prefetch_row(change, ahead.triple, 1);
          prefetch_row(a.f, ahead.user, D);
          if constexpr (kExact) {
            prefetch_row(a.residual, ahead.triple, 1);
            prefetch_row(a.z, ahead.user, D);
          }
        }
        ItemEntry<I> entry;
        if (!entry.read(s, j)) return false;
        const T sign = entry.positive ? T(1) : T(-1);
        part.add(sign * change[entry.triple], R::read(a.f + entry.user * D));
        if constexpr (kExact) {
          part.add(sign * a.residual[entry.triple], R::read(a.z + entry.user * D));
        }
      }
      sum.add(part);
      return true;
    });
    if (!ok) return false;
    if (a.ridge != nullptr) sum.add(a.ridge[n], R::read(a.z + n * D));
    sum.write(a.out + n * D);
  }
  return true;
}

template <class T, class I, Product kProduct>
bool pairwise_items_any(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
  const Triples<I>& s = a.triples;
  const int64_t d = a.d;
  const T* const change = kProduct == Product::kGradient ? a.residual : a.change;
  for (int64_t n = begin; n < end; ++n) {
    const bool ok = for_tiles(d, [&](int64_t tile, int64_t n_features) {
      T* out = a.out + n * d + tile;
      set_zero(n_features, out);
      if (a.ridge != nullptr) axpy(n_features, a.ridge[n], a.z + n * d + tile, out);
      return for_segments(s.rowptr[n], s.rowptr[n + 1], [&](int64_t j, int64_t last) {
        T part[kTile];
        set_zero(n_features, part);
        for (; j < last; ++j) {
          ItemEntry<I> entry;
          if (!entry.read(s, j)) return false;
          const T sign = entry.positive ? T(1) : T(-1);
          const int64_t u = entry.user * d + tile;
          axpy(n_features, sign * change[entry.triple], a.f + u, part);
          if constexpr (kProduct == Product::kHvp) {
            axpy(n_features, sign * a.residual[entry.triple], a.z + u, part);
          }
        }
        axpy(n_features, T(1), part, out);
        return true;
      });
    });
    if (!ok) return false;
  }
  return true;
}

template <Product kProduct>
struct PairwiseUsers {
  template <class T, class I, int D>
  struct Of {
    static bool run(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
      if constexpr (D == 0) {
        return pairwise_users_any<T, I, kProduct>(a, begin, end);
      } else {
        return pairwise_users<T, I, D, kProduct>(a, begin, end);
      }
    }
  };
};

template <Product kProduct>
struct PairwiseItems {
  template <class T, class I, int D>
  struct Of {
    static bool run(const PairwiseArgs<T, I>& a, int64_t begin, int64_t end) {
      if constexpr (D == 0) {
        return pairwise_items_any<T, I, kProduct>(a, begin, end);
      } else {
        return pairwise_items<T, I, D, kProduct>(a, begin, end);
      }
    }
  };
};

}  // namespace
