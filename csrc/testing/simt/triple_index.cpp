#include "triple_index.h"

#include "../../host/triples.h"

namespace ifru::test {

template <class I>
TripleIndex<I> make_triples(const std::vector<int64_t>& user, const std::vector<int64_t>& positive,
                            const std::vector<int64_t>& negative, int64_t n_users,
                            int64_t n_items) {
  const auto n = static_cast<int64_t>(user.size());
  TripleIndex<I> index{std::vector<int64_t>(n_users + n_items + 1), std::vector<I>(3 * n),
                       std::vector<I>(3 * n), std::vector<I>(2 * n), std::vector<I>(n)};
  host::build_triples<I>({user.data(), positive.data(), negative.data(), n, n_users, n_items},
                         index.rowptr.data(), index.neighbor.data(), index.other.data(),
                         index.triple.data(), index.edge.data());
  return index;
}

#define IFRU_MAKE_TRIPLES(I)                                           \
  template TripleIndex<I> make_triples<I>(const std::vector<int64_t>&, \
                                          const std::vector<int64_t>&, \
                                          const std::vector<int64_t>&, int64_t, int64_t);
IFRU_MAKE_TRIPLES(int32_t)
IFRU_MAKE_TRIPLES(int64_t)
#undef IFRU_MAKE_TRIPLES

}  // namespace ifru::test
