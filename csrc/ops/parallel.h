// Rows over torch's own threads, split by work and not by number.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

namespace ifru::ops {

// First row at which at least `work` has been passed; a row costs one plus its entries. The rows
// may be a part of an index: what stands before them is not counted.
inline int64_t row_at_work(const int64_t* rowptr, int64_t n_rows, int64_t work) {
  int64_t low = 0;
  int64_t high = n_rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (rowptr[middle] - rowptr[0] + middle < work) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls run(begin, end) over pieces of rows of about equal work; false if any call was false.
// Row boundaries do not change what a row's sum is: the bits are the same for any thread count.
template <class Run>
bool parallel_rows(const int64_t* rowptr, int64_t n_rows, const Run& run) {
  constexpr int64_t kPiece = 2048;  // entries: about 50 us at d = 64, a hundred times a fork
  const int64_t total = rowptr[n_rows] - rowptr[0] + n_rows;
  const int64_t n_pieces = total / kPiece + 1;
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(0, n_pieces, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = row_at_work(rowptr, n_rows, begin * kPiece);
    const int64_t last = end == n_pieces ? n_rows : row_at_work(rowptr, n_rows, end * kPiece);
    if (!run(first, last)) ok.store(false, std::memory_order_relaxed);
  });
  return ok.load();
}

// Sums partial results over blocks of `block` items in the order of the blocks: partial(begin, end,
// sums) writes kSums numbers. The bits depend on the block length, not on the threads.
template <int kSums, class Partial>
std::array<double, kSums> parallel_sums(int64_t n_items, int64_t block, const Partial& partial) {
  const int64_t n_blocks = (n_items + block - 1) / block;
  std::vector<std::array<double, kSums>> sums(n_blocks);
  torch::stable::parallel_for(0, n_blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t last = (b + 1) * block < n_items ? (b + 1) * block : n_items;
      partial(b * block, last, sums[b].data());
    }
  });
  std::array<double, kSums> total{};
  for (const auto& part : sums) {
    for (int k = 0; k < kSums; ++k) total[k] += part[k];
  }
  return total;
}

template <class Run>
bool parallel_items(int64_t n_items, const Run& run) {
  constexpr int64_t kGrain = 2048;
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(0, n_items, kGrain, [&](int64_t begin, int64_t end) {
    if (!run(begin, end)) ok.store(false, std::memory_order_relaxed);
  });
  return ok.load();
}

}  // namespace ifru::ops
