#include "kernels.h"

#include <stdexcept>
#include <string>

#include "isa.h"

namespace ifru::cpu {

namespace {

const KernelTable& table_of(Isa isa) {
  switch (isa) {
#if defined(IFRU_X86_ISA_UNITS)
    case Isa::kAvx512:
      return kAvx512Table;
    case Isa::kAvx2:
      return kAvx2Table;
#endif
    default:
      return kBaselineTable;
  }
}

// Decided when the library is loaded, so that a later change of the environment cannot make what
// runs differ from what was reported. An exception must not leave a static initialiser.
struct Resolved {
  const KernelTable* table = nullptr;
  std::string error;

  Resolved() {
    try {
      table = &table_of(select_isa());
    } catch (const std::exception& e) {
      error = e.what();
    }
  }
};

const Resolved resolved;

}  // namespace

const KernelTable& kernel_table() {
  if (resolved.table == nullptr) throw std::runtime_error(resolved.error);
  return *resolved.table;
}

template <>
const Kernels<float, int32_t>& kernels() {
  return kernel_table().f32_i32;
}
template <>
const Kernels<float, int64_t>& kernels() {
  return kernel_table().f32_i64;
}
template <>
const Kernels<double, int32_t>& kernels() {
  return kernel_table().f64_i32;
}
template <>
const Kernels<double, int64_t>& kernels() {
  return kernel_table().f64_i64;
}

template <>
const ProductKernels<float, float, int32_t>& product_kernels() {
  return kernel_table().f32_i32.products;
}
template <>
const ProductKernels<float, float, int64_t>& product_kernels() {
  return kernel_table().f32_i64.products;
}
template <>
const ProductKernels<double, double, int32_t>& product_kernels() {
  return kernel_table().f64_i32.products;
}
template <>
const ProductKernels<double, double, int64_t>& product_kernels() {
  return kernel_table().f64_i64.products;
}
template <>
const ProductKernels<BFloat16, float, int32_t>& product_kernels() {
  return kernel_table().bf16_i32;
}
template <>
const ProductKernels<BFloat16, float, int64_t>& product_kernels() {
  return kernel_table().bf16_i64;
}
template <>
const ProductKernels<Float16, float, int32_t>& product_kernels() {
  return kernel_table().f16_i32;
}
template <>
const ProductKernels<Float16, float, int64_t>& product_kernels() {
  return kernel_table().f16_i64;
}

template <>
const VectorKernels<float>& vector_kernels() {
  return kernel_table().f32;
}
template <>
const VectorKernels<double>& vector_kernels() {
  return kernel_table().f64;
}

}  // namespace ifru::cpu
