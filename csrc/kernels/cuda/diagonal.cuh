// Diagonal blocks of the Gauss-Newton matrix on the GPU, equation (7): for each row the sum of
// w v v^T over its entries, plus ridge I, with v = f_neighbor - f_other.
//
// Regime: writes of d^2 numbers for a row of few entries; for a long one d^2 / 2 multiply-adds per
// entry. A thread block makes one tile of B x B elements of one row, on or above the diagonal, and
// writes it to both its places: the blocks are symmetric to the last bit. The entries' features
// come through shared memory, kStaged entries at a time. A long row is walked in order by each of
// its tiles' blocks: dividing it would need memory for d^2 numbers a piece.
// Deterministic: entries in stored order, kStaged of them summed at a time.
//
// A range or an id that is out of bounds is not followed, and poisons the row with NaN.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace ifru::cuda {

template <class T, class I>
struct DiagonalParams {
  const int64_t* rowptr;  // [R + 1]
  const I* neighbor;      // [entries], -1 for a row of zeros
  const I* other;         // [entries] likewise, or null for zeros everywhere
  const T* curvature;     // [entries], w
  const T* f;             // [N, d]
  const T* ridge;         // [R] or null
  T* out;                 // [R, d, d]
  int64_t n_rows;
  int64_t n_entries;
  int64_t n_nodes;
  int64_t d;
};

constexpr int kStaged = 32;
constexpr int kTileColumns = 8;  // threads side by side; each has four rows and B / 8 columns

template <class T, class I>
__device__ __forceinline__ T node_feature(const DiagonalParams<T, I>& p, I id, int64_t feature) {
  if (id == I(-1)) return T(0);
  const int64_t m = static_cast<int64_t>(id);
  return m >= 0 && m < p.n_nodes ? p.f[m * p.d + feature] : T(NAN);
}

// One feature of an entry's v; zero beyond the last.
template <class T, class I>
__device__ __forceinline__ T entry_feature(const DiagonalParams<T, I>& p, int64_t entry,
                                           int64_t feature) {
  if (feature >= p.d) return T(0);
  const T v = node_feature(p, p.neighbor[entry], feature);
  return p.other == nullptr ? v : v - node_feature(p, p.other[entry], feature);
}

inline __host__ __device__ int64_t n_tile_pairs(int64_t n_tiles) {
  return n_tiles * (n_tiles + 1) / 2;
}

template <class T, class I, int B>
__global__ void __launch_bounds__(2 * B) block_tiles(const DiagonalParams<T, I> p) {
  constexpr int kRows = B / 4;  // threads below each other
  constexpr int P = B / kRows;
  constexpr int Q = B / kTileColumns;
  __shared__ T left[kStaged][B];  // w v, of the tile's rows
  __shared__ T right[kStaged][B];
  const int row = threadIdx.x / kTileColumns;
  const int column = threadIdx.x % kTileColumns;
  const int64_t n_tiles = (p.d + B - 1) / B;
  const int64_t n_pairs = n_tile_pairs(n_tiles);
  for (int64_t work = blockIdx.x; work < p.n_rows * n_pairs; work += gridDim.x) {
    const int64_t n = work / n_pairs;
    int64_t upper = 0;  // of the tile pair (upper, lower)
    int64_t lower = work % n_pairs;
    while (lower >= n_tiles - upper) lower -= n_tiles - upper++;
    lower += upper;

    const int64_t begin = p.rowptr[n];
    const int64_t end = p.rowptr[n + 1];
    const bool valid = begin >= 0 && begin <= end && end <= p.n_entries;
    T sum[P][Q];
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int j = 0; j < Q; ++j) sum[i][j] = valid ? T(0) : T(NAN);
    }
#pragma unroll 1
    for (int64_t first = begin; valid && first < end; first += kStaged) {
      const int count = end - first < kStaged ? static_cast<int>(end - first) : kStaged;
#pragma unroll 4
      for (int k = threadIdx.x; k < count * B; k += 2 * B) {
        const int64_t e = first + k / B;
        left[k / B][k % B] = p.curvature[e] * entry_feature(p, e, upper * B + k % B);
        right[k / B][k % B] = entry_feature(p, e, lower * B + k % B);
      }
      __syncthreads();
      T part[P][Q] = {};
#pragma unroll 2
      for (int e = 0; e < count; ++e) {
#pragma unroll
        for (int i = 0; i < P; ++i) {
#pragma unroll
          for (int j = 0; j < Q; ++j) {
            part[i][j] += left[e][row + i * kRows] * right[e][column + j * kTileColumns];
          }
        }
      }
      __syncthreads();  // the next entries take their place
#pragma unroll
      for (int i = 0; i < P; ++i) {
#pragma unroll
        for (int j = 0; j < Q; ++j) sum[i][j] += part[i][j];
      }
    }

    T* out = p.out + n * p.d * p.d;
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int j = 0; j < Q; ++j) {
        const int64_t a = upper * B + row + i * kRows;
        const int64_t b = lower * B + column + j * kTileColumns;
        if (a > b || b >= p.d) continue;
        const T value = a == b && p.ridge != nullptr ? sum[i][j] + p.ridge[n] : sum[i][j];
        out[a * p.d + b] = value;
        out[b * p.d + a] = value;
      }
    }
  }
}

// The bits do not depend on `max_blocks`.
template <class T, class I>
void ggn_blocks(const DiagonalParams<T, I>& p, cudaStream_t stream, int64_t max_blocks = 1 << 20) {
  if (p.n_rows == 0 || p.d == 0) return;
  const auto run = [&](auto kernel, int64_t tile) {
    const int64_t needed = p.n_rows * n_tile_pairs((p.d + tile - 1) / tile);
    launch("block_tiles", kernel, needed < max_blocks ? needed : max_blocks,
           static_cast<int>(2 * tile), stream, p);
  };
  p.d <= 16 ? run(block_tiles<T, I, 16>, 16) : run(block_tiles<T, I, 32>, 32);
}

}  // namespace ifru::cuda
