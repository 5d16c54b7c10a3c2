// Interaction list -> symmetric bipartite adjacency, by two counting sorts: O(E + N) time.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

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

inline void check_ids(const char* function, const char* name, const int64_t* ids, int64_t n,
                      int64_t limit) {
  for (int64_t e = 0; e < n; ++e) {
    if (ids[e] < 0 || ids[e] >= limit) {
      throw std::invalid_argument(std::string(function) + ": expected " + name + " ids in [0, " +
                                  std::to_string(limit) + "), got " + std::to_string(ids[e]) +
                                  " in row " + std::to_string(e));
    }
  }
}

// rowptr [N + 1], neighbor [2E], edge [2E]. Rows 0 .. n_users - 1 are the CSR by user, the others
// the CSC by item. Within a row, neighbours ascend (for the cache) and parallel interactions keep
// their order (for determinism).
template <class I>
void build_adjacency(const EdgeList& edges, int64_t* rowptr, I* neighbor, I* edge) {
  check_ids("bipartite_adjacency", "user", edges.user, edges.n_interactions, edges.n_users);
  check_ids("bipartite_adjacency", "item", edges.item, edges.n_interactions, edges.n_items);
  const int64_t n_nodes = edges.n_users + edges.n_items;
  const int64_t n = edges.n_interactions;

  for (int64_t v = 0; v <= n_nodes; ++v) rowptr[v] = 0;
  for (int64_t e = 0; e < n; ++e) {
    ++rowptr[edges.user[e] + 1];
    ++rowptr[edges.n_users + edges.item[e] + 1];
  }
  for (int64_t v = 0; v < n_nodes; ++v) rowptr[v + 1] += rowptr[v];

  std::vector<int64_t> next(rowptr, rowptr + n_nodes);
  const auto place = [&](int64_t row, int64_t other, int64_t e) {
    const int64_t position = next[row]++;
    neighbor[position] = static_cast<I>(other);
    edge[position] = static_cast<I>(e);
  };
  // By item in input order; by user in item order; by item again, now in user order. The first
  // pass leaves only an order of interactions behind, its neighbours are overwritten by the third.
  for (int64_t e = 0; e < n; ++e) place(edges.n_users + edges.item[e], edges.user[e], e);
  for (int64_t position = n; position < 2 * n; ++position) {
    const int64_t e = static_cast<int64_t>(edge[position]);
    place(edges.user[e], edges.n_users + edges.item[e], e);
  }
  for (int64_t v = edges.n_users; v < n_nodes; ++v) next[v] = rowptr[v];
  for (int64_t position = 0; position < n; ++position) {
    const int64_t e = static_cast<int64_t>(edge[position]);
    place(edges.n_users + edges.item[e], edges.user[e], e);
  }
}

}  // namespace ifru::host
