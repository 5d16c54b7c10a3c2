// The Gauss-Newton matrix on the GPU, equation (7): its diagonal, for each row the sum of w v o v
// over its entries plus the ridge, and its diagonal blocks, the sum of w v v^T plus ridge I, with
// v = f_neighbor - f_other.
//
// The diagonal is memory bound, one or two gathered rows per entry, and summed in the order of
// rows.cuh.
//
// A block is d^2 numbers to write, for a long row d^2 / 2 multiply-adds per entry. A thread block
// makes one tile of B x B elements of one row, on or above the diagonal, and writes it to both its
// places: the blocks are symmetric to the last bit. The entries' features come through shared
// memory, kStaged entries at a time. A long row is walked in order by the thread block of each of
// its tiles: dividing it would need memory for d^2 numbers a piece. Deterministic: entries in
// stored order, kStaged of them summed at a time.
//
// A range or an id that is out of bounds is not followed, and poisons the row with NaN.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace ifru::cuda {

template <class T, class I>
struct CurvatureRows : RowSet<T> {
  const I* neighbor;   // [entries], -1 for a row of zeros
  const I* other;      // [entries] likewise, or null for zeros everywhere
  const T* curvature;  // [entries], w
  const T* f;          // [N, d]
  const T* ridge;      // [R] or null
  T* out;              // [R, d] or [R, d, d]
  int64_t n_nodes;
};

template <class T, class I>
struct Diagonal : CurvatureRows<T, I> {
  using Storage = T;
  static constexpr int kUnroll = 2;
  static constexpr int kResident = 8;
  static constexpr bool kDot = false;
  static constexpr const char* kName = "ggn_diagonal";

  template <class Lay>
  struct Row {};
  template <class Lay>
  struct Entry {
    Pack<T, Lay::V> v;
    T w;
  };

  template <class Lay>
  __device__ __forceinline__ Row<Lay> begin(int64_t, int64_t) const {
    return {};
  }
  template <class Lay>
  __device__ __forceinline__ Entry<Lay> read(int64_t j, int64_t column) const {
    Entry<Lay> entry{Pack<T, Lay::V>::filled(T(0)), this->curvature[j]};
    const auto add_node = [&](T sign, I id) {
      const int64_t m = checked_id(id, this->n_nodes);
      if (m < 0 && id != I(-1)) entry.w = T(NAN);
      entry.v.add(sign, read_pack<Lay>(this->f, m, this->d, column));
    };
    add_node(T(1), this->neighbor[j]);
    if (this->other != nullptr) add_node(T(-1), this->other[j]);
    return entry;
  }
  template <class Lay>
  __device__ __forceinline__ void add(const Row<Lay>&, const Entry<Lay>& entry, T,
                                      Pack<T, Lay::V>& sum) const {
#pragma unroll
    for (int q = 0; q < Lay::V; ++q) sum.value[q] += entry.w * entry.v.value[q] * entry.v.value[q];
  }
  template <class Lay>
  __device__ __forceinline__ void write(int64_t n, int64_t column, Pack<T, Lay::V> sum) const {
    if (this->ridge != nullptr) sum.add(Pack<T, Lay::V>::filled(this->ridge[n]));
    sum.write(this->out + n * this->d + column);
  }
};

// The bits do not depend on `max_blocks`.
template <class T, class I>
void ggn_diagonal(const CurvatureRows<T, I>& rows, cudaStream_t stream,
                  int64_t max_blocks = kMaxBlocks) {
  const bool full_packs = are_full_packs<T>(rows.d, rows.f, rows.out, rows.partial);
  dispatch_layout<T>(rows.d, full_packs, [&](auto layout) {
    launch_rows<decltype(layout)>(Diagonal<T, I>{rows}, stream, max_blocks);
  });
}

constexpr int kStaged = 32;  // entries
// To a multiprocessor: 80 registers to a thread, or 128. Without it ptxas takes fewer, and spills.
template <class T>
constexpr int kTileThreads = sizeof(T) == 4 ? 768 : 512;
constexpr int kTileColumns = 8;  // threads side by side; each has four rows and B / 8 columns

template <class T, class I>
__device__ __forceinline__ T node_feature(const CurvatureRows<T, I>& p, I id, int64_t feature) {
  if (id == I(-1)) return T(0);
  const int64_t m = checked_id(id, p.n_nodes);
  return m < 0 ? T(NAN) : p.f[m * p.d + feature];
}

// One feature of an entry's v; zero beyond the last.
template <class T, class I>
__device__ __forceinline__ T entry_feature(const CurvatureRows<T, I>& p, int64_t entry,
                                           int64_t feature) {
  if (feature >= p.d) return T(0);
  const T v = node_feature(p, p.neighbor[entry], feature);
  return p.other == nullptr ? v : v - node_feature(p, p.other[entry], feature);
}

inline __host__ __device__ int64_t n_tile_pairs(int64_t n_tiles) {
  return n_tiles * (n_tiles + 1) / 2;
}

template <class T, class I, int B>
__global__ void __launch_bounds__(2 * B, kTileThreads<T> / (2 * B))
    block_tiles(const CurvatureRows<T, I> p) {
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
    int64_t row_tile = 0;  // the pairs in order: (0, 0), (0, 1), ..., (1, 1), ...
    int64_t column_tile = work % n_pairs;
    for (; column_tile >= n_tiles - row_tile; ++row_tile) column_tile -= n_tiles - row_tile;
    column_tile += row_tile;

    const RowRange range = row_range(p, n);
    T sum[P][Q];
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int j = 0; j < Q; ++j) sum[i][j] = range.valid ? T(0) : T(NAN);
    }
#pragma unroll 1
    for (int64_t first = range.begin; first < range.end; first += kStaged) {
      const int64_t rest = range.end - first;
      const int count = rest < kStaged ? static_cast<int>(rest) : kStaged;
#pragma unroll 4
      for (int k = threadIdx.x; k < count * B; k += 2 * B) {
        const int64_t e = first + k / B;
        left[k / B][k % B] = p.curvature[e] * entry_feature(p, e, row_tile * B + k % B);
        right[k / B][k % B] = entry_feature(p, e, column_tile * B + k % B);
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
        const int64_t k = row_tile * B + row + i * kRows;
        const int64_t m = column_tile * B + column + j * kTileColumns;
        if (k > m || m >= p.d) continue;
        const T value = k == m && p.ridge != nullptr ? sum[i][j] + p.ridge[n] : sum[i][j];
        out[k * p.d + m] = value;
        out[m * p.d + k] = value;
      }
    }
  }
}

// The bits do not depend on `max_blocks`.
template <class T, class I>
void ggn_blocks(const CurvatureRows<T, I>& rows, cudaStream_t stream,
                int64_t max_blocks = kMaxBlocks) {
  if (rows.n_rows == 0 || rows.d == 0) return;
  const auto run = [&](auto kernel, int64_t tile) {
    const int64_t tiles = rows.n_rows * n_tile_pairs((rows.d + tile - 1) / tile);
    launch("ggn_blocks", kernel, n_blocks(tiles, 1, max_blocks), static_cast<int>(2 * tile), stream,
           rows);
  };
  rows.d <= 16 ? run(block_tiles<T, I, 16>, 16) : run(block_tiles<T, I, 32>, 32);
}

}  // namespace ifru::cuda
