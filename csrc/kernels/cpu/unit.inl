// The body of one per-ISA translation unit: set IFRU_VECTOR_BYTES and IFRU_TABLE, include this.
// No STL, and nothing with external linkage but the table.

#include "kernels.h"

namespace ifru::cpu {

// clang-format off: vec.inl comes first
#include "vec.inl"
#include "curvature.inl"
#include "derivatives.inl"
#include "gather.inl"
#include "restricted.inl"
#include "vector.inl"
// clang-format on

namespace {

template <class T, class I>
constexpr Kernels<T, I> make_kernels() {
  return {for_width<Propagate, T, I, PropagateArgs<T, I>>,
          for_width<Gradient, T, I, GradientArgs<T, I>>,
          for_width<Hvp, T, I, CurvatureArgs<T, I>>,
          for_width<GaussNewton, T, I, CurvatureArgs<T, I>>,
          restricted_rows<T, I, true>,
          restricted_rows<T, I, false>,
          derivatives<T, I>};
}

template <class T>
constexpr VectorKernels<T> make_vector_kernels() {
  return {dot_block<T>, cg_update_rows<T>, cg_direction_rows<T>};
}

}  // namespace

extern const KernelTable IFRU_TABLE = {
    make_kernels<float, int32_t>(),  make_kernels<float, int64_t>(),
    make_kernels<double, int32_t>(), make_kernels<double, int64_t>(),
    make_vector_kernels<float>(),    make_vector_kernels<double>()};

}  // namespace ifru::cpu
