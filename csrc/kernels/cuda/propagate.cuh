// Propagation on the GPU, equation (1): one Horner step, and the scaling that starts the recursion.
//
// One warp per row, lanes over features, tiles of 32 * kPerLane features so that any d works; each
// neighbour's row is read in coalesced pieces of 128 bytes (float32). One writer per row and
// neighbours in stored order: the bits do not depend on the launch. Offsets are 64-bit.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace ifru::cuda {

template <class T, class I>
struct PropagateParams {
  const int64_t* rowptr;     // [N + 1]
  const I* neighbor;         // [2E]
  const T* inv_sqrt_degree;  // [N], s
  const T* x;                // [N, d]
  const T* scaled;           // [N, d], S y of the step before
  const T* ridge;            // [N] or null
  const T* v;                // [N, d], read when ridge is not null
  T* out;                    // [N, d]
  T alpha;
  bool scale_output;  // true for the inner steps, whose result is gathered again
  int64_t n_nodes;
  int64_t n_entries;
  int64_t d;
};

constexpr int kPropagateBlock = 128;

template <class T, class I>
__global__ void __launch_bounds__(kPropagateBlock) propagate_rows(const PropagateParams<T, I> p) {
  constexpr int kPerLane = 4;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps_per_block = kPropagateBlock / kWarpSize;
  const int64_t first = blockIdx.x * warps_per_block + threadIdx.x / kWarpSize;
  for (int64_t n = first; n < p.n_nodes; n += gridDim.x * warps_per_block) {
    // The host cannot see rowptr and neighbor without a synchronisation: a range or an id that is
    // out of bounds is not followed, and poisons the row with NaN.
    const bool ranged =
        p.rowptr[n] >= 0 && p.rowptr[n] <= p.rowptr[n + 1] && p.rowptr[n + 1] <= p.n_entries;
    const int64_t begin = ranged ? p.rowptr[n] : 0;
    const int64_t end = ranged ? p.rowptr[n + 1] : 0;
    const T s = p.inv_sqrt_degree[n];
    for (int64_t tile = lane; tile < p.d; tile += kWarpSize * kPerLane) {
      T sum[kPerLane];
#pragma unroll
      for (int q = 0; q < kPerLane; ++q) sum[q] = ranged ? T(0) : T(NAN);
      for (int64_t j = begin; j < end; ++j) {
        const int64_t m = static_cast<int64_t>(p.neighbor[j]);
        const bool valid = m >= 0 && m < p.n_nodes;
#pragma unroll
        for (int q = 0; q < kPerLane; ++q) {
          const int64_t k = tile + q * kWarpSize;
          if (k < p.d) sum[q] += valid ? p.scaled[m * p.d + k] : T(NAN);
        }
      }
#pragma unroll
      for (int q = 0; q < kPerLane; ++q) {
        const int64_t k = tile + q * kWarpSize;
        if (k < p.d) {
          T result = p.alpha * p.x[n * p.d + k] + s * sum[q];
          if (p.scale_output) result *= s;
          if (p.ridge != nullptr) result += p.ridge[n] * p.v[n * p.d + k];
          p.out[n * p.d + k] = result;
        }
      }
    }
  }
}

// out = factor * s o x (s null: factor * x), plus ridge o v where given.
template <class T>
__global__ void __launch_bounds__(kPropagateBlock)
    scale_rows(T factor, const T* s, const T* x, const T* ridge, const T* v, int64_t n_nodes,
               int64_t d, T* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPropagateBlock;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kPropagateBlock + threadIdx.x;
       k < n_nodes * d; k += stride) {
    const int64_t n = k / d;
    T result = (s == nullptr ? factor : factor * s[n]) * x[k];
    if (ridge != nullptr) result += ridge[n] * v[k];
    out[k] = result;
  }
}

// All layers. `alpha` [L + 1] lies on the host; `scratch` [N, d] may be null when L = 0.
template <class T, class I>
void propagate(PropagateParams<T, I> p, const double* alpha, int64_t n_layers, T* scratch,
               cudaStream_t stream) {
  if (p.n_nodes == 0 || p.d == 0) return;
  const T* ridge = p.ridge;
  constexpr int64_t kMaxBlocks = 1 << 20;  // grid-stride beyond: a launch stays cheap
  const auto blocks = [](int64_t work, int64_t per_block) {
    const int64_t needed = (work + per_block - 1) / per_block;
    return needed < kMaxBlocks ? needed : kMaxBlocks;
  };
  const int64_t element_blocks = blocks(p.n_nodes * p.d, kPropagateBlock);
  if (n_layers == 0) {
    launch("scale_rows", scale_rows<T>, element_blocks, kPropagateBlock, stream,
           static_cast<T>(alpha[0]), nullptr, p.x, ridge, p.v, p.n_nodes, p.d, p.out);
    return;
  }
  // The steps alternate between `out` and the scratch buffer so that the last lands in `out`.
  T* buffers[2] = {p.out, scratch};
  launch("scale_rows", scale_rows<T>, element_blocks, kPropagateBlock, stream,
         static_cast<T>(alpha[n_layers]), p.inv_sqrt_degree, p.x, nullptr, nullptr, p.n_nodes, p.d,
         buffers[n_layers % 2]);
  for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
    p.scaled = buffers[(layer + 1) % 2];
    p.out = buffers[layer % 2];
    p.alpha = static_cast<T>(alpha[layer]);
    p.scale_output = layer > 0;
    p.ridge = layer > 0 ? nullptr : ridge;
    launch("propagate_rows", propagate_rows<T, I>, blocks(p.n_nodes, kPropagateBlock / kWarpSize),
           kPropagateBlock, stream, p);
  }
}

}  // namespace ifru::cuda
