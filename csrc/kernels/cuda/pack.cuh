// How a warp shares rows of features. A pack is what one lane reads at once, 16 bytes where rows
// allow it. A team of L lanes holds L packs of one row; a warp has 32 / L teams.
#pragma once

#include <cmath>
#include <cstdint>

#include "launch.cuh"

namespace ifru::cuda {

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
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
  __device__ __forceinline__ void add(T factor, const Pack& other) {
#pragma unroll
    for (int q = 0; q < V; ++q) value[q] += factor * other.value[q];
  }
  __device__ __forceinline__ T dot(const Pack& other) const {
    T sum = 0;
#pragma unroll
    for (int q = 0; q < V; ++q) sum += value[q] * other.value[q];
    return sum;
  }
  __device__ __forceinline__ void scale(T factor) {
#pragma unroll
    for (int q = 0; q < V; ++q) value[q] *= factor;
  }
};

// The compile-time choices of a kernel: V elements in a pack, L lanes in a team.
template <int V_, int L_>
struct Layout {
  static constexpr int V = V_;
  static constexpr int L = L_;
  static constexpr int kTeams = kWarpSize / L;
  static_assert(L * kTeams == kWarpSize, "teams fill a warp");
};

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

// Sums over the lanes of each team, in each of them: all lanes of the warp must be there.
template <class Lay, class T>
__device__ __forceinline__ T sum_over_lanes(T x) {
#pragma unroll
  for (int lanes = 1; lanes < Lay::L; lanes *= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

template <class T>
constexpr int kFullPack = 16 / sizeof(T);

// Whether rows of d elements that begin at these addresses consist of full packs; null may be one.
template <class T, class... Addresses>
bool are_full_packs(int64_t d, Addresses... rows) {
  return d % kFullPack<T> == 0 && ((reinterpret_cast<uintptr_t>(rows) % 16 == 0) && ...);
}

// Calls f(Layout{}) with the smallest team that holds a row, or a whole warp.
template <class T, class F>
void dispatch_layout(int64_t d, bool full_packs, F&& f) {
  constexpr int V = kFullPack<T>;
  if (!full_packs) {
    d <= 8 ? f(Layout<1, 8>{}) : f(Layout<1, 32>{});
  } else if (d <= 4 * V) {
    f(Layout<V, 4>{});
  } else if (d <= 8 * V) {
    f(Layout<V, 8>{});
  } else if (d <= 16 * V) {
    f(Layout<V, 16>{});
  } else {
    f(Layout<V, 32>{});
  }
}

}  // namespace ifru::cuda
