// From run-time dtypes to template arguments: once per call.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "../kernels/storage.h"
#include "checks.h"

namespace ifru::ops {

template <class F>
void dispatch_index(const char* op, const char* name, ScalarType index, F&& f) {
  if (index == ScalarType::Int) {
    f(int32_t{});
  } else if (index == ScalarType::Long) {
    f(int64_t{});
  } else {
    fail(op, name, ": expected int32 or int64, got ", torch::headeronly::toString(index));
  }
}

template <class F>
void dispatch_value(const char* op, const char* name, ScalarType value, F&& f) {
  if (value == ScalarType::Float) {
    f(float{});
  } else if (value == ScalarType::Double) {
    f(double{});
  } else {
    fail(op, name, ": expected float32 or float64, got ", torch::headeronly::toString(value));
  }
}

// Calls f(S{}, T{}) with the storage and the value type of features that may have sixteen bits.
template <class F>
void dispatch_storage(const char* op, const char* name, ScalarType storage, F&& f) {
  if (storage == ScalarType::BFloat16) {
    f(BFloat16{}, float{});
  } else if (storage == ScalarType::Half) {
    f(Float16{}, float{});
  } else if (storage == ScalarType::Float) {
    f(float{}, float{});
  } else if (storage == ScalarType::Double) {
    f(double{}, double{});
  } else {
    fail(op, name, ": expected float32, float64, bfloat16 or float16, got ",
         torch::headeronly::toString(storage));
  }
}

// Calls f(T{}, I{}) with the value type of `features` and the index type of `ids`.
template <class F>
void dispatch(const char* op, const char* features_name, const Tensor& features,
              const char* ids_name, const Tensor& ids, F&& f) {
  dispatch_value(op, features_name, features.scalar_type(), [&](auto value) {
    dispatch_index(op, ids_name, ids.scalar_type(), [&](auto index) { f(value, index); });
  });
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

}  // namespace ifru::ops
