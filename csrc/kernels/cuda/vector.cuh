// Vector updates of conjugate gradients on the GPU, each one pass over memory: dot, cg_update,
// cg_direction. The scalars alpha, beta and the sums stay on the device: nothing waits for the
// host.
//
// Regime: memory bound, two flops per element and operand. Deterministic: a block sums a chunk of
// fixed size in float64, and one block then adds the chunks' sums; the order depends on the shape
// and the alignment of the vectors alone, not on the launch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.cuh"
#include "pack.cuh"

namespace ifru::cuda {

constexpr int kVectorBlock = 256;
constexpr int64_t kChunk = 4096;                  // elements: 16 of each operand to a thread
constexpr int64_t kMaxColumns = (1LL << 31) - 1;  // so that a row's packs are counted in 32 bits

// Sums over the block; thread 0 has the result. Every thread must be there.
template <int K>
__device__ __forceinline__ void sum_over_block(double (&sum)[K]) {
  constexpr int kWarps = kVectorBlock / kWarpSize;
  __shared__ double part[K][kWarps];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int q = 0; q < K; ++q) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
      sum[q] += __shfl_xor_sync(~0u, sum[q], lanes);
    }
    if (lane == 0) part[q][warp] = sum[q];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int q = 0; q < K; ++q) {
      sum[q] = 0;
      for (int w = 0; w < kWarps; ++w) sum[q] += part[q][w];
    }
  }
  __syncthreads();  // `part` is written again for the next chunk
}

// out[q] = sum of partial[i][q] over the chunks i. One block.
template <int K>
__global__ void __launch_bounds__(kVectorBlock)
    sum_chunks(const double* partial, int64_t n_chunks, double* out) {
  double sum[K] = {};
  for (int64_t i = threadIdx.x; i < n_chunks; i += kVectorBlock) {
#pragma unroll
    for (int q = 0; q < K; ++q) sum[q] += partial[i * K + q];
  }
  sum_over_block(sum);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int q = 0; q < K; ++q) out[q] = sum[q];
  }
}

// partial[i] = <x, y> over chunk i.
template <class T, int V>
__global__ void __launch_bounds__(kVectorBlock)
    dot_chunks(const T* x, const T* y, int64_t n, double* partial) {
  const int64_t n_chunks = (n + kChunk - 1) / kChunk;
  for (int64_t i = blockIdx.x; i < n_chunks; i += gridDim.x) {
    const int64_t end = (i + 1) * kChunk < n ? (i + 1) * kChunk : n;
    double sum[1] = {};
#pragma unroll 2
    for (int64_t k = i * kChunk + threadIdx.x * V; k < end; k += kVectorBlock * V) {
      if (k + V <= end) {
        const auto left = Pack<T, V>::read(x + k);
        const auto right = Pack<T, V>::read(y + k);
#pragma unroll
        for (int q = 0; q < V; ++q) sum[0] += double(left.value[q]) * double(right.value[q]);
      } else {
        for (int64_t rest = k; rest < end; ++rest) sum[0] += double(x[rest]) * double(y[rest]);
      }
    }
    sum_over_block(sum);
    if (threadIdx.x == 0) partial[i] = sum[0];
  }
}

// Calls body(k, row) for each pack of rows [first, last): element k is its first.
template <int V, class Body>
__device__ __forceinline__ void for_packs(int64_t first, int64_t last, int64_t d, Body&& body) {
  const uint32_t packs = static_cast<uint32_t>(d / V);
  const int64_t n = (last - first) * packs;
  for (int64_t i = threadIdx.x; i < n; i += kVectorBlock) {
    body(first * d + i * V, first + static_cast<uint32_t>(i) / packs);
  }
}

inline __host__ __device__ int64_t rows_per_chunk(int64_t d) {
  return d >= kChunk || d == 0 ? 1 : kChunk / d;
}

template <class T>
struct CgUpdateParams {
  T* x;                 // [n_rows, d]
  T* r;                 // [n_rows, d]
  const T* p;           // [n_rows, d]
  const T* ap;          // [n_rows, d]
  const double* alpha;  // []
  const T* inverse;     // [n_rows] or null
  double* partial;      // [n_row_chunks(n_rows, d), 2]
  int64_t n_rows;
  int64_t d;
};

