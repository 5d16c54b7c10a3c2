// Pairwise loss on the GPU, equations (3), (5) and (6): gradient, Hessian-vector and Gauss-Newton
// products over triples by node. An entry of a user's row is a triple (positive, negative); one of
// an item's row is (user, -1) where it is the positive, (-1, user) where it is the negative.
//
//   gradient      every row at once: the sum of r (f_neighbor - f_other)
//   users' rows   delta = <z_u, f_i - f_j> + <f_u, z_i - z_j>;  c = w delta, kept for the items
//                 out_u += c (f_i - f_j) + r (z_i - z_j)
//   items' rows   out_i += c f_u + r z_u  where i is the positive,  -= where it is the negative
//
// Regime: memory bound, four gathered rows per triple, then two for each of its two items. A user's
// entry is visited once, in a segment or in its row, and makes its c there. The order of the sums
// is that of rows.cuh.
//
// The host does not know where the users' rows end: a row that ends by entry T and holds any is a
// user's. What leads out of bounds, or is not an entry of its kind, poisons its row with NaN, and a
// user's entry also the rows of its items.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace ifru::cuda {

template <class T, class I>
struct TripleRows : RowSet<T> {
  const I* neighbor;   // [3T] node ids or -1
  const I* other;      // [3T] node ids or -1
  const I* triple;     // [2T] the triple of each of the items' entries
  const T* residual;   // [T]; null for the Gauss-Newton product
  const T* curvature;  // [T]; not read by the gradient
  const T* f;          // [N, d]
  const T* z;          // [N, d], what the ridge multiplies; f itself for the gradient
  const T* ridge;      // [N] or null
  T* change;           // [T] c, NaN before: what no row visits stays so; not for the gradient
  T* out;              // [N, d]
  int64_t n_triples;

  // An entry of an item's row, with the sign of its part in the sum; the ids are -1 if it is none.
  struct ItemEntry {
    int64_t user;
    int64_t triple;
    T sign;
  };

  __device__ __forceinline__ bool is_users(const RowRange& range) const {
    return range.valid && range.begin < n_triples && range.end <= n_triples;
  }
  __device__ __forceinline__ ItemEntry item_entry(int64_t j) const {
    const bool positive = neighbor[j] >= 0;
    const I none = positive ? other[j] : neighbor[j];
    const int64_t user = checked_id(positive ? neighbor[j] : other[j], this->n_rows);
    const int64_t t = j < n_triples ? -1 : checked_id(triple[j - n_triples], n_triples);
    if (none != I(-1) || user < 0 || t < 0) return {-1, -1, T(NAN)};
    return {user, t, positive ? T(1) : T(-1)};
  }
  // x_i - x_j; zeros for a negative id.
  template <class Lay>
  __device__ __forceinline__ Pack<T, Lay::V> read_difference(const T* x, int64_t i, int64_t j,
                                                             int64_t column) const {
    auto difference = read_pack<Lay>(x, i, this->d, column);
    difference.add(T(-1), read_pack<Lay>(x, j, this->d, column));
    return difference;
  }
  template <class Lay>
  __device__ __forceinline__ void write(int64_t n, int64_t column, Pack<T, Lay::V> sum) const {
    const int64_t k = n * this->d + column;
    if (ridge != nullptr) sum.add(ridge[n], Pack<T, Lay::V>::read(z + k));
    sum.write(out + k);
  }
};

template <class T, class I>
struct PairwiseGradient : TripleRows<T, I> {
  using Storage = T;
  static constexpr int kUnroll = 2;
  static constexpr int kResident = 8;
  static constexpr bool kDot = false;
  static constexpr const char* kName = "pairwise_gradient";

  template <class Lay>
  struct Row {};
  template <class Lay>
  struct Entry {
    Pack<T, Lay::V> v;
    T r;
  };

  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t, int64_t) const {
    return {};
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    if (j >= this->n_triples) {
      const auto entry = this->item_entry(j);
      return {read_pack<Lay>(this->f, entry.user, this->d, column),
              entry.triple < 0 ? T(NAN) : entry.sign * this->residual[entry.triple]};
    }
    const int64_t i = checked_id(this->neighbor[j], this->n_rows);
    const int64_t k = checked_id(this->other[j], this->n_rows);
    return {this->template read_difference<Lay>(this->f, i, k, column),
            i < 0 || k < 0 ? T(NAN) : this->residual[j]};
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T,
                                      Pack<T, Lay::V>& sum) const {
    sum.add(entry.r, entry.v);
  }
};

template <class T, class I>
struct PairwiseUsers : TripleRows<T, I> {
  using Storage = T;
  static constexpr int kUnroll = 2;
  static constexpr int kResident = 5;  // two triples' four rows want 96 registers
  static constexpr bool kDot = true;
  static constexpr const char* kName = "pairwise_users";

  // What is taken in tiles is read when it is wanted: it has no place in registers.
  template <class Lay, bool kTiled = Lay::kTiled>
  struct Row {
    Pack<T, Lay::V> f, z;
  };
  template <class Lay>
  struct Row<Lay, true> {
    int64_t n;
  };
  template <class Lay, bool kTiled = Lay::kTiled>
  struct Entry {
    T c, r;
    int64_t t;
    bool is_first;  // of the columns: the lane that keeps c
    Pack<T, Lay::V> v, y;
  };
  template <class Lay>
  struct Entry<Lay, true> {
    T c, r;
    int64_t t;
    int64_t i, j, column;
  };

