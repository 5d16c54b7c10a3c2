// Small kernels with one planted bug each, and one without: what the emulation must find.
#pragma once

#include <cuda_runtime.h>

namespace ifru::planted {

constexpr int kBlock = 64;

// Sums a block: shared memory, barriers, shuffles and a vote, all as they should be.
__global__ void block_sum(const float* x, float* out, int n) {
  __shared__ float part[kBlock / 32];
  const int k = blockIdx.x * kBlock + threadIdx.x;
  float sum = k < n ? x[k] : 0.0f;
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
  const bool some = __any_sync(~0u, k < n);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = some ? sum : 0.0f;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = part[0] + part[1];
}

// Neighbours in a warp swap through shared memory.
__global__ void swap_in_warp(float* out) {
  __shared__ float value[kBlock];
  value[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = value[threadIdx.x ^ 1];
}

constexpr int kTeam = 8;

// Teams of a warp sum their lanes as often as they have a number, each by shuffles of its own; the
// warp then comes together.
__global__ void teams_apart(float* out) {
  const int team = threadIdx.x % 32 / kTeam;
  const unsigned mask = 0xffu << (team * kTeam);
  float sum = 1.0f;
  for (int round = 0; round < team; ++round) {
    for (int bit = kTeam / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(mask, sum, bit);
  }
  out[threadIdx.x] = __any_sync(~0u, team == 3) ? sum : 0.0f;
}

// The same, but one lane of a team leaves early.
__global__ void team_loses_a_lane(float* out) {
  const int team = threadIdx.x % 32 / kTeam;
  const unsigned mask = 0xffu << (team * kTeam);
  float sum = 1.0f;
  for (int round = 0; round < (threadIdx.x == 20 ? team - 1 : team); ++round) {
    sum += __shfl_xor_sync(mask, sum, 1);
  }
  out[threadIdx.x] = __any_sync(~0u, team == 3) ? sum : 0.0f;
}

__global__ void race_in_shared(float* out) {
  __shared__ float value[kBlock];
  value[threadIdx.x] = 0.0f;
  __syncthreads();
  value[threadIdx.x] += 1.0f;
  out[threadIdx.x] = value[kBlock - 1 - threadIdx.x];  // no barrier
}

__global__ void race_in_warp(float* out) {
  __shared__ float value[kBlock];
  value[threadIdx.x] = 0.0f;
  __syncwarp();
  value[threadIdx.x] += 1.0f;
  out[threadIdx.x] = value[threadIdx.x ^ 1];  // no __syncwarp
}

// A shuffle does not order memory accesses.
__global__ void race_over_shuffle(float* out) {
  __shared__ float value[kBlock];
  value[threadIdx.x] = 0.0f;
  __syncthreads();
  value[threadIdx.x] = __shfl_xor_sync(~0u, float(threadIdx.x), 1);
  const int partner = __shfl_xor_sync(~0u, int(threadIdx.x), 1);
  out[threadIdx.x] = value[partner];
}

__global__ void race_on_reuse(float* out) {
  __shared__ float value[kBlock];
  for (int round = 0; round < 2; ++round) {
    value[threadIdx.x] = float(round);
    __syncthreads();
    out[threadIdx.x] = value[kBlock - 1 - threadIdx.x];  // the next round overwrites it
  }
}

__global__ void race_between_threads(float* out) { out[0] += 1.0f; }

__global__ void race_between_blocks(float* out) {
  if (threadIdx.x == 0) out[0] = float(blockIdx.x);
}

__global__ void read_past_end(const float* x, float* out, int n) {
  const int k = threadIdx.x;
  if (k <= n) out[k] = x[k];
}

__global__ void write_before_begin(float* out) { out[int(threadIdx.x) - 1] = 0.0f; }

__global__ void index_past_shared(float* out, int shift) {
  __shared__ float value[kBlock];
  value[threadIdx.x + shift] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = value[threadIdx.x];
}

__global__ void uninitialised_shared(float* out) {
  __shared__ float value[kBlock];
  if (threadIdx.x < 32) value[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = value[threadIdx.x];
}

__global__ void uninitialised_global(const float* x, float* out) {
  out[threadIdx.x] = x[threadIdx.x];
}

struct alignas(16) Four {
  float value[4];
};

__global__ void misaligned(const float* x, Four* out) {
  out[threadIdx.x] = *reinterpret_cast<const Four*>(x + 1);
}

__global__ void barrier_in_branch(float* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void barriers_at_two_lines(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void shuffle_after_return(float* out) {
  if (threadIdx.x % 32 >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void shuffle_in_branch(float* out) {
  float value = 1.0f;
  if (threadIdx.x % 2 == 0) value = __shfl_xor_sync(~0u, value, 2);
  __syncthreads();
  out[threadIdx.x] = value;
}

__global__ void shuffles_at_two_lines(float* out) {
  float value = 1.0f;
  if (threadIdx.x % 2 == 0) {
    value = __shfl_xor_sync(~0u, value, 2);
  } else {
    value = __shfl_xor_sync(~0u, value, 4);
  }
  out[threadIdx.x] = value;
}

__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void mask_without_self(float* out) { out[threadIdx.x] = float(__ballot_sync(1u, 1)); }

}  // namespace ifru::planted
