// The order of one pass over the interactions: see Stream in ../kernels/cpu/kernels.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

template <class I>
struct StreamOrder {
  std::vector<int64_t> rowptr;  // [n_blocks, n_rows + 1]
  std::vector<I> neighbor;      // [E]
  std::vector<I> edge;          // [E]
};

// The rows first_row .. first_row + n_rows - 1 of an adjacency, block by block of columns. Each
// row's neighbours ascend, so a block's part of it is a range; the ranges are found by walking on
// from where the block before stopped.
template <class I>
StreamOrder<I> order_by_blocks(const int64_t* rowptr, const I* neighbor, const I* edge,
                               int64_t first_row, int64_t n_rows, const std::vector<int64_t>& cuts,
                               int64_t n_blocks) {
  const int64_t per_block = static_cast<int64_t>(cuts.size() - 1) / n_blocks;
  const int64_t n_entries = rowptr[first_row + n_rows] - rowptr[first_row];
  StreamOrder<I> order;
  order.rowptr.reserve(n_blocks * (n_rows + 1));
  order.neighbor.reserve(n_entries);
  order.edge.reserve(n_entries);
  std::vector<int64_t> cursor(rowptr + first_row, rowptr + first_row + n_rows);
  for (int64_t block = 0; block < n_blocks; ++block) {
    const int64_t end = cuts[(block + 1) * per_block];
    order.rowptr.push_back(static_cast<int64_t>(order.neighbor.size()));
    for (int64_t row = 0; row < n_rows; ++row) {
      const int64_t last = rowptr[first_row + row + 1];
      int64_t& j = cursor[row];
      for (; j < last && static_cast<int64_t>(neighbor[j]) < end; ++j) {
        order.neighbor.push_back(neighbor[j]);
        order.edge.push_back(edge[j]);
      }
      order.rowptr.push_back(static_cast<int64_t>(order.neighbor.size()));
    }
  }
  return order;
}

}  // namespace ifru::host
