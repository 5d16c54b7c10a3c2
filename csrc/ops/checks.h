// Argument checks of all ops: each failure is one sentence "op: expected ..., got ...".
//
// They are the second line. ifru_ext/ops.py makes arguments contiguous and moves nothing between
// devices; ids and shapes that a caller of torch.ops passes directly are checked here, so that no
// input reaches memory that is not its own.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../kernels/loss_math.h"

namespace ifru::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "ifru_ext::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t k = 0; k < t.dim(); ++k) text += (k ? ", " : "") + std::to_string(t.size(k));
  return text + "]";
}

// Size of the leading dimension, or -1 for any.
inline void check_shape(const char* op, const char* name, const Tensor& t, int64_t dim,
                        int64_t rows, int64_t columns = -1) {
  const bool ok =
      t.dim() == dim && (rows < 0 || t.size(0) == rows) && (columns < 0 || t.size(1) == columns);
  if (!ok) {
    const auto size_text = [](int64_t n) { return n < 0 ? std::string("any") : std::to_string(n); };
    fail(op, name, ": expected shape [", size_text(rows),
         dim == 2 ? ", " + size_text(columns) : std::string(), "], got ", shape_text(t));
  }
  if (!t.is_contiguous()) fail(op, name, ": expected a contiguous tensor");
}

inline bool same_device(const Tensor& t, const Tensor& other) {
  return t.is_cuda() == other.is_cuda() && t.get_device_index() == other.get_device_index();
}

inline void check_device(const char* op, const Tensor& t, const Tensor& other) {
  if (!same_device(t, other)) fail(op, "indices: expected the device of the features");
}

inline void check_int64(const char* op, const char* name, const Tensor& t) {
  if (t.scalar_type() != ScalarType::Long) {
    fail(op, name, ": expected int64, got ", torch::headeronly::toString(t.scalar_type()));
  }
}

inline void check_same(const char* op, const char* name, const Tensor& t, const char* other_name,
                       const Tensor& other) {
  if (t.scalar_type() != other.scalar_type()) {
    fail(op, name, ": expected the dtype of ", other_name, " (",
         torch::headeronly::toString(other.scalar_type()), "), got ",
         torch::headeronly::toString(t.scalar_type()));
  }
  if (!same_device(t, other)) fail(op, name, ": expected the device of ", other_name);
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  if (t.scalar_type() != expected) {
    fail(op, name, ": expected ", torch::headeronly::toString(expected), ", got ",
         torch::headeronly::toString(t.scalar_type()));
  }
}

// What features of this dtype are computed with: float32 for sixteen-bit storage.
inline ScalarType value_type(ScalarType storage) {
  const bool half = storage == ScalarType::Half || storage == ScalarType::BFloat16;
  return half ? ScalarType::Float : storage;
}

struct Named {
  const char* name;
  const std::optional<Tensor> tensor;
};

// Checks that `t` may be written to while the others are read.
inline void check_apart(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<Named> others) {
  const auto first = [](const Tensor& x) { return static_cast<const char*>(x.const_data_ptr()); };
  const auto last = [&](const Tensor& x) { return first(x) + x.numel() * x.element_size(); };
  for (const Named& other : others) {
    if (!other.tensor.has_value()) continue;
    if (first(t) < last(*other.tensor) && first(*other.tensor) < last(t)) {
      fail(op, name, ": expected memory of its own, got some of ", other.name);
    }
  }
}

// A value tensor of the op: shape, and dtype and device of the features `f`.
inline void check_value(const char* op, const char* name, const Tensor& t, const char* f_name,
                        const Tensor& f, int64_t dim, int64_t rows, int64_t columns = -1) {
  check_shape(op, name, t, dim, rows, columns);
  check_same(op, name, t, f_name, f);
}

inline void check_value(const char* op, const char* name, const std::optional<Tensor>& t,
                        const char* f_name, const Tensor& f, int64_t dim, int64_t rows,
                        int64_t columns = -1) {
  if (t.has_value()) check_value(op, name, *t, f_name, f, dim, rows, columns);
}

// Shapes and dtypes of an adjacency; its contents are checked by check_rowptr and the kernels.
inline void check_adjacency(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                            const Tensor& f) {
  check_shape(op, "rowptr", rowptr, 1, f.size(0) + 1);
  check_shape(op, "neighbor", neighbor, 1, -1);
  check_int64(op, "rowptr", rowptr);
  for (const Tensor* t : {&rowptr, &neighbor}) check_device(op, *t, f);
}

// Shapes and dtypes of a stream's tensors, of either form.
inline void check_stream_shapes(const char* op, const Tensor& rowptr, const Tensor& neighbor,
                                const Tensor& cuts, const Tensor& f) {
  check_shape(op, "rowptr", rowptr, 2, -1);
  check_shape(op, "neighbor", neighbor, 1, -1);
  check_shape(op, "cuts", cuts, 1, -1);
  check_int64(op, "rowptr", rowptr);
  check_int64(op, "cuts", cuts);
  for (const Tensor* t : {&rowptr, &neighbor, &cuts}) check_device(op, *t, f);
  if (rowptr.size(0) < 1 || rowptr.size(1) < 1 || rowptr.size(1) - 1 > f.size(0)) {
    fail(op, "rowptr: expected shape [blocks, rows + 1] with at most ", f.size(0), " rows, got ",
         shape_text(rowptr));
  }
  if (cuts.numel() < 2) fail(op, "cuts: expected at least two nodes, got ", cuts.numel());
}

// rowptr on the host: starts at 0, never decreases, ends at the number of entries.
inline void check_rowptr(const char* op, const int64_t* rowptr, int64_t n_nodes,
                         int64_t n_entries) {
  bool ordered = rowptr[0] == 0 && rowptr[n_nodes] == n_entries;
  for (int64_t n = 0; n < n_nodes; ++n) ordered &= rowptr[n] <= rowptr[n + 1];
  if (!ordered) {
    fail(op, "rowptr: expected a non-decreasing sequence from 0 to ", n_entries,
         ", the length of neighbor");
  }
}

inline Loss check_loss(const char* op, int64_t loss) {
  if (loss != int64_t(Loss::kBce) && loss != int64_t(Loss::kMse)) {
    fail(op, "loss: expected 0 (bce) or 1 (mse), got ", loss);
  }
  return static_cast<Loss>(loss);
}

[[noreturn]] inline void fail_node_id(const char* op, const char* name, int64_t n_nodes) {
  fail(op, name, ": expected node ids in [0, ", n_nodes, "), found one outside");
}

}  // namespace ifru::ops
