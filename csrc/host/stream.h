// The order of one pass over the interactions: see Stream in ../kernels/cpu/kernels.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace ifru::host {

// Boundaries that cut the columns [first, last) into n_cuts intervals of about equal numbers of
// interactions; `rowptr` is the adjacency's, whose rows for the columns hold their interactions.
inline std::vector<int64_t> balanced_cuts(const int64_t* rowptr, int64_t first, int64_t last,
                                          int64_t n_cuts) {
  const int64_t total = rowptr[last] - rowptr[first];
  std::vector<int64_t> cuts(n_cuts + 1, last);
  for (int64_t c = 0; c < n_cuts; ++c) {
    const int64_t target = rowptr[first] + total / n_cuts * c + total % n_cuts * c / n_cuts;
    cuts[c] = std::lower_bound(rowptr + first, rowptr + last, target) - rowptr;
  }
  cuts[0] = first;
  return cuts;
}

// The rows first_row .. first_row + n_rows - 1 of an adjacency, block by block of columns. Each
// row's neighbours ascend, so a block's part of it is a range; the ranges of a row are found by
// walking on from where the block before stopped. The same for any number of threads.
//
//   out_rowptr    [n_blocks, n_rows + 1]
//   out_neighbor  [E]
//   out_edge      [E]
template <class I>
void order_by_blocks(const int64_t* rowptr, const I* neighbor, const I* edge, int64_t first_row,
                     int64_t n_rows, const int64_t* cuts, int64_t n_cuts, int64_t n_blocks,
                     int64_t* out_rowptr, I* out_neighbor, I* out_edge, int64_t n_threads = 1) {
  const int64_t per_block = n_cuts / n_blocks;
  const int64_t last_row = first_row + n_rows;
  const int64_t n_entries = rowptr[last_row] - rowptr[first_row];
  const int64_t n_parts = useful_threads(n_threads, n_entries + n_rows);
  const std::vector<int64_t> parts = balanced_cuts(rowptr, first_row, last_row, n_parts);
  // Calls visit(row, block, begin, end) for each row of a part and each block of the row.
  const auto walk = [&](int64_t part, const auto& visit) {
    for (int64_t row = parts[part]; row < parts[part + 1]; ++row) {
      int64_t j = rowptr[row];
      for (int64_t block = 0; block < n_blocks; ++block) {
        const int64_t begin = j;
        const int64_t end = cuts[(block + 1) * per_block];
        while (j < rowptr[row + 1] && static_cast<int64_t>(neighbor[j]) < end) ++j;
        visit(row - first_row, block, begin, j);
      }
    }
  };
  std::vector<int64_t> next(n_parts * n_blocks, 0);  // entries, then the place of the next one
  parallel_tasks(n_parts, n_threads, [&](int64_t part) {
    walk(part, [&](int64_t, int64_t block, int64_t begin, int64_t end) {
      next[part * n_blocks + block] += end - begin;
    });
  });
  int64_t position = 0;
  for (int64_t block = 0; block < n_blocks; ++block) {
    for (int64_t part = 0; part < n_parts; ++part) {
      const int64_t count = next[part * n_blocks + block];
      next[part * n_blocks + block] = position;
      position += count;
    }
    out_rowptr[block * (n_rows + 1) + n_rows] = position;
  }
  parallel_tasks(n_parts, n_threads, [&](int64_t part) {
    int64_t* place = next.data() + part * n_blocks;
    walk(part, [&](int64_t row, int64_t block, int64_t begin, int64_t end) {
      out_rowptr[block * (n_rows + 1) + row] = place[block];
      std::copy(neighbor + begin, neighbor + end, out_neighbor + place[block]);
      std::copy(edge + begin, edge + end, out_edge + place[block]);
      place[block] += end - begin;
    });
  });
}

}  // namespace ifru::host
