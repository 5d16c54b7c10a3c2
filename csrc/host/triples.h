// Triples (user, positive, negative) -> the index of the pairwise products: O(T + N) time, in
// parallel. See Triples in ../kernels/cpu/kernels.h.
#pragma once

#include <cstdint>

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

template <class I>
struct Triple {
  I row;  // user
  I positive;
  I negative;  // node ids
  I edge;
};

template <class I>
struct TripleEnd {
  I row;   // item
  I user;  // ~user at the negative's end
  I triple;
};

// rowptr [N + 1], neighbor and other [3T], triple [2T], edge [T]. A user's row keeps the order of
// the input. An item's row follows the order of the users' rows: its users ascend (for the cache),
// as do their triples. The same for any number of threads.
template <class I>
void build_triples(const TripleList& list, int64_t* rowptr, I* neighbor, I* other, I* triple,
                   I* edge, int64_t n_threads = 1) {
  const int64_t n = list.n_triples;
  const int64_t n_users = list.n_users;
  check_ids("triples", "user", list.user, n, n_users, n_threads);
  check_ids("triples", "positive", list.positive, n, list.n_items, n_threads);
  check_ids("triples", "negative", list.negative, n, list.n_items, n_threads);

  group_by_row<Triple<I>>(
      n, n_users, n_threads,
      [&](int64_t begin, int64_t end, const auto& emit) {
        for (int64_t t = begin; t < end; ++t) {
          emit(Triple<I>{static_cast<I>(list.user[t]), static_cast<I>(n_users + list.positive[t]),
                         static_cast<I>(n_users + list.negative[t]), static_cast<I>(t)});
        }
      },
      uninitialised<Triple<I>>(n).get(), 0, rowptr,
      [&](int64_t position, const Triple<I>& entry) {
        neighbor[position] = entry.positive;
        other[position] = entry.negative;
        edge[position] = entry.edge;
      });
  group_by_row<TripleEnd<I>>(
      n, list.n_items, n_threads,
      [&](int64_t begin, int64_t end, const auto& emit) {
        for_each_entry(rowptr, n_users, begin, end, [&](int64_t u, int64_t t) {
          const I user = static_cast<I>(u);
          emit(TripleEnd<I>{static_cast<I>(neighbor[t] - n_users), user, static_cast<I>(t)});
          emit(TripleEnd<I>{static_cast<I>(other[t] - n_users), ~user, static_cast<I>(t)});
        });
      },
      uninitialised<TripleEnd<I>>(2 * n).get(), n, rowptr + n_users,
      [&](int64_t position, const TripleEnd<I>& end) {
        const bool is_positive = end.user >= 0;
        neighbor[position] = is_positive ? end.user : I(-1);
        other[position] = is_positive ? I(-1) : ~end.user;
        triple[position - n] = end.triple;
      });
}

}  // namespace ifru::host
