// How every CUDA kernel is launched: on the given stream, with the grid and the block checked, and
// the kernel named in the error. No torch header: the emulated build uses this file as well.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ifru::cuda {

constexpr int kWarpSize = 32;
constexpr int64_t kMaxGrid = 2147483647;  // x dimension, every architecture since sm_30
constexpr int kMaxBlock = 1024;
constexpr int64_t kMaxBlocks = 1 << 20;  // the kernels stride over the grid beyond

// Blocks for as many rows, or whatever a block has `per_block` of.
inline int64_t n_blocks(int64_t work, int64_t per_block, int64_t max_blocks) {
  const int64_t needed = (work + per_block - 1) / per_block;
  return needed < max_blocks ? needed : max_blocks;
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t grid, int block,
            cudaStream_t stream, Args... args) {
  if (grid < 1 || grid > kMaxGrid || block < 1 || block > kMaxBlock) {
    throw std::runtime_error(std::string("ifru_ext: ") + name + ": launch of " +
                             std::to_string(grid) + " blocks of " + std::to_string(block) +
                             " threads is out of range");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("ifru_ext: ") + name + ": " + cudaGetErrorString(error));
  }
}

}  // namespace ifru::cuda
