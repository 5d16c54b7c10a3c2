// Propagation on the GPU, equation (1): one Horner step, and the scaling that starts the recursion.
//
// Regime: memory bound, d * sizeof(T) gathered bytes per adjacency entry for d flops. The order of
// the sums is that of rows.cuh.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace ifru::cuda {

// out = alpha x + s sum_m scaled_m, times s for the inner steps, plus ridge o v.
template <class T, class I>
struct Propagation : RowSet<T> {
  using Storage = T;
  static constexpr int kUnroll = 4;
  // Half of the warps that a multiprocessor can hold: 64 registers to a thread. Without it ptxas
  // takes fewer, and spills.
  static constexpr int kResident = 8;
  static constexpr bool kDot = false;
  static constexpr const char* kName = "propagate";

  const I* neighbor;         // [2E]
  const T* inv_sqrt_degree;  // [N], s
  const T* x;                // [N, d]
  const T* scaled;           // [N, d], S y of the step before
  const T* ridge;            // [N] or null
  const T* v;                // [N, d], read when ridge is not null
  T* out;                    // [N, d]
  T alpha;
  bool scale_output;  // true for the inner steps, whose result is gathered again

  template <class Lay>
  struct Row {};
  template <class Lay>
  using Entry = Pack<T, Lay::V>;

  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t, int64_t) const {
    return {};
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    const int64_t m = checked_id(neighbor[j], this->n_rows);
    return m < 0 ? Entry<Lay>::filled(T(NAN)) : read_pack<Lay>(scaled, m, this->d, column);
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T,
                                      Pack<T, Lay::V>& sum) const {
    sum.add(entry);
  }
  template <class Lay>
  __device__ __forceinline__ void write(int64_t n, int64_t column, Pack<T, Lay::V> sum) const {
    const int64_t k = n * this->d + column;
    const T s = inv_sqrt_degree[n];
    sum.scale(s);
    sum.add(alpha, Pack<T, Lay::V>::read(x + k));
    if (scale_output) sum.scale(s);
    if (ridge != nullptr) sum.add(ridge[n], Pack<T, Lay::V>::read(v + k));
    sum.write(out + k);
  }
};

// out = factor * s o x (s null: factor * x), plus ridge o v where given. A team per row.
template <class T, class Lay>
__global__ void __launch_bounds__(kRowsBlock)
    scale_rows(T factor, const T* s, const T* x, const T* ridge, const T* v, int64_t n_nodes,
               int64_t d, T* out) {
  using P = Pack<T, Lay::V>;
  constexpr int kRows = kRowsBlock / Lay::L;
  const int64_t first = int64_t(blockIdx.x) * kRows + threadIdx.x / Lay::L;
  for (int64_t n = first; n < n_nodes; n += int64_t(gridDim.x) * kRows) {
    const T left = s == nullptr ? factor : factor * s[n];
    for_tiles<Lay>(d, [&](int64_t tile) {
      const int64_t column = tile + threadIdx.x % Lay::L * Lay::V;
      if (column >= d) return;
      P result = P::read(x + n * d + column);
      result.scale(left);
      if (ridge != nullptr) result.add(ridge[n], P::read(v + n * d + column));
      result.write(out + n * d + column);
    });
  }
}

// All layers. `alpha` [L + 1] lies on the host; `scratch` [N, d] may be null when L = 0, and so may
// p.partial. The bits do not depend on `max_blocks`.
template <class T, class I>
void propagate(Propagation<T, I> p, const double* alpha, int64_t n_layers, T* scratch,
               cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (p.n_rows == 0) return;
  const bool full_packs = are_full_packs<T>(p.d, p.x, p.v, p.out, scratch, p.partial);
  const T* ridge = p.ridge;
  dispatch_layout<T>(p.d, full_packs, [&](auto layout) {
    using Lay = decltype(layout);
    const int64_t scale_blocks = n_blocks(p.n_rows, kRowsBlock / Lay::L, max_blocks);
    if (n_layers == 0) {
      launch("scale_rows", scale_rows<T, Lay>, scale_blocks, kRowsBlock, stream,
             static_cast<T>(alpha[0]), nullptr, p.x, ridge, p.v, p.n_rows, p.d, p.out);
      return;
    }
    // The steps alternate between `out` and the scratch buffer so that the last lands in `out`.
    T* buffers[2] = {p.out, scratch};
    launch("scale_rows", scale_rows<T, Lay>, scale_blocks, kRowsBlock, stream,
           static_cast<T>(alpha[n_layers]), p.inv_sqrt_degree, p.x, nullptr, nullptr, p.n_rows, p.d,
           buffers[n_layers % 2]);
    for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
      p.scaled = buffers[(layer + 1) % 2];
      p.out = buffers[layer % 2];
      p.alpha = static_cast<T>(alpha[layer]);
      p.scale_output = layer > 0;
      p.ridge = layer > 0 ? nullptr : ridge;
      launch_rows<Lay>(p, stream, max_blocks);
    }
  });
}

}  // namespace ifru::cuda
