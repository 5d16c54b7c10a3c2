// Random graphs for the kernels that sum over the entries of rows.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace ifru::test {

template <class I>
struct Graph {
  std::vector<int64_t> rowptr = {0};
  std::vector<I> neighbor;

  int64_t n_nodes() const { return static_cast<int64_t>(rowptr.size()) - 1; }
  int64_t n_entries() const { return static_cast<int64_t>(neighbor.size()); }
};

// Rows of the given lengths, whose neighbours are drawn with repetition. The kernels do not ask for
// symmetry.
template <class I>
Graph<I> make_graph(const std::vector<int64_t>& degrees) {
  std::mt19937 random(7);
  Graph<I> graph;
  for (const int64_t degree : degrees) {
    for (int64_t j = 0; j < degree; ++j) {
      graph.neighbor.push_back(static_cast<I>(random() % degrees.size()));
    }
    graph.rowptr.push_back(graph.n_entries());
  }
  return graph;
}

// Of the largest error, relative to 1 + |expected|.
template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-4 : 1e-12;

}  // namespace ifru::test
