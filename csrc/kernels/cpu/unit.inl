// The body of one per-ISA translation unit: set IFRU_VECTOR_BYTES and IFRU_TABLE, include this.
// No STL, and nothing with external linkage but the table.

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace ifru::cpu {

// clang-format off: vec.inl comes first
#include "vec.inl"
#include "derivatives.inl"
#include "diagonal.inl"
#include "gather.inl"
#include "restricted.inl"
#include "stream.inl"
#include "propagate_stream.inl"
#include "pairwise.inl"
#include "vector.inl"
// clang-format on

namespace {

template <Product kProduct, class S, class T, class I>
constexpr PassKernels<StreamArgs<S, T, I>> make_stream() {
  return {start_columns<S, T, I>,
          for_width<StreamRows<S, kProduct>::template Of, T, I, StreamArgs<S, T, I>, int64_t,
                    int64_t, int64_t>,
          [](const StreamArgs<S, T, I>&, int64_t, int64_t) {}};
}

template <class S, class T, class I>
constexpr ProductKernels<S, T, I> make_products() {
  return {make_stream<Product::kHvp, S, T, I>(), make_stream<Product::kGaussNewton, S, T, I>()};
}

template <class T, class I, Product kProduct>
constexpr PairwiseKernels<T, I> make_pairwise() {
  return {
      for_width<PairwiseUsers<kProduct>::template Of, T, I, PairwiseArgs<T, I>, int64_t, int64_t>,
      for_width<PairwiseItems<kProduct>::template Of, T, I, PairwiseArgs<T, I>, int64_t, int64_t>};
}

template <class T, class I>
constexpr Kernels<T, I> make_kernels() {
  using Passing = PropagateStreamArgs<T, I>;
  return {for_width<Propagate, T, I, PropagateArgs<T, I>, int64_t, int64_t>,
          {zero_columns<T, I>, for_width<PropagateRows, T, I, Passing, int64_t, int64_t, int64_t>,
           for_width<PropagateColumns, T, I, Passing, int64_t, int64_t>},
          make_stream<Product::kGradient, T, T, I>(),
          make_products<T, T, I>(),
          restricted_rows<T, I, true>,
          restricted_rows<T, I, false>,
          derivatives<T, I>,
          diagonal_rows<T, I>,
          block_rows<T, I>,
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

extern const KernelTable IFRU_TABLE = {make_kernels<float, int32_t>(),
                                       make_kernels<float, int64_t>(),
                                       make_kernels<double, int32_t>(),
                                       make_kernels<double, int64_t>(),
                                       make_products<BFloat16, float, int32_t>(),
                                       make_products<BFloat16, float, int64_t>(),
                                       make_products<Float16, float, int32_t>(),
                                       make_products<Float16, float, int64_t>(),
                                       make_vector_kernels<float>(),
                                       make_vector_kernels<double>()};

}  // namespace ifru::cpu
