// Mutants of the kernels' source, all in one build; the environment says which one is alive. The
// operators below sit in the middle of the mutated ones, `a < b` being written `a < at<7> < b`, so
// that neither precedence nor the operands' text needs to be known. Put in by mutants.py.
#pragma once

#include <cstdlib>

namespace ifru::mutants {

inline const int alive = [] {
  const char* number = std::getenv("IFRU_MUTANT");
  return number == nullptr ? -1 : std::atoi(number);
}();

template <int K>
inline bool is() {
  return alive == K;
}

template <int K>
struct Marker {};
template <int K>
inline constexpr Marker<K> at{};

template <class A, int K>
struct Left {
  A value;
};

// The second line is what the mutant computes instead.
#define IFRU_MUTANT_OPERATOR(OP, INSTEAD)                                                 \
  template <class A, int K>                                                               \
  inline Left<A, K> operator OP(A left, Marker<K>) {                                      \
    return {left};                                                                        \
  }                                                                                       \
  template <class A, class B, int K>                                                      \
  inline auto operator OP(Left<A, K> left, B right)->decltype(left.value OP right) {      \
    using Result = decltype(left.value OP right);                                         \
    return is<K>() ? static_cast<Result>(left.value INSTEAD right) : left.value OP right; \
  }

IFRU_MUTANT_OPERATOR(<, <=)
IFRU_MUTANT_OPERATOR(<=, <)
IFRU_MUTANT_OPERATOR(>, >=)
IFRU_MUTANT_OPERATOR(>=, >)
IFRU_MUTANT_OPERATOR(==, !=)
IFRU_MUTANT_OPERATOR(!=, ==)
IFRU_MUTANT_OPERATOR(+, -)
IFRU_MUTANT_OPERATOR(-, +)
IFRU_MUTANT_OPERATOR(*, +)
IFRU_MUTANT_OPERATOR(/, *)
IFRU_MUTANT_OPERATOR(%, /)
IFRU_MUTANT_OPERATOR(<<, >>)
IFRU_MUTANT_OPERATOR(>>, <<)
IFRU_MUTANT_OPERATOR(&, |)
IFRU_MUTANT_OPERATOR(|, &)

#undef IFRU_MUTANT_OPERATOR

template <int K, class A>
inline A negated(A value) {
  return is<K>() ? static_cast<A>(-value) : value;
}

template <int K, class A>
inline A increased(A value) {
  return is<K>() ? static_cast<A>(value + 1) : value;
}

template <int K>
inline bool flipped(bool value) {
  return is<K>() != value;
}

}  // namespace ifru::mutants