// x += alpha p, r -= alpha ap, and each chunk's <r, r> and <r, M r> of the new r, M =
// diag(inverse). alpha = 0 changes nothing, whatever p and ap hold: a solver freezes its iterate
// with it when ap turned out to be NaN, without a look at the scalar.
template <class T, int V>
__global__ void __launch_bounds__(kVectorBlock) cg_update_chunks(const CgUpdateParams<T> a) {
  using P = Pack<T, V>;
  const int64_t rows = rows_per_chunk(a.d);
  const int64_t n_chunks = (a.n_rows + rows - 1) / rows;
  const T alpha = static_cast<T>(*a.alpha);
  for (int64_t i = blockIdx.x; i < n_chunks; i += gridDim.x) {
    double sum[2] = {};
    const int64_t last = (i + 1) * rows < a.n_rows ? (i + 1) * rows : a.n_rows;
    for_packs<V>(i * rows, last, a.d, [&](int64_t k, int64_t row) {
      P r = P::read(a.r + k);
      if (alpha != T(0)) {
        P x = P::read(a.x + k);
        x.add(alpha, P::read(a.p + k));
        x.write(a.x + k);
        r.add(-alpha, P::read(a.ap + k));
        r.write(a.r + k);
      }
      const T inverse = a.inverse == nullptr ? T(1) : a.inverse[row];
#pragma unroll
      for (int q = 0; q < V; ++q) {
        sum[0] += double(r.value[q]) * double(r.value[q]);
        sum[1] += double(r.value[q]) * double(inverse * r.value[q]);
      }
    });
    sum_over_block(sum);
    if (threadIdx.x == 0) {
      a.partial[2 * i] = sum[0];
      a.partial[2 * i + 1] = sum[1];
    }
  }
}

// p = M r + beta p.
template <class T, int V>
__global__ void __launch_bounds__(kVectorBlock)
    cg_direction_chunks(T* p, const T* r, const double* beta, const T* inverse, int64_t n_rows,
                        int64_t d) {
  using P = Pack<T, V>;
  const int64_t rows = rows_per_chunk(d);
  const int64_t n_chunks = (n_rows + rows - 1) / rows;
  const T factor = static_cast<T>(*beta);
  for (int64_t i = blockIdx.x; i < n_chunks; i += gridDim.x) {
    const int64_t last = (i + 1) * rows < n_rows ? (i + 1) * rows : n_rows;
    for_packs<V>(i * rows, last, d, [&](int64_t k, int64_t row) {
      P result = P::read(r + k);
      result.scale(inverse == nullptr ? T(1) : inverse[row]);
      result.add(factor, P::read(p + k));
      result.write(p + k);
    });
  }
}

inline int64_t n_chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }

inline int64_t n_row_chunks(int64_t n_rows, int64_t d) {
  const int64_t rows = rows_per_chunk(d);
  return (n_rows + rows - 1) / rows;
}

inline void check_columns(const char* name, int64_t d) {
  if (d > kMaxColumns) {
    throw std::runtime_error(std::string("ifru_ext: ") + name + ": expected at most " +
                             std::to_string(kMaxColumns) + " columns, got " + std::to_string(d));
  }
}

// out [] = <x, y>; partial [n_chunks(n)].
template <class T>
void dot(const T* x, const T* y, int64_t n, double* partial, double* out, cudaStream_t stream,
         int64_t max_blocks = kMaxBlocks) {
  const int64_t chunks = n_chunks(n);
  if (chunks > 0) {
    launch("dot_chunks",
           are_full_packs<T>(0, x, y) ? dot_chunks<T, kFullPack<T>> : dot_chunks<T, 1>,
           n_blocks(chunks, 1, max_blocks), kVectorBlock, stream, x, y, n, partial);
  }
  launch("sum_chunks", sum_chunks<1>, 1, kVectorBlock, stream, partial, chunks, out);
}

// dots [2] = (<r, r>, <r, M r>) of the new r.
template <class T>
void cg_update(const CgUpdateParams<T>& a, double* dots, cudaStream_t stream,
               int64_t max_blocks = kMaxBlocks) {
  check_columns("cg_update", a.d);
  const int64_t chunks = n_row_chunks(a.n_rows, a.d);
  if (chunks > 0) {
    launch("cg_update_chunks",
           are_full_packs<T>(a.d, a.x, a.r, a.p, a.ap) ? cg_update_chunks<T, kFullPack<T>>
                                                       : cg_update_chunks<T, 1>,
           n_blocks(chunks, 1, max_blocks), kVectorBlock, stream, a);
  }
  launch("sum_chunks", sum_chunks<2>, 1, kVectorBlock, stream, a.partial, chunks, dots);
}

template <class T>
void cg_direction(T* p, const T* r, const double* beta, const T* inverse, int64_t n_rows, int64_t d,
                  cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  check_columns("cg_direction", d);
  const int64_t chunks = n_row_chunks(n_rows, d);
  if (chunks == 0) return;
  launch(
      "cg_direction_chunks",
      are_full_packs<T>(d, p, r) ? cg_direction_chunks<T, kFullPack<T>> : cg_direction_chunks<T, 1>,
      n_blocks(chunks, 1, max_blocks), kVectorBlock, stream, p, r, beta, inverse, n_rows, d);
}

}  // namespace ifru::cuda
