// Loss, residual and curvature on the GPU, of every interaction, equation (2), or of every triple,
// equation (3).
//
// Regime: memory bound, two or three gathered rows for each. A team of lanes reads the rows and
// adds up the score; its first lane makes the derivatives of it. Deterministic: a score is summed
// in an order that d alone decides. Offsets are 64-bit.
//
// An id that is out of bounds is not followed, and makes the three results NaN.
#pragma once

#include <cstdint>

#include "../loss_math.h"
#include "launch.cuh"
#include "pack.cuh"

namespace ifru::cuda {

// K = 2: (left, right), whose score is <f_left, f_right>; K = 3: (user, positive, negative), whose
// score is <f_user, f_positive - f_negative>.
template <class T, class I, int K>
struct DerivativeParams {
  const I* ids[K];  // [E] each
  const T* f;       // [N, d]
  const T* label;   // [E], read for K = 2
  const T* weight;  // [E] or null
  T* value;         // [E]
  T* residual;      // [E]
  T* curvature;     // [E]
  int64_t n_examples;
  int64_t n_nodes;
  int64_t d;
  Loss loss;  // for K = 2
};

constexpr int kDerivativesBlock = 128;

template <class T, class I, int K, class Lay>
__global__ void __launch_bounds__(kDerivativesBlock)
    score_derivatives(const DerivativeParams<T, I, K> p) {
  using P = Pack<T, Lay::V>;
  constexpr int kWarps = kDerivativesBlock / kWarpSize;
  const int lane = threadIdx.x % Lay::L;
  const int team = threadIdx.x % kWarpSize / Lay::L;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int64_t stride = int64_t(gridDim.x) * kWarps * Lay::kTeams;
  for (int64_t first = warp * Lay::kTeams; first < p.n_examples; first += stride) {
    const int64_t e = first + team;
    const bool exists = e < p.n_examples;
    bool valid = exists;
    const T* row[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t id = exists ? static_cast<int64_t>(p.ids[k][e]) : 0;
      const bool known = id >= 0 && id < p.n_nodes;
      row[k] = p.f + (known ? id : 0) * p.d;
      valid &= known;
    }
    T score[1] = {};
    for_tiles<Lay>(p.d, [&](int64_t tile) {
      const int64_t column = tile + lane * Lay::V;
      if (!valid || column >= p.d) return;
      P right = P::read(row[1] + column);
      if constexpr (K == 3) right.add(T(-1), P::read(row[2] + column));
      score[0] = add_dot(score[0], P::read(row[0] + column), right);
    });
    sum_over_lanes<Lay>(score);
    if (exists && lane == 0) {
      LossDerivatives<T> l;
      if constexpr (K == 2) {
        l = pointwise_loss(p.loss, score[0], p.label[e]);
      } else {
        l = pairwise_loss(score[0]);
      }
      const T weight = !valid ? T(NAN) : p.weight == nullptr ? T(1) : p.weight[e];
      p.value[e] = weight * l.value;
      p.residual[e] = weight * l.residual;
      p.curvature[e] = weight * l.curvature;
    }
  }
}

// The bits do not depend on `max_blocks`.
template <class T, class I, int K>
void derivatives(const DerivativeParams<T, I, K>& p, cudaStream_t stream,
                 int64_t max_blocks = kMaxBlocks) {
  if (p.n_examples == 0) return;
  dispatch_layout<T>(p.d, are_full_packs<T>(p.d, p.f), [&](auto layout) {
    using Lay = decltype(layout);
    constexpr int kTeams = kDerivativesBlock / Lay::L;
    launch("score_derivatives", score_derivatives<T, I, K, Lay>,
           n_blocks(p.n_examples, kTeams, max_blocks), kDerivativesBlock, stream, p);
  });
}

}  // namespace ifru::cuda
