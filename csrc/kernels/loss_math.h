// Losses and their derivatives with respect to the score: one definition for CPU and CUDA.
//
// Everything here has internal linkage and is forced inline: the file is compiled once per
// instruction set, and a merged copy could bring AVX-512 code into the baseline build.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define IFRU_HD static __host__ __device__ __forceinline__
#else
#define IFRU_HD static inline __attribute__((always_inline))
#endif

namespace ifru {

// The values are part of the op schema (argument `loss`) and of ifru_ext.objective.Loss.
enum class Loss : int64_t { kBce = 0, kMse = 1 };

// C functions by name: std::exp(float) is an inline function of its own, which could be merged.
IFRU_HD float exp_of(float x) { return expf(x); }
IFRU_HD double exp_of(double x) { return exp(x); }
IFRU_HD float log1p_of(float x) { return log1pf(x); }
IFRU_HD double log1p_of(double x) { return log1p(x); }

template <class T>
struct LossDerivatives {
  T value;      // l(s, y)
  T residual;   // r = dl/ds
  T curvature;  // w = d2l/ds2
};

// Equation (2), softplus(s) - y s. Written with exp(-|s|), so that no score overflows, and with
// 1 - y where the score is positive, so that a confident and right prediction keeps its digits:
// s - y s and sigma(s) - y would cancel to zero.
template <class T>
IFRU_HD LossDerivatives<T> binary_cross_entropy(T score, T label) {
  const bool positive = score > T(0);
  const T magnitude = positive ? score : -score;
  const T decay = exp_of(-magnitude);
  const T larger = T(1) / (T(1) + decay);  // sigma(|s|)
  const T smaller = decay * larger;        // sigma(-|s|)
  const T miss = positive ? T(1) - label : label;
  return {log1p_of(decay) + miss * magnitude, positive ? miss - smaller : smaller - miss,
          larger * smaller};
}

// Equation (3), softplus(-s) of the score's margin s: the positive item ranks first, label 1.
template <class T>
IFRU_HD LossDerivatives<T> pairwise_loss(T margin) {
  return binary_cross_entropy(margin, T(1));
}

template <class T>
IFRU_HD LossDerivatives<T> squared_error(T score, T label) {
  const T residual = score - label;
  return {T(0.5) * residual * residual, residual, T(1)};
}

template <class T>
IFRU_HD LossDerivatives<T> pointwise_loss(Loss loss, T score, T label) {
  return loss == Loss::kBce ? binary_cross_entropy(score, label) : squared_error(score, label);
}

}  // namespace ifru
