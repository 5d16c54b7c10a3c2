// Interaction list -> symmetric bipartite adjacency: O(E + N) time, in parallel.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "grouping.h"

namespace ifru::host {

struct EdgeList {
  const int64_t* user;  // [E], in [0, n_users)
  const int64_t* item;  // [E], in [0, n_items)
  int64_t n_interactions;
  int64_t n_users;
  int64_t n_items;
};

inline bool fits_int32(int64_t n_nodes, int64_t n_interactions) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  return n_nodes <= kMax && n_interactions <= kMax;
}

// Throws a sentence about the first id that is not in [0, limit).
inline void check_ids(const char* function, const char* name, const int64_t* ids, int64_t n,
                      int64_t limit, int64_t n_threads) {
  const int64_t n_parts = useful_threads(n_threads, n);
  std::atomic<int64_t> wrong{n};
  parallel_tasks(n_parts, n_threads, [&](int64_t part) {
    const int64_t end = part_begin(n, n_parts, part + 1);
    for (int64_t e = part_begin(n, n_parts, part); e < end; ++e) {
      if (ids[e] < 0 || ids[e] >= limit) {
        int64_t before = wrong;
        while (e < before && !wrong.compare_exchange_weak(before, e)) {
        }
        return;
      }
    }
  });
  if (wrong < n) {
    throw std::invalid_argument(std::string(function) + ": expected " + name + " ids in [0, " +
                                std::to_string(limit) + "), got " + std::to_string(ids[wrong]) +
                                " in row " + std::to_string(wrong));
  }
}

// Calls visit(row, position) for the positions [begin, end) of some rows, which tile them.
template <class Visit>
void for_each_entry(const int64_t* rowptr, int64_t n_rows, int64_t begin, int64_t end,
                    const Visit& visit) {
  int64_t row = std::upper_bound(rowptr, rowptr + n_rows + 1, begin) - rowptr - 1;
  for (int64_t position = begin; position < end; ++row) {
    const int64_t last = std::min(rowptr[row + 1], end);
    for (; position < last; ++position) visit(row, position);
  }
}

template <class I>
struct AdjacencyEntry {
  I row;
  I other;  // node id
  I edge;
};

// rowptr [N + 1], neighbor [2E], edge [2E]. Rows 0 .. n_users - 1 are the CSR by user, the others
// the CSC by item. Within a row, neighbours ascend (for the cache) and parallel interactions keep
// their order (for determinism). The same for any number of threads. `scratch` has room for E
// entries; without, it is allocated.
template <class I>
void build_adjacency(const EdgeList& edges, int64_t* rowptr, I* neighbor, I* edge,
                     int64_t n_threads = 1, AdjacencyEntry<I>* scratch = nullptr) {
  using Entry = AdjacencyEntry<I>;
  const int64_t n = edges.n_interactions;
  const int64_t n_users = edges.n_users;
  const int64_t n_items = edges.n_items;
  check_ids("bipartite_adjacency", "user", edges.user, n, n_users, n_threads);
  check_ids("bipartite_adjacency", "item", edges.item, n, n_items, n_threads);
  std::unique_ptr<Entry[]> own;
  if (scratch == nullptr) {
    own = uninitialised<Entry>(n);
    scratch = own.get();
  }
  int64_t* item_rowptr = rowptr + n_users;
  const auto place = [&](int64_t position, const Entry& entry) {
    neighbor[position] = entry.other;
    edge[position] = entry.edge;
  };

  // By user in input order; by item in the order of the users, which thus ascend in each row; by
  // user again, now in the order of the items.
  group_by_row<Entry>(
      n, n_users, n_threads,
      [&](int64_t begin, int64_t end, const auto& emit) {
        for (int64_t e = begin; e < end; ++e) {
          emit(Entry{static_cast<I>(edges.user[e]), static_cast<I>(n_users + edges.item[e]),
                     static_cast<I>(e)});
        }
      },
      scratch, 0, rowptr, place);
  group_by_row<Entry>(
      n, n_items, n_threads,
      [&](int64_t begin, int64_t end, const auto& emit) {
        for_each_entry(rowptr, n_users, begin, end, [&](int64_t user, int64_t position) {
          emit(Entry{static_cast<I>(neighbor[position] - n_users), static_cast<I>(user),
                     edge[position]});
        });
      },
      scratch, n, item_rowptr, place);
  group_by_row<Entry>(
      n, n_users, n_threads,
      [&](int64_t begin, int64_t end, const auto& emit) {
        for_each_entry(
            item_rowptr, n_items, n + begin, n + end, [&](int64_t item, int64_t position) {
              emit(Entry{neighbor[position], static_cast<I>(n_users + item), edge[position]});
            });
      },
      scratch, 0, rowptr, place);
}

}  // namespace ifru::host
