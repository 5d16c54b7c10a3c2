// One pass over the interactions by several threads: blocks of columns follow each other through
// the rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "checks.h"

namespace ifru::ops {

// The tensors of a stream as the kernels see them; checks all but the columns themselves.
template <class I>
cpu::Stream<I> check_stream(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                            const Tensor& cuts, int64_t first_row, int64_t n_nodes) {
  const cpu::Stream<I> s{rowptr.const_data_ptr<int64_t>(),
                         neighbor.const_data_ptr<I>(),
                         cuts.const_data_ptr<int64_t>(),
                         rowptr.size(0),
                         cuts.numel() - 1,
                         rowptr.size(1) - 1,
                         first_row};
  if (s.n_rows == n_nodes && n_nodes > 0 && s.cuts[0] == 0) {
    fail(op,
         "rowptr: expected the rows of one side, as Adjacency.stream() has them, got those of all ",
         n_nodes, " nodes, which are for CUDA");
  }
  check_rowptr(op, s.rowptr, s.n_blocks * (s.n_rows + 1) - 1, neighbor.numel());
  for (int64_t block = 1; block < s.n_blocks; ++block) {
    const int64_t* begin = s.rowptr + block * (s.n_rows + 1);
    if (begin[0] != begin[-1]) fail(op, "rowptr: expected each block to begin where one ends");
  }
  if (first_row != 0 && first_row != n_nodes - s.n_rows) {
    fail(op, "first_row: expected 0 or ", n_nodes - s.n_rows, ", got ", first_row);
  }
  const int64_t first_column = first_row == 0 ? s.n_rows : 0;
  const int64_t last_column = first_row == 0 ? n_nodes : first_row;
  bool ordered = s.cuts[0] == first_column && s.cuts[s.n_cuts] == last_column;
  for (int64_t c = 0; c < s.n_cuts; ++c) ordered &= s.cuts[c] <= s.cuts[c + 1];
  if (!ordered || s.n_cuts % s.n_blocks != 0) {
    fail(op, "cuts: expected a multiple of ", s.n_blocks, " ascending intervals from node ",
         first_column, " to ", last_column);
  }
  return s;
}

// Runs a pass (kernels.h) over the stream of its arguments. Block b works on a chunk of rows when
// block b - 1 has left it, so a row has one writer at a time and is summed in the order of its
// columns. Tasks wait only for tasks of a lower number, which parallel_for starts no later: one
// thread, or fewer than there are blocks, cannot deadlock. False if a call of rows was false.
template <class Args>
bool run_pass(const cpu::PassKernels<Args>& kernels, const Args& args) {
  const auto& s = args.stream;
  // Rows: up to a few thousand interactions between two handshakes, and on small data as few as
  // let a block begin before the one ahead of it has nearly ended.
  const int64_t chunk_rows = std::clamp<int64_t>(s.n_rows / (16 * s.n_blocks), 16, 512);
  const int64_t n_chunks = (s.n_rows + chunk_rows - 1) / chunk_rows;
  const int64_t per_block = s.n_cuts / s.n_blocks;
  struct alignas(64) Progress {
    std::atomic<int64_t> chunks{0};
  };
  std::vector<Progress> done(s.n_blocks);
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(0, s.n_blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t first_column = s.cuts[block * per_block];
      const int64_t last_column = s.cuts[(block + 1) * per_block];
      kernels.start(args, first_column, last_column);
      for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
        if (block > 0) {
          while (done[block - 1].chunks.load(std::memory_order_acquire) <= chunk) {
            std::this_thread::yield();
          }
        }
        const int64_t begin = chunk * chunk_rows;
        if (!kernels.rows(args, block, begin, std::min(begin + chunk_rows, s.n_rows))) {
          ok.store(false, std::memory_order_relaxed);
        }
        done[block].chunks.store(chunk + 1, std::memory_order_release);
      }
      kernels.finish(args, first_column, last_column);
    }
  });
  return ok.load();
}

constexpr const char* kColumnsText =
    "neighbor: expected ascending columns within the cuts of each block, found others";

}  // namespace ifru::ops
