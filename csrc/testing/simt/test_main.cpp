// simt_* [fwd | rev | rand:SEED]
#include <cstdlib>
#include <cstring>

#include "scheduler.h"
#include "tests.h"

int main(int argc, char** argv) {
  const char* schedule = argc > 1 ? argv[1] : "fwd";
  if (std::strcmp(schedule, "rev") == 0) {
    simt::set_schedule(simt::Order::kReverse);
  } else if (std::strncmp(schedule, "rand:", 5) == 0) {
    simt::set_schedule(simt::Order::kRandom, static_cast<unsigned>(std::atoi(schedule + 5)));
  } else if (std::strcmp(schedule, "fwd") != 0) {
    std::printf("schedule: expected fwd, rev or rand:SEED, got '%s'\n", schedule);
    return 2;
  }
  ifru::test::test_emulation();
  ifru::test::test_propagate();
  ifru::test::test_product();
  ifru::test::test_vector();
  ifru::test::test_derivatives();
  ifru::test::test_diagonal();
  ifru::test::test_pairwise();
  const int failed = ifru::test::failures;
  std::printf("%s: %d passed, %d failed\n", schedule, ifru::test::checks - failed, failed);
  return failed == 0 ? 0 : 1;
}
