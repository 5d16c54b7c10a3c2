#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "../host/adjacency.h"
#include "check.h"

namespace ifru::test {
namespace {

template <class I>
void check_adjacency(const std::vector<int64_t>& user, const std::vector<int64_t>& item,
                     int64_t n_users, int64_t n_items) {
  const int64_t n = static_cast<int64_t>(user.size());
  std::vector<int64_t> rowptr(n_users + n_items + 1);
  std::vector<I> neighbor(2 * n);
  std::vector<I> edge(2 * n);
  host::build_adjacency<I>({user.data(), item.data(), n, n_users, n_items}, rowptr.data(),
                           neighbor.data(), edge.data());
  CHECK(rowptr.front() == 0 && rowptr.back() == 2 * n && rowptr[n_users] == n);
  std::vector<int> seen(n, 0);
  for (int64_t v = 0; v < n_users + n_items; ++v) {
    for (int64_t j = rowptr[v]; j < rowptr[v + 1]; ++j) {
      const int64_t e = edge[j];
      const int64_t own = v < n_users ? user[e] : n_users + item[e];
      const int64_t other = v < n_users ? n_users + item[e] : user[e];
      CHECK(own == v && other == neighbor[j]);
      // Ascending neighbours; parallel interactions in input order.
      if (j > rowptr[v]) {
        CHECK(neighbor[j - 1] < neighbor[j] ||
              (neighbor[j - 1] == neighbor[j] && edge[j - 1] < edge[j]));
      }
      ++seen[e];
    }
  }
  for (const int count : seen) CHECK(count == 2);
}

template <class F>
bool throws(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

void test_adjacency() {
  check_adjacency<int32_t>({}, {}, 0, 0);
  check_adjacency<int32_t>({}, {}, 3, 2);
  check_adjacency<int64_t>({0}, {0}, 1, 1);
  check_adjacency<int32_t>({2, 0, 2, 2, 0}, {1, 1, 0, 1, 1}, 4, 3);  // duplicates, isolated nodes
  std::mt19937 random(0);
  std::vector<int64_t> user;
  std::vector<int64_t> item;
  for (int k = 0; k < 500; ++k) {
    user.push_back(random() % 4 ? random() % 40 : 7);  // one hub
    item.push_back(random() % 25);
  }
  check_adjacency<int32_t>(user, item, 41, 30);
  check_adjacency<int64_t>(user, item, 41, 30);

  CHECK(throws([] { check_adjacency<int32_t>({1}, {0}, 1, 1); }));
  CHECK(throws([] { check_adjacency<int32_t>({0}, {-1}, 1, 1); }));
  CHECK(host::fits_int32(10, 10));
  CHECK(!host::fits_int32(int64_t{1} << 31, 10));
  CHECK(!host::fits_int32(10, int64_t{1} << 31));
}

}  // namespace ifru::test
