// The body of one per-ISA translation unit: set IFRU_VECTOR_BYTES and IFRU_TABLE, include this.
// No STL, and nothing with external linkage but the table.

#include "kernels.h"

namespace ifru::cpu {

// clang-format off: vec.inl comes first
#include "vec.inl"
#include "curvature.inl"
#include "derivatives.inl"
#include "gather.inl"
// clang-format on

namespace {

template <class T, class I>
constexpr Kernels<T, I> make_kernels() {
  return {for_width<Propagate, T, I, PropagateArgs<T, I>>,
          for_width<Gradient, T, I, GradientArgs<T, I>>, for_width<Hvp, T, I, CurvatureArgs<T, I>>,
          for_width<GaussNewton, T, I, CurvatureArgs<T, I>>, derivatives<T, I>};
}

}  // namespace

extern const KernelTable IFRU_TABLE = {
    make_kernels<float, int32_t>(), make_kernels<float, int64_t>(), make_kernels<double, int32_t>(),
    make_kernels<double, int64_t>()};

}  // namespace ifru::cpu
