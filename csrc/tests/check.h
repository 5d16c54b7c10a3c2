// The few lines of test harness that these tests need.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace ifru::test {

inline int failures = 0;
inline int checks = 0;

inline void check(bool ok, const char* what, const char* file, int line) {
  ++checks;
  if (!ok) {
    ++failures;
    std::printf("%s:%d: failed: %s\n", file, line, what);
#ifdef IFRU_STOP_AT_FAILURE  // the mutation run asks for no more
    std::exit(1);
#endif
  }
}

void test_adjacency();
void test_kernels();
void test_pairwise();

}  // namespace ifru::test

#define CHECK(condition) ::ifru::test::check((condition), #condition, __FILE__, __LINE__)
