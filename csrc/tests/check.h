// The few lines of test harness that these tests need.
#pragma once

#include <cmath>
#include <cstdio>

namespace ifru::test {

inline int failures = 0;
inline int checks = 0;

inline void check(bool ok, const char* what, const char* file, int line) {
  ++checks;
  if (!ok) {
    ++failures;
    std::printf("%s:%d: failed: %s\n", file, line, what);
  }
}

void test_adjacency();
void test_kernels();
void test_pairwise();

}  // namespace ifru::test

#define CHECK(condition) ::ifru::test::check((condition), #condition, __FILE__, __LINE__)
