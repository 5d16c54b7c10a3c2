// The body of one per-ISA translation unit: set IFRU_VECTOR_BYTES and IFRU_TABLE, include this.
// No STL, and nothing with external linkage but the table.

#include "kernels.h"

namespace ifru::cpu {

// clang-format off: vec.inl comes first
#include "vec.inl"
#include "derivatives.inl"
#include "gather.inl"
#include "restricted.inl"
#include "stream.inl"
#include "propagate_stream.inl"
#include "pairwise.inl"
#include "vector.inl"
// clang-format on

namespace {

template <class T, class I, Product kProduct>
constexpr StreamFn<T, I>* make_stream() {
  return for_width<StreamKernel<kProduct>::template Of, T, I, StreamArgs<T, I>, int64_t, int64_t,
                   int64_t>;
}

template <class T, class I, Product kProduct>
constexpr PairwiseKernels<T, I> make_pairwise() {
  return {
      for_width<PairwiseUsers<kProduct>::template Of, T, I, PairwiseArgs<T, I>, int64_t, int64_t>,
      for_width<PairwiseItems<kProduct>::template Of, T, I, PairwiseArgs<T, I>, int64_t, int64_t>};
}

template <class T, class I>
constexpr Kernels<T, I> make_kernels() {
  return {for_width<Propagate, T, I, PropagateArgs<T, I>, int64_t, int64_t>,
          for_width<PropagateStream, T, I, PropagateStreamArgs<T>, const Stream<I>&, int64_t,
                    int64_t, int64_t>,
          for_width<PropagateFinish, T, I, PropagateStreamArgs<T>, int64_t, int64_t>,
          make_stream<T, I, Product::kGradient>(),
          make_stream<T, I, Product::kHvp>(),
          make_stream<T, I, Product::kGaussNewton>(),
          restricted_rows<T, I, true>,
          restricted_rows<T, I, false>,
          derivatives<T, I>,
          pairwise_derivatives<T, I>,
          make_pairwise<T, I, Product::kGradient>(),
          make_pairwise<T, I, Product::kHvp>(),
          make_pairwise<T, I, Product::kGaussNewton>()};
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
