// Random values, and how far results are from what is expected: for all C++ tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace ifru::test {

template <class T>
std::vector<T> random_values(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

// The largest error, relative to 1 + |expected|; NaN counts as infinite.
template <class T>
double error_of(const std::vector<T>& got, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t k = 0; k < got.size(); ++k) {
    const double error = std::fabs(got[k] - expected[k]) / (1 + std::fabs(expected[k]));
    worst = std::isnan(error) ? INFINITY : std::fmax(worst, error);
  }
  return worst;
}

}  // namespace ifru::test
