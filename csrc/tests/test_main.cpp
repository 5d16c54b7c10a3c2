#include "check.h"

int main() {
  ifru::test::test_adjacency();
  ifru::test::test_kernels();
  ifru::test::test_pairwise();
  const int failed = ifru::test::failures;
  std::printf("%d passed, %d failed\n", ifru::test::checks - failed, failed);
  return failed == 0 ? 0 : 1;
}
