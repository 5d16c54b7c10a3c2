// simt_* [fwd | rev | rand:SEED [TEST...]]: all tests by default.
#include <cstdlib>
#include <cstring>

#include "scheduler.h"
#include "tests.h"

namespace {

struct Test {
  const char* name;
  void (*run)();
};

// The quickest first: a mutant is dropped at its first failure.
constexpr Test kTests[] = {
    {"emulation", ifru::test::test_emulation}, {"launch", ifru::test::test_launch},
    {"propagate", ifru::test::test_propagate}, {"diagonal", ifru::test::test_diagonal},
    {"vector", ifru::test::test_vector},       {"derivatives", ifru::test::test_derivatives},
    {"pairwise", ifru::test::test_pairwise},   {"product", ifru::test::test_product},
};

}  // namespace

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
  for (const Test& test : kTests) {
    bool wanted = argc <= 2;
    for (int k = 2; k < argc; ++k) wanted |= std::strcmp(argv[k], test.name) == 0;
    if (wanted) test.run();
  }
  const int failed = ifru::test::failures;
  std::printf("%s: %d passed, %d failed\n", schedule, ifru::test::checks - failed, failed);
  return failed == 0 && ifru::test::checks > 0 ? 0 : 1;
}
