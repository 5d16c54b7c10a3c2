#include "kernels.h"

#include "isa.h"

namespace ifru::cpu {

const KernelTable& kernel_table() {
  static const KernelTable& table = []() -> const KernelTable& {
    switch (select_isa()) {
#if defined(IFRU_X86_ISA_UNITS)
      case Isa::kAvx512:
        return kAvx512Table;
      case Isa::kAvx2:
        return kAvx2Table;
#endif
      default:
        return kBaselineTable;
    }
  }();
  return table;
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
const VectorKernels<float>& vector_kernels() {
  return kernel_table().f32;
}
template <>
const VectorKernels<double>& vector_kernels() {
  return kernel_table().f64;
}

}  // namespace ifru::cpu
