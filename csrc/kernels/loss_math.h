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

#if defined(__CUDA_ARCH__)
IFRU_HD float exp_of(float x) { return expf(x); }
IFRU_HD double exp_of(double x) { return exp(x); }
IFRU_HD float log1p_of(float x) { return log1pf(x); }
IFRU_HD double log1p_of(double x) { return log1p(x); }
#else
// The C library's functions are calls, one for each value. These have neither calls nor branches:
// a loop over them becomes vector code.
template <class T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  using Bits = int32_t;
  using Word = uint32_t;
  static constexpr int kFractionBits = 23, kBias = 127, kExpTerms = 7, kLogTerms = 7;
  static constexpr float kLowest = -104.0f;  // exp rounds to zero below
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};
template <>
struct FloatFormat<double> {
  using Bits = int64_t;
  using Word = uint64_t;
  static constexpr int kFractionBits = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 16;
  static constexpr double kLowest = -746.0;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
};

constexpr double kInverseFactorial[] = {1.0,
                                        1.0,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800};

template <class To, class From>
IFRU_HD To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// 2^n for normal results.
template <class T>
IFRU_HD T power_of_two(typename FloatFormat<T>::Bits n) {
  using F = FloatFormat<T>;
  return same_bits<T>(typename F::Word(typename F::Word(n + F::kBias) << F::kFractionBits));
}

// exp(x) for x <= 0: x = n ln 2 + r, and the Taylor series of exp(r) for |r| <= ln(2) / 2. Within
// 1.5 ulp; gradual underflow to zero; NaN stays NaN.
template <class T>
IFRU_HD T exp_of(T x) {
  using F = FloatFormat<T>;
  using Bits = typename F::Bits;
  // Adding it leaves the nearest integer in the last bits.
  constexpr T kRound = T(3) * T(Bits(1) << (F::kFractionBits - 1));
  x = x < F::kLowest ? F::kLowest : x;
  const T shifted = x * T(1.4426950408889634074) + kRound;
  const Bits n = same_bits<Bits>(shifted) - same_bits<Bits>(kRound);
  const T whole = shifted - kRound;
  const T r = (x - whole * F::kLn2High) - whole * F::kLn2Low;
  T sum = T(kInverseFactorial[F::kExpTerms]);
  for (int k = F::kExpTerms - 1; k >= 0; --k) sum = sum * r + T(kInverseFactorial[k]);
  // In two factors: 2^n itself may be below the normal numbers.
  const Bits half = n >> 1;
  return sum * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// log(1 + x) for 0 <= x <= 1: 2 artanh(s) of s = x / (2 + x) <= 1 / 3, by its Taylor series. Within
// 2 ulp.
template <class T>
IFRU_HD T log1p_of(T x) {
  const T s = x / (T(2) + x);
  const T q = s * s;
  T sum = 0;
  for (int k = FloatFormat<T>::kLogTerms; k > 0; --k) sum = (sum + T(1.0 / (2 * k + 1))) * q;
  return T(2) * (s + s * sum);
}
#endif

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