  __device__ __forceinline__ bool takes(const RowRange& range) const {
    return this->is_users(range);
  }
  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t n, int64_t column) const {
    if constexpr (Lay::kTiled) {
      return {n};
    } else {
      return {read_pack<Lay>(this->f, n, this->d, column),
              read_pack<Lay>(this->z, n, this->d, column)};
    }
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t t, int64_t column) const {
    const int64_t i = checked_id(this->neighbor[t], this->n_rows);
    const int64_t j = checked_id(this->other[t], this->n_rows);
    const T c = i < 0 || j < 0 ? T(NAN) : this->curvature[t];
    const T r = this->residual == nullptr ? T(0) : this->residual[t];
    if constexpr (Lay::kTiled) {
      return {c, r, t, i, j, column};
    } else {
      return {c,
              r,
              t,
              column == 0,
              this->template read_difference<Lay>(this->f, i, j, column),
              this->template read_difference<Lay>(this->z, i, j, column)};
    }
  }
  template <class Lay>
  __device__ __forceinline__ T dot(const Row<Lay>& row, const Entry<Lay>& entry) const {
    if constexpr (Lay::kTiled) {
      T sum = 0;
#pragma unroll 1
      for (int64_t k = threadIdx.x % Lay::L * Lay::V; k < this->d; k += Lay::kTile) {
        const auto difference = [&](const T* x) {
          return this->template read_difference<Lay>(x, entry.i, entry.j, k);
        };
        sum = add_dot(sum, read_pack<Lay>(this->z, row.n, this->d, k), difference(this->f));
        sum = add_dot(sum, read_pack<Lay>(this->f, row.n, this->d, k), difference(this->z));
      }
      return sum;
    } else {
      return add_dot(add_dot(T(0), row.z, entry.v), row.f, entry.y);
    }
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T delta,
                                      Pack<T, Lay::V>& sum) const {
    const T c = entry.c * delta;
    if constexpr (Lay::kTiled) {
      if (entry.column == 0) this->change[entry.t] = c;
      const auto difference = [&](const T* x) {
        return this->template read_difference<Lay>(x, entry.i, entry.j, entry.column);
      };
      sum.add(c, difference(this->f));
      if (this->residual != nullptr) sum.add(entry.r, difference(this->z));
    } else {
      if (entry.is_first) this->change[entry.t] = c;
      sum.add(c, entry.v);
      if (this->residual != nullptr) sum.add(entry.r, entry.y);
    }
  }
};

template <class T, class I>
struct PairwiseItems : TripleRows<T, I> {
  using Storage = T;
  static constexpr int kUnroll = 2;
  static constexpr int kResident = 6;
  static constexpr bool kDot = false;
  static constexpr const char* kName = "pairwise_items";

  template <class Lay>
  struct Row {};
  template <class Lay>
  struct Entry {
    Pack<T, Lay::V> f, z;  // of the user
    T c, r;
  };

  __device__ __forceinline__ bool takes(const RowRange& range) const {
    return !this->is_users(range);
  }
  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t, int64_t) const {
    return {};
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    const auto at = this->item_entry(j);
    const bool exact = this->residual != nullptr;
    return {read_pack<Lay>(this->f, at.user, this->d, column),
            read_pack<Lay>(this->z, exact ? at.user : -1, this->d, column),
            at.triple < 0 ? T(NAN) : at.sign * this->change[at.triple],
            at.triple < 0 || !exact ? T(0) : at.sign * this->residual[at.triple]};
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T,
                                      Pack<T, Lay::V>& sum) const {
    sum.add(entry.c, entry.f);
    if (this->residual != nullptr) sum.add(entry.r, entry.z);
  }
};

template <class T, class I>
bool are_full_packs(const TripleRows<T, I>& rows) {
  return are_full_packs<T>(rows.d, rows.f, rows.z, rows.out, rows.partial);
}

// `rows.partial` has n_segments(3T) rows. The bits do not depend on `max_blocks`.
template <class T, class I>
void pairwise_gradient(const TripleRows<T, I>& rows, cudaStream_t stream,
                       int64_t max_blocks = kMaxBlocks) {
  dispatch_layout<T>(rows.d, are_full_packs(rows), [&](auto layout) {
    launch_rows<decltype(layout)>(PairwiseGradient<T, I>{rows}, stream, max_blocks);
  });
}

// The Hessian-vector product, or the Gauss-Newton product where there is no residual.
template <class T, class I>
void pairwise_product(const TripleRows<T, I>& rows, cudaStream_t stream,
                      int64_t max_blocks = kMaxBlocks) {
  PairwiseUsers<T, I> users{rows};
  users.n_entries = rows.n_triples;
  dispatch_layout<T>(rows.d, are_full_packs(rows), [&](auto layout) {
    launch_rows<decltype(layout)>(users, stream, max_blocks);
    launch_rows<decltype(layout)>(PairwiseItems<T, I>{rows}, stream, max_blocks);
  });
}

}  // namespace ifru::cuda
