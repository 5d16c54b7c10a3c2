// The index of triples, as the package builds it.
#pragma once

#include <cstdint>
#include <vector>

namespace ifru::test {

template <class I>
struct TripleIndex {
  std::vector<int64_t> rowptr;
  std::vector<I> neighbor, other, triple, edge;
};

// Not in a header: the checking build instruments kernels and tests, and has no part of a sanitizer
// for the host's threads.
template <class I>
TripleIndex<I> make_triples(const std::vector<int64_t>& user, const std::vector<int64_t>& positive,
                            const std::vector<int64_t>& negative, int64_t n_users, int64_t n_items);

}  // namespace ifru::test
