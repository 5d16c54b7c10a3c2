// pybind11 module `_host`: what is done once per data set or asked once per process, on NumPy
// arrays and without torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "adjacency.h"
#include "build_info.h"
#include "neighborhood.h"
#include "stream.h"
#include "triples.h"

namespace py = pybind11;

namespace {

using Ids = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// A new array, or the caller's of exactly this type and length.
template <class T>
py::array_t<T> output(const py::object& given, const char* name, int64_t n) {
  if (given.is_none()) return py::array_t<T>(n);
  using Exact = py::array_t<T, py::array::c_style>;
  if (!py::isinstance<Exact>(given)) {
    throw py::value_error(std::string(name) + ": expected a contiguous array of " +
                          py::str(py::dtype::of<T>()).cast<std::string>());
  }
  const auto array = py::reinterpret_borrow<Exact>(given);
  if (array.ndim() != 1 || array.shape(0) != n || !array.writeable()) {
    throw py::value_error(std::string(name) + ": expected a writable array of shape [" +
                          std::to_string(n) + "]");
  }
  return array;
}

template <class I>
py::tuple adjacency(const Ids& user, const Ids& item, int64_t n_users, int64_t n_items,
                    int64_t n_threads, const py::tuple& out) {
  static_assert(sizeof(ifru::host::AdjacencyEntry<I>) == 3 * sizeof(I));
  const int64_t n = user.shape(0);
  auto rowptr = output<int64_t>(out[0], "out[0]", n_users + n_items + 1);
  auto neighbor = output<I>(out[1], "out[1]", 2 * n);
  auto edge = output<I>(out[2], "out[2]", 2 * n);
  I* scratch_data = out[3].is_none() ? nullptr : output<I>(out[3], "out[3]", 3 * n).mutable_data();
  const ifru::host::EdgeList edges{user.data(), item.data(), n, n_users, n_items};
  int64_t* rowptr_data = rowptr.mutable_data();
  I* neighbor_data = neighbor.mutable_data();
  I* edge_data = edge.mutable_data();
  {
    py::gil_scoped_release release;
    ifru::host::build_adjacency<I>(edges, rowptr_data, neighbor_data, edge_data, n_threads,
                                   reinterpret_cast<ifru::host::AdjacencyEntry<I>*>(scratch_data));
  }
  return py::make_tuple(rowptr, neighbor, edge);
}

py::tuple bipartite_adjacency(const Ids& user, const Ids& item, int64_t n_users, int64_t n_items,
                              int64_t n_threads, const std::optional<py::tuple>& out) {
  if (user.ndim() != 1 || item.ndim() != 1 || user.shape(0) != item.shape(0)) {
    throw py::value_error("bipartite_adjacency: expected user and item of one shape [n], got " +
                          std::to_string(user.size()) + " and " + std::to_string(item.size()) +
                          " ids");
  }
  if (n_users < 0 || n_items < 0) {
    throw py::value_error("bipartite_adjacency: expected n_users, n_items >= 0, got " +
                          std::to_string(n_users) + " and " + std::to_string(n_items));
  }
  const py::object none = py::none();
  const py::tuple outputs = out ? *out : py::make_tuple(none, none, none, none);
  if (outputs.size() != 4) {
    throw py::value_error("out: expected rowptr, neighbor, edge and scratch, got " +
                          std::to_string(outputs.size()) + " arrays");
  }
  const bool narrow = ifru::host::fits_int32(n_users + n_items, user.shape(0));
  return narrow ? adjacency<int32_t>(user, item, n_users, n_items, n_threads, outputs)
                : adjacency<int64_t>(user, item, n_users, n_items, n_threads, outputs);
}

template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Arrays of an adjacency are taken as they are: a silent conversion would copy the whole graph.
template <class T>
using Exact = py::array_t<T, py::array::c_style>;

template <class I>
int64_t check_csr(const Exact<int64_t>& rowptr, const Exact<I>& neighbor) {
  const int64_t n_nodes = rowptr.shape(0) - 1;
  const int64_t* p = rowptr.data();
  if (n_nodes < 0 || p[0] != 0 || p[n_nodes] != neighbor.shape(0)) {
    throw py::value_error("rowptr: expected a sequence from 0 to " +
                          std::to_string(neighbor.shape(0)) + ", the length of neighbor");
  }
  return n_nodes;
}

template <class I>
py::tuple expand_hop(const Exact<int64_t>& rowptr, const Exact<I>& neighbor, const Ids& rows,
                     const py::array_t<double, py::array::c_style | py::array::forcecast>& score) {
  const int64_t n_nodes = check_csr(rowptr, neighbor);
  if (score.shape(0) != rows.shape(0)) {
    throw py::value_error("score: expected " + std::to_string(rows.shape(0)) +
                          " values as in rows, got " + std::to_string(score.shape(0)));
  }
  ifru::host::Hop hop;
  {
    py::gil_scoped_release release;
    hop = ifru::host::expand_hop<I>(rowptr.data(), neighbor.data(), n_nodes, rows.data(),
                                    score.data(), rows.shape(0));
  }
  return py::make_tuple(to_numpy(hop.rows), to_numpy(hop.score));
}

template <class I>
py::tuple slice_rows(const Exact<int64_t>& rowptr, const Exact<I>& neighbor, const Exact<I>& edge,
                     const Ids& rows) {
  const int64_t n_nodes = check_csr(rowptr, neighbor);
  if (edge.shape(0) != neighbor.shape(0)) {
    throw py::value_error("edge: expected as many entries as neighbor");
  }
  ifru::host::RowSlice<I> slice;
  {
    py::gil_scoped_release release;
    slice = ifru::host::slice_rows<I>(rowptr.data(), neighbor.data(), edge.data(), n_nodes,
                                      rows.data(), rows.shape(0));
  }
  return py::make_tuple(to_numpy(slice.rowptr), to_numpy(slice.neighbor), to_numpy(slice.local),
                        to_numpy(slice.edge));
}

py::array_t<int64_t> balanced_cuts(const Exact<int64_t>& rowptr, int64_t first, int64_t last,
                                   int64_t n_cuts) {
  if (first < 0 || first > last || last >= rowptr.shape(0) || n_cuts < 1) {
    throw py::value_error("balanced_cuts: expected columns of the adjacency and n_cuts >= 1");
  }
  return to_numpy(ifru::host::balanced_cuts(rowptr.data(), first, last, n_cuts));
}

template <class I>
py::tuple stream_order(const Exact<int64_t>& rowptr, const Exact<I>& neighbor, const Exact<I>& edge,
                       int64_t first_row, int64_t n_rows, const Exact<int64_t>& cuts,
                       int64_t n_blocks, int64_t n_threads) {
  const int64_t n_nodes = check_csr(rowptr, neighbor);
  const bool rows_first = first_row == 0;
  if (edge.shape(0) != neighbor.shape(0) || n_rows < 0 || n_rows > n_nodes ||
      (!rows_first && first_row != n_nodes - n_rows)) {
    throw py::value_error("stream_order: expected the rows of one side of an adjacency");
  }
  const int64_t n_cuts = cuts.shape(0) - 1;
  if (n_blocks < 1 || n_cuts < n_blocks || n_cuts % n_blocks != 0 ||
      cuts.data()[n_cuts] != (rows_first ? n_nodes : first_row)) {
    throw py::value_error("stream_order: expected cuts of the other side into a multiple of " +
                          std::to_string(n_blocks) + " intervals, got " + std::to_string(n_cuts));
  }
  const int64_t* p = rowptr.data();
  const int64_t n_entries = p[first_row + n_rows] - p[first_row];
  py::array_t<int64_t> out_rowptr(n_blocks * (n_rows + 1));
  py::array_t<I> out_neighbor(n_entries);
  py::array_t<I> out_edge(n_entries);
  int64_t* out_rowptr_data = out_rowptr.mutable_data();
  I* out_neighbor_data = out_neighbor.mutable_data();
  I* out_edge_data = out_edge.mutable_data();
  {
    py::gil_scoped_release release;
    ifru::host::order_by_blocks<I>(p, neighbor.data(), edge.data(), first_row, n_rows, cuts.data(),
                                   n_cuts, n_blocks, out_rowptr_data, out_neighbor_data,
                                   out_edge_data, n_threads);
  }
  return py::make_tuple(out_rowptr, out_neighbor, out_edge);
}

template <class I>
py::tuple build_triples(const ifru::host::TripleList& list, int64_t n_threads) {
  py::array_t<int64_t> rowptr(list.n_users + list.n_items + 1);
  py::array_t<I> neighbor(3 * list.n_triples);
  py::array_t<I> other(3 * list.n_triples);
  py::array_t<I> triple(2 * list.n_triples);
  py::array_t<I> edge(list.n_triples);
  int64_t* rowptr_data = rowptr.mutable_data();
  I* neighbor_data = neighbor.mutable_data();
  I* other_data = other.mutable_data();
  I* triple_data = triple.mutable_data();
  I* edge_data = edge.mutable_data();
  {
    py::gil_scoped_release release;
    ifru::host::build_triples<I>(list, rowptr_data, neighbor_data, other_data, triple_data,
                                 edge_data, n_threads);
  }
  return py::make_tuple(rowptr, neighbor, other, triple, edge);
}

py::tuple triples(const Ids& user, const Ids& positive, const Ids& negative, int64_t n_users,
                  int64_t n_items, int64_t n_threads) {
  for (const Ids* ids : {&user, &positive, &negative}) {
    if (ids->ndim() != 1 || ids->shape(0) != user.shape(0)) {
      throw py::value_error("triples: expected user, positive and negative of one shape [n], got " +
                            std::to_string(user.size()) + ", " + std::to_string(positive.size()) +
                            " and " + std::to_string(negative.size()) + " ids");
    }
  }
  if (n_users < 0 || n_items < 0) {
    throw py::value_error("triples: expected n_users, n_items >= 0, got " +
                          std::to_string(n_users) + " and " + std::to_string(n_items));
  }
  const ifru::host::TripleList list{user.data(),   positive.data(), negative.data(),
                                    user.shape(0), n_users,         n_items};
  return ifru::host::fits_int32(n_users + n_items, list.n_triples)
             ? build_triples<int32_t>(list, n_threads)
             : build_triples<int64_t>(list, n_threads);
}

py::dict build_info() {
  py::dict info;
  info["version"] = IFRU_VERSION;
  info["torch"] = IFRU_TORCH_VERSION;
  info["compiler"] = IFRU_COMPILER;
  info["build_type"] = IFRU_BUILD_TYPE;
  info["cuda"] = std::string(IFRU_CUDA_VERSION).empty() ? py::object(py::none())
                                                        : py::object(py::str(IFRU_CUDA_VERSION));
  info["cuda_architectures"] = IFRU_CUDA_ARCHITECTURES;
  info["cuda_reason"] = IFRU_CUDA_REASON;
  return info;
}

template <class I>
void define_neighborhood(py::module_& m) {
  m.def("expand_hop", &expand_hop<I>, py::arg("rowptr").noconvert(),
        py::arg("neighbor").noconvert(), py::arg("rows"), py::arg("score"),
        "(rows, score) of the next hop: the neighbours of ascending `rows`, ascending, with the "
        "score that the given ones pass on, divided by one plus the neighbour's interactions.");
  m.def("slice_rows", &slice_rows<I>, py::arg("rowptr").noconvert(),
        py::arg("neighbor").noconvert(), py::arg("edge").noconvert(), py::arg("rows"),
        "(rowptr, neighbor, local, edge): the entries of ascending `rows`; local is the "
        "neighbour's position among them, or -1.");
  m.def("stream_order", &stream_order<I>, py::arg("rowptr").noconvert(),
        py::arg("neighbor").noconvert(), py::arg("edge").noconvert(), py::arg("first_row"),
        py::arg("n_rows"), py::arg("cuts").noconvert(), py::arg("n_blocks"),
        py::arg("n_threads") = 1,
        "(rowptr [n_blocks * (n_rows + 1)], neighbor [E], edge [E]): one side's rows, block by "
        "block of the columns between the cuts.");
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Index building and build information; NumPy in, NumPy out.";
  m.def(
      "bipartite_adjacency", &bipartite_adjacency, py::arg("user"), py::arg("item"),
      py::arg("n_users"), py::arg("n_items"), py::arg("n_threads") = 1, py::arg("out") = py::none(),
      "(rowptr [N + 1] int64, neighbor [2E], edge [2E]): the CSR by user, then the CSC by item, "
      "as one adjacency over N = n_users + n_items nodes. neighbor holds node ids, ascending in "
      "each row; edge holds the interaction's row. int32 where every value fits, else int64. out: "
      "None, or where to write: (rowptr, neighbor, edge, scratch [3E]), None for what is to be "
      "allocated.");
  m.def("fits_int32", &ifru::host::fits_int32, py::arg("n_nodes"), py::arg("n_interactions"),
        "Whether the indices of an adjacency are int32, else int64.");
  m.def("balanced_cuts", &balanced_cuts, py::arg("rowptr").noconvert(), py::arg("first"),
        py::arg("last"), py::arg("n_cuts"),
        "[n_cuts + 1] bounds of intervals of the columns [first, last) with about equal numbers "
        "of interactions.");
  define_neighborhood<int32_t>(m);
  define_neighborhood<int64_t>(m);
  m.def(
      "triples", &triples, py::arg("user"), py::arg("positive"), py::arg("negative"),
      py::arg("n_users"), py::arg("n_items"), py::arg("n_threads") = 1,
      "(rowptr [N + 1] int64, neighbor [3T], other [3T], triple [2T], edge [T]): triples by node, "
      "see ifru_ext.triples. int32 where every value fits, else int64.");
  m.def("build_info", &build_info, "What was built, with what, and why CUDA is or is not in it.");
  m.def(
      "isa", [] { return std::string(ifru::cpu::isa_name(ifru::cpu::select_isa())); },
      "Name of the instruction set in use; raises RuntimeError for an unusable IFRU_EXT_ISA.");
  m.def("supported_isas", &ifru::cpu::supported_isas,
        "Instruction sets in this build that this processor can run, comma-separated.");
}
