#include <atomic>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../host/adjacency.h"
#include "../host/stream.h"
#include "../host/triples.h"
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

// Enough for several buckets and for several parts of them; a hub, ids in no order, rows without
// entries at both ends, and more rows than there are bins.
struct Many {
  static constexpr int64_t kUsers = 20'011;
  static constexpr int64_t kItems = 9'001;
  std::vector<int64_t> user, item, other;

  explicit Many(int64_t n) {
    std::mt19937 random(2);
    for (int64_t k = 0; k < n; ++k) {
      user.push_back(random() % 3 ? 1 + random() % (kUsers - 2) : 7'000);
      item.push_back(random() % 5 ? 1 + random() % (kItems - 2) : 1 + random() % 20);
      other.push_back(random() % kItems);
    }
  }
  int64_t size() const { return static_cast<int64_t>(user.size()); }
};

template <class I>
void check_threads() {
  const Many many(300'000);
  const int64_t n = many.size();
  const int64_t n_nodes = many.kUsers + many.kItems;
  check_adjacency<I>(many.user, many.item, many.kUsers, many.kItems);
  std::vector<int64_t> first_rowptr, first_stream, first_triples;
  std::vector<I> first, first_order, first_index;
  for (const int64_t threads : {1, 2, 3, 16}) {
    std::vector<int64_t> rowptr(n_nodes + 1);
    std::vector<I> ids(4 * n);
    host::build_adjacency<I>({many.user.data(), many.item.data(), n, many.kUsers, many.kItems},
                             rowptr.data(), ids.data(), ids.data() + 2 * n, threads);
    constexpr int64_t kBlocks = 4;
    const auto cuts = host::balanced_cuts(rowptr.data(), many.kUsers, n_nodes, 2 * kBlocks);
    std::vector<int64_t> stream(kBlocks * (many.kUsers + 1));
    std::vector<I> order(2 * n);
    host::order_by_blocks<I>(rowptr.data(), ids.data(), ids.data() + 2 * n, 0, many.kUsers,
                             cuts.data(), 2 * kBlocks, kBlocks, stream.data(), order.data(),
                             order.data() + n, threads);
    std::vector<int64_t> triples(n_nodes + 1);
    std::vector<I> index(9 * n);
    host::build_triples<I>(
        {many.user.data(), many.item.data(), many.other.data(), n, many.kUsers, many.kItems},
        triples.data(), index.data(), index.data() + 3 * n, index.data() + 6 * n,
        index.data() + 8 * n, threads);
    if (threads == 1) {
      // Blocks of columns one after the other, and in each the users' rows.
      int64_t position = 0;
      for (int64_t block = 0; block < kBlocks; ++block) {
        for (int64_t user = 0; user < many.kUsers; ++user) {
          CHECK(stream[block * (many.kUsers + 1) + user] == position);
          for (int64_t j = rowptr[user]; j < rowptr[user + 1]; ++j) {
            if (ids[j] < cuts[2 * block] || ids[j] >= cuts[2 * block + 2]) continue;
            CHECK(order[position] == ids[j] && order[n + position] == ids[2 * n + j]);
            ++position;
          }
        }
        CHECK(stream[block * (many.kUsers + 1) + many.kUsers] == position);
      }
      CHECK(position == n);
      first_rowptr = rowptr, first_stream = stream, first_triples = triples;
      first = ids, first_order = order, first_index = index;
    }
    CHECK(rowptr == first_rowptr && ids == first);
    CHECK(stream == first_stream && order == first_order);
    CHECK(triples == first_triples && index == first_index);
  }
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
  {  // the first wrong id is named, whichever thread finds one first
    std::vector<int64_t> ids(300'000, 0);
    ids[150'000] = 2;
    ids[299'999] = -1;
    std::string sentence;
    try {
      host::check_ids("f", "user", ids.data(), 300'000, 2, 4);
    } catch (const std::invalid_argument& error) {
      sentence = error.what();
    }
    CHECK(sentence == "f: expected user ids in [0, 2), got 2 in row 150000");
  }
  check_threads<int32_t>();
  check_threads<int64_t>();

  std::atomic<int64_t> done{0};  // a failing task stops the others and is not swallowed
  CHECK(throws([&] {
    host::parallel_tasks(1000, 3, [&](int64_t task) {
      ++done;
      if (task == 5) throw std::invalid_argument("");
    });
  }));
  CHECK(done >= 1 && done <= 1000);
  CHECK(host::fits_int32(10, 10));
  CHECK(!host::fits_int32(int64_t{1} << 31, 10));
  CHECK(!host::fits_int32(10, int64_t{1} << 31));
}

}  // namespace ifru::test
