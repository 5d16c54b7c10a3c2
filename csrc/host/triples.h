// Triples (user, positive, negative) -> the index of the pairwise products, by two counting sorts:
// O(T + N) time. See Triples in ../kernels/cpu/kernels.h.
#pragma once

#include <cstdint>
#include <vector>

#include "adjacency.h"

namespace ifru::host {

struct TripleList {
  const int64_t* user;      // [T], in [0, n_users)
  const int64_t* positive;  // [T], in [0, n_items)
  const int64_t* negative;  // [T], in [0, n_items)
  int64_t n_triples;
  int64_t n_users;
  int64_t n_items;
};

// rowptr [N + 1], neighbor and other [3T], triple [2T], edge [T]. A user's row keeps the order of
// the input. An item's row follows the order of the users' rows: its users ascend (for the cache),
// as do their triples.
template <class I>
void build_triples(const TripleList& list, int64_t* rowptr, I* neighbor, I* other, I* triple,
                   I* edge) {
  const int64_t n = list.n_triples;
  check_ids("triples", "user", list.user, n, list.n_users);
  check_ids("triples", "positive", list.positive, n, list.n_items);
  check_ids("triples", "negative", list.negative, n, list.n_items);
  const int64_t n_nodes = list.n_users + list.n_items;

  for (int64_t v = 0; v <= n_nodes; ++v) rowptr[v] = 0;
  for (int64_t t = 0; t < n; ++t) {
    ++rowptr[list.user[t] + 1];
    ++rowptr[list.n_users + list.positive[t] + 1];
    ++rowptr[list.n_users + list.negative[t] + 1];
  }
  for (int64_t v = 0; v < n_nodes; ++v) rowptr[v + 1] += rowptr[v];

  std::vector<int64_t> next(rowptr, rowptr + n_nodes);
  for (int64_t t = 0; t < n; ++t) {
    const int64_t position = next[list.user[t]]++;
    neighbor[position] = static_cast<I>(list.n_users + list.positive[t]);
    other[position] = static_cast<I>(list.n_users + list.negative[t]);
    edge[position] = static_cast<I>(t);
  }
  for (int64_t u = 0; u < list.n_users; ++u) {
    for (int64_t t = rowptr[u]; t < rowptr[u + 1]; ++t) {
      const int64_t as_positive = next[neighbor[t]]++;
      neighbor[as_positive] = static_cast<I>(u);
      other[as_positive] = I(-1);
      triple[as_positive - n] = static_cast<I>(t);
      const int64_t as_negative = next[other[t]]++;
      neighbor[as_negative] = I(-1);
      other[as_negative] = static_cast<I>(u);
      triple[as_negative - n] = static_cast<I>(t);
    }
  }
}

}  // namespace ifru::host
