// The emulation itself: good kernels pass, every planted bug gets its diagnosis.
#include <cstring>
#include <string>
#include <vector>

#include "../../kernels/cuda/launch.cuh"
#include "device_array.h"
#include "planted.cuh"
#include "tests.h"

namespace ifru::test {
namespace {

using namespace ifru::planted;
using simt::DeviceArray;

// The launch's error, "" if there is none.
template <class... Params, class... Args>
std::string error_of_launch(void (*kernel)(Params...), int64_t grid, int block, Args... args) {
  try {
    cuda::launch("planted", kernel, grid, block, nullptr, args...);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != text.npos; }

void check_diagnosis(const std::string& error, const char* kind, const char* detail) {
  const bool ok = has(error, "ifru_ext: planted: ") && has(error, kind) && has(error, detail);
  CHECK(ok);
  if (!ok) std::printf("  expected '%s' and '%s' in '%s'\n", kind, detail, error.c_str());
}

void check_good_kernels() {
  const auto x = random_values<float>(100, 1);
  DeviceArray<float> input(x);
  DeviceArray<float> sums(2);
  CHECK(error_of_launch(block_sum, 2, kBlock, input.data(), sums.data(), 100).empty());
  std::vector<double> expected(2);
  for (int k = 0; k < 100; ++k) expected[k / kBlock] += x[k];
  CHECK(error_of(sums.host(), expected) < 1e-5);

  DeviceArray<float> swapped(kBlock);
  CHECK(error_of_launch(swap_in_warp, 1, kBlock, swapped.data()).empty());
  for (int k = 0; k < kBlock; ++k) CHECK(swapped.host()[k] == float(k ^ 1));

  DeviceArray<float> powers(kBlock);
  CHECK(error_of_launch(teams_apart, 1, kBlock, powers.data()).empty());
  for (int k = 0; k < kBlock; ++k) CHECK(powers.host()[k] == std::pow(8.0f, k % 32 / kTeam));
}

// Found by the scheduler, in every build.
void check_planted_waits() {
  DeviceArray<float> out(kBlock);
  const auto run = [&](void (*kernel)(float*)) {
    return error_of_launch(kernel, 1, kBlock, out.data());
  };
  check_diagnosis(run(barrier_in_branch), "divergent barrier", "has returned");
  check_diagnosis(run(barriers_at_two_lines), "divergent barrier", "another thread at planted.cuh");
  check_diagnosis(run(shuffle_after_return), "", "shuffle at planted.cuh");
  check_diagnosis(run(shuffle_in_branch), "deadlock", "waits for lanes that never come");
  check_diagnosis(run(shuffles_at_two_lines), "divergent warp", "meets shuffle at planted.cuh");
  check_diagnosis(run(team_loses_a_lane), "divergent warp", "planted.cuh");
  check_diagnosis(run(shuffle_from_outside), "inactive lane", "reads lane 20");
  check_diagnosis(run(mask_without_self), "mask", "lacks the caller's lane");
  check_diagnosis(error_of_launch(swap_in_warp, 1, 20, out.data()), "inactive lane",
                  "which the block does not have");
}

// Found by the checking build.
void check_planted_accesses() {
  const std::vector<float> zeros(kBlock);
  DeviceArray<float> out(zeros);
  DeviceArray<float> x(random_values<float>(kBlock, 1));
  const auto run = [&](void (*kernel)(float*), int64_t grid = 1) {
    return error_of_launch(kernel, grid, kBlock, out.data());
  };
  check_diagnosis(run(race_in_shared), "race", "of shared memory");
  check_diagnosis(run(race_in_warp), "race", "of shared memory");
  check_diagnosis(run(race_over_shuffle), "race", "of shared memory");
  check_diagnosis(run(race_on_reuse), "race", "after an unordered");
  check_diagnosis(run(race_between_threads), "race", "of device memory");
  check_diagnosis(run(race_between_blocks, 3), "race: write", "after an unordered write");
  check_diagnosis(run(write_before_begin), "out of bounds: write", "at byte -4 of a buffer");
  check_diagnosis(run(uninitialised_shared), "uninitialised: read", "of shared memory");
  check_diagnosis(error_of_launch(read_past_end, 1, kBlock, x.data() + 4, out.data(), kBlock - 4),
                  "out of bounds: read", "at byte 256 of a buffer of 256 bytes");
  check_diagnosis(error_of_launch(index_past_shared, 1, kBlock, out.data(), 1), "out of bounds",
                  "array index 64");
  DeviceArray<float> empty(kBlock);
  check_diagnosis(error_of_launch(uninitialised_global, 1, kBlock, empty.data(), out.data()),
                  "uninitialised: read", "of device memory");
  DeviceArray<Four> fours(kBlock);
  check_diagnosis(error_of_launch(misaligned, 1, kBlock, x.data(), fours.data()), "misaligned",
                  "planted.cuh");
  float on_host[kBlock] = {};
  check_diagnosis(error_of_launch(uninitialised_global, 1, kBlock, on_host, out.data()),
                  "out of bounds: read", "outside device memory");
  CHECK(run(swap_in_warp).empty());  // a failed launch leaves nothing behind
}

}  // namespace

void test_emulation() {
  check_good_kernels();
  check_planted_waits();
  if (simt::check::kEnabled) check_planted_accesses();
}

}  // namespace ifru::test
