// Stands in for CUDA's header of this name: a kernel's source, included after it, compiles as plain
// C++ and runs on the scheduler beside it. What no kernel uses is left out, so that its first use
// does not compile: dynamic shared memory, atomics, asynchronous copies, inline PTX.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// The checking build knows shared memory by its being thread-local; AddressSanitizer puts its red
// zones around plain static variables only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

using dim3 = simt::Dim3;
inline const dim3& threadIdx = simt::builtins.thread;
inline const dim3& blockIdx = simt::builtins.block;
inline const dim3& blockDim = simt::builtins.block_dim;
inline const dim3& gridDim = simt::builtins.grid_dim;

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace simt {
inline cudaStream_t last_stream = nullptr;  // of the latest launch: all run at once, in order
}

// The launch is over when this returns; what went wrong is the text of the error.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  };
  const Call call{kernel, std::tuple<Params...>(static_cast<Params>(args)...)};
  const auto run = [](const void* erased) {
    const Call& c = *static_cast<const Call*>(erased);
    std::apply(c.kernel, c.params);
  };
  simt::last_stream = config->stream;
  const bool ok = config->dynamicSmemBytes == 0 &&
                  simt::launch(config->gridDim, config->blockDim, {run, &call, sizeof(call)});
  return ok ? cudaSuccess : cudaErrorLaunchFailure;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : simt::last_error();
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// --- synchronisation and warp collectives --------------------------------------------------------

inline void __syncthreads(simt::Site site = simt::Site::here()) { simt::sync_threads(site); }

inline void __syncwarp(unsigned mask = ~0u, simt::Site site = simt::Site::here()) {
  simt::collective({simt::Collective::kSyncWarp, mask, nullptr, nullptr, 0, 0, site});
}

namespace simt {

inline int lane() { return static_cast<int>(linear_thread() % kWarpSize); }

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "as CUDA's overloads");
  T result{};
  collective({Collective::kShuffle, mask, &value, &result, sizeof(T), source, site});
  return result;
}

inline unsigned vote(unsigned mask, int predicate, Site site) {
  const unsigned value = predicate != 0;
  unsigned result = 0;
  collective({Collective::kBallot, mask, &value, &result, sizeof(value), 0, site});
  return result;
}

}  // namespace simt

// A source beyond the segment of `width` lanes gives the lane its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              simt::Site site = simt::Site::here()) {
  const int lane = simt::lane();
  return simt::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  simt::Site site = simt::Site::here()) {
  const int lane = simt::lane();
  const int source = lane ^ bits;
  const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));
  return simt::shuffle(mask, value, inside ? source : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Site site = simt::Site::here()) {
  const int lane = simt::lane();
  const bool inside = (lane & (width - 1)) + static_cast<int>(delta) < width;
  return simt::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::vote(mask, predicate, site);
}

inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::vote(mask, predicate, site) != 0;
}
