// What a request touches: the next hop with its importance scores, and the rows of an adjacency
// that a restricted product walks over. Cost follows the entries of the given rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ifru::host {

// Zeroed pages appear when they are touched, so a mostly untouched array costs what is touched.
template <class T>
class SparseArray {
 public:
  explicit SparseArray(int64_t n)
      : data_(static_cast<T*>(std::calloc(std::max<int64_t>(n, 1), sizeof(T))), std::free) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  T& operator[](int64_t k) { return data_.get()[k]; }

 private:
  std::unique_ptr<T, void (*)(void*)> data_;
};

inline void check_rows(const int64_t* rows, int64_t n_rows, int64_t n_nodes) {
  for (int64_t k = 0; k < n_rows; ++k) {
    if (rows[k] < 0 || rows[k] >= n_nodes || (k > 0 && rows[k - 1] >= rows[k])) {
      throw std::invalid_argument("rows: expected ascending distinct node ids in [0, " +
                                  std::to_string(n_nodes) + "), got " + std::to_string(rows[k]) +
                                  " at position " + std::to_string(k));
    }
  }
}

// What an index may hold that was read from a file.
template <class I>
int64_t checked_node(I node, int64_t n_nodes) {
  if (node < 0 || static_cast<int64_t>(node) >= n_nodes) {
    throw std::invalid_argument("neighbor: expected node ids in [0, " + std::to_string(n_nodes) +
                                "), got " + std::to_string(node));
  }
  return static_cast<int64_t>(node);
}

inline void check_range(const int64_t* rowptr, int64_t row, int64_t n_nodes) {
  if (rowptr[row] < 0 || rowptr[row] > rowptr[row + 1] || rowptr[row + 1] > rowptr[n_nodes]) {
    throw std::invalid_argument("rowptr: expected an ascending sequence, got a fall in row " +
                                std::to_string(row));
  }
}

struct Hop {
  std::vector<int64_t> rows;  // ascending
  std::vector<double> score;
};

// Equation (13): s'(w) = sum over w's neighbours v among `rows` of s(v) / deg(w), for every w that
// has one; deg(w) is one plus its interactions.
template <class I>
Hop expand_hop(const int64_t* rowptr, const I* neighbor, int64_t n_nodes, const int64_t* rows,
               const double* score, int64_t n_rows) {
  check_rows(rows, n_rows, n_nodes);
  SparseArray<double> sum(n_nodes);
  SparseArray<bool> seen(n_nodes);
  Hop hop;
  for (int64_t k = 0; k < n_rows; ++k) {
    check_range(rowptr, rows[k], n_nodes);
    for (int64_t j = rowptr[rows[k]]; j < rowptr[rows[k] + 1]; ++j) {
      const int64_t w = checked_node(neighbor[j], n_nodes);
      if (!seen[w]) {
        seen[w] = true;
        hop.rows.push_back(w);
      }
      sum[w] += score[k];
    }
  }
  std::sort(hop.rows.begin(), hop.rows.end());
  hop.score.reserve(hop.rows.size());
  for (const int64_t w : hop.rows) {
    hop.score.push_back(sum[w] / static_cast<double>(1 + rowptr[w + 1] - rowptr[w]));
  }
  return hop;
}

template <class I>
struct RowSlice {
  std::vector<int64_t> rowptr;  // [n_rows + 1]
  std::vector<I> neighbor;      // node ids
  std::vector<I> local;         // position of the neighbour among `rows`, -1 if it is not there
  std::vector<I> edge;          // interactions
};

// The entries of some rows, copied out of an adjacency.
template <class I>
RowSlice<I> slice_rows(const int64_t* rowptr, const I* neighbor, const I* edge, int64_t n_nodes,
                       const int64_t* rows, int64_t n_rows) {
  check_rows(rows, n_rows, n_nodes);
  SparseArray<I> position(n_nodes);  // one-based
  RowSlice<I> slice;
  slice.rowptr.assign(1, 0);
  for (int64_t k = 0; k < n_rows; ++k) {
    check_range(rowptr, rows[k], n_nodes);
    position[rows[k]] = static_cast<I>(k + 1);
    slice.rowptr.push_back(slice.rowptr.back() + rowptr[rows[k] + 1] - rowptr[rows[k]]);
  }
  slice.neighbor.reserve(slice.rowptr.back());
  slice.local.reserve(slice.rowptr.back());
  slice.edge.reserve(slice.rowptr.back());
  for (int64_t k = 0; k < n_rows; ++k) {
    for (int64_t j = rowptr[rows[k]]; j < rowptr[rows[k] + 1]; ++j) {
      slice.neighbor.push_back(neighbor[j]);
      slice.local.push_back(static_cast<I>(position[checked_node(neighbor[j], n_nodes)] - 1));
      slice.edge.push_back(edge[j]);
    }
  }
  return slice;
}

}  // namespace ifru::host
