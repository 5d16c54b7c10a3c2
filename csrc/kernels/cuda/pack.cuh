// How a warp shares rows of features. A pack is what one lane reads at once, 16 bytes where rows
// allow it. A team of L lanes holds L packs of one row; a warp has 32 / L teams.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "../storage.h"
#include "launch.cuh"

namespace ifru::cuda {

// What features stored as S are computed with.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Of addresses: a pack of more bytes is read in parts.
constexpr int kMaxAlignment = 16;

template <class T, int V>
struct alignas(V * sizeof(T) < kMaxAlignment ? V * sizeof(T) : kMaxAlignment) Pack {
  T value[V];

  static __device__ __forceinline__ Pack filled(T x) {
    Pack pack;
#pragma unroll
    for (int q = 0; q < V; ++q) pack.value[q] = x;
    return pack;
  }
  static __device__ __forceinline__ Pack read(const T* from) {
    return *reinterpret_cast<const Pack*>(from);
  }
  __device__ __forceinline__ void write(T* to) const { *reinterpret_cast<Pack*>(to) = *this; }
  __device__ __forceinline__ void add(const Pack& other) {
#pragma unroll
    for (int q = 0; q < V; ++q) value[q] += other.value[q];
  }
  template <class S>
  __device__ __forceinline__ void add(T factor, const Pack<S, V>& other) {
#pragma unroll
    for (int q = 0; q < V; ++q) value[q] += factor * widen(other.value[q]);
  }
  __device__ __forceinline__ void scale(T factor) {
#pragma unroll
    for (int q = 0; q < V; ++q) value[q] *= factor;
  }
};

// sum + <x, y>
template <class T, class S, int V>
__device__ __forceinline__ T add_dot(T sum, const Pack<S, V>& x, const Pack<S, V>& y) {
#pragma unroll
  for (int q = 0; q < V; ++q) sum += widen(x.value[q]) * widen(y.value[q]);
  return sum;
}

// The compile-time choices of a kernel: V elements in a pack, L lanes in a team, and whether a row
// may have more than L packs, which the team then takes one tile of L packs after the other.
template <int V_, int L_, bool kTiled_>
struct Layout {
  static constexpr int V = V_;
  static constexpr int L = L_;
  static constexpr bool kTiled = kTiled_;
  static constexpr int kTeams = kWarpSize / L;
  static constexpr int kTile = L * V;  // elements
  static_assert(L * kTeams == kWarpSize, "teams fill a warp");
};

// Calls f(tile) with the first column of each tile of a row of d elements.
template <class Lay, class F>
__device__ __forceinline__ void for_tiles(int64_t d, F&& f) {
  if constexpr (Lay::kTiled) {
#pragma unroll 1
    for (int64_t tile = 0; tile < d; tile += Lay::kTile) f(tile);
  } else {
    f(int64_t(0));
  }
}

// Sums over the teams of a warp, in every team: all lanes must be there.
template <class Lay, class T, int V>
__device__ __forceinline__ void sum_over_teams(Pack<T, V>& pack) {
#pragma unroll
  for (int lanes = Lay::L; lanes < kWarpSize; lanes *= 2) {
#pragma unroll
    for (int q = 0; q < V; ++q) {
      pack.value[q] += __shfl_xor_sync(~0u, pack.value[q], lanes);
    }
  }
}

// Sums over the lanes of a team, in every lane, several numbers at once: the team must be there.
template <class Lay, class T, int K>
__device__ __forceinline__ void sum_over_lanes(T (&sum)[K]) {
  constexpr unsigned kTeam = ~0u >> (kWarpSize - Lay::L);
  const unsigned mask = kTeam << (threadIdx.x % kWarpSize / Lay::L * Lay::L);
#pragma unroll
  for (int lanes = Lay::L / 2; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int u = 0; u < K; ++u) sum[u] += __shfl_xor_sync(mask, sum[u], lanes);
  }
}

template <class S>
constexpr int kFullPack = kMaxAlignment / sizeof(S);

// Whether rows of d elements, stored as S or wider, that begin at these addresses consist of full
// packs; null may be one.
template <class S, class... Addresses>
bool are_full_packs(int64_t d, Addresses... rows) {
  return d % kFullPack<S> == 0 && ((reinterpret_cast<uintptr_t>(rows) % kMaxAlignment == 0) && ...);
}

// Calls f(Layout{}) with the smallest team that holds a row of elements stored as S, or with one
// that takes it in tiles.
template <class S, class F>
void dispatch_layout(int64_t d, bool full_packs, F&& f) {
  constexpr int V = kFullPack<S>;
  if (!full_packs) {
    d <= 8 ? f(Layout<1, 8, false>{}) : f(Layout<1, 32, true>{});
  } else if (d <= 4 * V) {
    f(Layout<V, 4, false>{});
  } else if (d <= 8 * V) {
    f(Layout<V, 8, false>{});
  } else if (d <= 16 * V) {
    f(Layout<V, 16, false>{});
  } else if (d <= 32 * V) {
    f(Layout<V, 32, false>{});
  } else {
    f(Layout<V, 32, true>{});
  }
}

}  // namespace ifru::cuda
