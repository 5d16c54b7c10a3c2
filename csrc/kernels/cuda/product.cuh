// Gradient and curvature products on the GPU, equations (5) and (6), for all nodes or for some
// rows.
//
// Every interaction stands at both its ends and each row collects what its own entries add: there
// is one writer per row. Regime: memory bound, d * sizeof(S) gathered bytes per entry for the
// gradient and twice as many for a product. Where a row has more than one tile, a product reads it
// once more for each tile, from the cache. The order of the sums is that of rows.cuh.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace ifru::cuda {

// Equation (5): out_n = sum_j residual_j f_m + ridge_n f_n.
template <class T, class I>
struct Gradient : RowSet<T> {
  using Storage = T;
  static constexpr int kUnroll = 4;
  static constexpr int kResident = 8;
  static constexpr bool kDot = false;
  static constexpr const char* kName = "gradient";

  const I* neighbor;  // [2E]
  const T* residual;  // [2E]
  const T* f;         // [N, d]
  const T* ridge;     // [N] or null
  T* out;             // [N, d]

  template <class Lay>
  struct Row {};
  template <class Lay>
  struct Entry {
    Pack<T, Lay::V> f;
    T r;
  };

  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t, int64_t) const {
    return {};
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    const int64_t m = checked_id(neighbor[j], this->n_rows);
    return {read_pack<Lay>(f, m, this->d, column), m < 0 ? T(NAN) : residual[j]};
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T,
                                      Pack<T, Lay::V>& sum) const {
    sum.add(entry.r, entry.f);
  }
  template <class Lay>
  __device__ __forceinline__ void write(int64_t n, int64_t column, Pack<T, Lay::V> sum) const {
    const int64_t k = n * this->d + column;
    if (ridge != nullptr) sum.add(ridge[n], Pack<T, Lay::V>::read(f + k));
    sum.write(out + k);
  }
};

// Equation (6): delta_j = <z_n, f_m> + <f_n, z_m>;
// out_n = sum_j (curvature_j delta_j f_m + residual_j z_m) + ridge_n z_n.
// On some rows S, z is zero outside of them and has their places: z_m is that of `local`.
template <class S, class T, class I>
struct Product : RowSet<T> {
  using Storage = S;
  static constexpr int kUnroll = 2;
  // As many as do without spills on every architecture: a pack of 16 bits is twice as many numbers.
  static constexpr int kResident = sizeof(S) == 2 ? 4 : sizeof(S) == 4 ? 6 : 5;
  static constexpr bool kDot = true;
  static constexpr const char* kName = "product";

  const I* rows;       // [R] node ids; null where the rows are all nodes
  const I* neighbor;   // [entries] node ids
  const I* local;      // [entries] the neighbour's row, negative if it has none; null with `rows`
  const T* residual;   // [entries]; null for the Gauss-Newton product
  const T* curvature;  // [entries]
  const S* f;          // [N, d]
  const S* z;          // [R, d]
  const T* ridge;      // [R] or null
  T* out;              // [R, d]
  int64_t n_nodes;

  // What is taken in tiles is read when it is wanted: it has no place in registers.
  template <class Lay, bool kTiled = Lay::kTiled>
  struct Row {
    Pack<S, Lay::V> f, z;
  };
  template <class Lay>
  struct Row<Lay, true> {
    int64_t node, n;
  };
  template <class Lay, bool kTiled = Lay::kTiled>
  struct Entry {
    T c, r;
    Pack<S, Lay::V> f, z;
  };
  template <class Lay>
  struct Entry<Lay, true> {
    T c, r;
    int64_t node, n, column;
  };

  __device__ __forceinline__ int64_t node_of(int64_t n) const {
    return rows == nullptr ? n : checked_id(rows[n], n_nodes);
  }

  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t n, int64_t column) const {
    const int64_t node = node_of(n);
    if constexpr (Lay::kTiled) {
      return {node, n};
    } else {
      return {read_pack<Lay>(f, node, this->d, column), read_pack<Lay>(z, n, this->d, column)};
    }
  }

  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    int64_t m = checked_id(neighbor[j], n_nodes);
    int64_t n = local == nullptr ? m : static_cast<int64_t>(local[j]);
    T c = curvature[j];
    if (m < 0 || n >= this->n_rows) {
      m = n = -1;
      c = T(NAN);
    }
    const T r = residual != nullptr && n >= 0 ? residual[j] : T(0);
    if constexpr (Lay::kTiled) {
      return {c, r, m, n, column};
    } else {
      return {c, r, read_pack<Lay>(f, m, this->d, column), read_pack<Lay>(z, n, this->d, column)};
    }
  }

  template <class Lay>
  __device__ __forceinline__ T dot(const Row<Lay>& row, const Entry<Lay>& entry) const {
    if constexpr (Lay::kTiled) {
      T sum = 0;
#pragma unroll 1
      for (int64_t k = threadIdx.x % Lay::L * Lay::V; k < this->d; k += Lay::kTile) {
        const auto pack = [&](const S* x, int64_t n) { return read_pack<Lay>(x, n, this->d, k); };
        sum = add_dot(sum, pack(z, row.n), pack(f, entry.node));
        sum = add_dot(sum, pack(f, row.node), pack(z, entry.n));
      }
      return sum;
    } else {
      return add_dot(add_dot(T(0), row.z, entry.f), row.f, entry.z);
    }
  }

  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T delta,
                                      Pack<T, Lay::V>& sum) const {
    if constexpr (Lay::kTiled) {
      sum.add(entry.c * delta, read_pack<Lay>(f, entry.node, this->d, entry.column));
      if (residual != nullptr) {
        sum.add(entry.r, read_pack<Lay>(z, entry.n, this->d, entry.column));
      }
    } else {
      sum.add(entry.c * delta, entry.f);
      if (residual != nullptr) sum.add(entry.r, entry.z);
    }
  }

  template <class Lay>
  __device__ __forceinline__ void write(int64_t n, int64_t column, Pack<T, Lay::V> sum) const {
    const int64_t k = n * this->d + column;
    if (ridge != nullptr) sum.add(ridge[n], Pack<S, Lay::V>::read(z + k));
    if (node_of(n) < 0) sum = Pack<T, Lay::V>::filled(T(NAN));
    sum.write(out + k);
  }
};

// Equation (5). p.partial may be null where no row is long. The bits do not depend on `max_blocks`.
template <class T, class I>
void gradient(const Gradient<T, I>& p, cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  const bool full_packs = are_full_packs<T>(p.d, p.f, p.out, p.partial);
  dispatch_layout<T>(p.d, full_packs,
                     [&](auto layout) { launch_rows<decltype(layout)>(p, stream, max_blocks); });
}

// Equation (6), likewise.
template <class S, class T, class I>
void product(const Product<S, T, I>& p, cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  const bool full_packs = are_full_packs<S>(p.d, p.f, p.z, p.out, p.partial);
  dispatch_layout<S>(p.d, full_packs,
                     [&](auto layout) { launch_rows<decltype(layout)>(p, stream, max_blocks); });
}

}  // namespace ifru::cuda
