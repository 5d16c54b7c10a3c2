// How kernels are launched: limits, grid, stream, and the layout that suits a row.
#include <stdexcept>
#include <string>
#include <vector>

#include "../../kernels/cuda/pack.cuh"
#include "device_array.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

// Every thread of the grid writes its own element.
__global__ void write_grid(int* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = gridDim.x; }

void check_limits() {
  DeviceArray<int> out(cuda::kMaxBlock);
  const auto error_of_launch = [&](int64_t grid, int block) -> std::string {
    try {
      cuda::launch("write_grid", write_grid, grid, block, nullptr, out.data());
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  const auto is_refused = [&](int64_t grid, int block) {
    return error_of_launch(grid, block) == "ifru_ext: write_grid: launch of " +
                                               std::to_string(grid) + " blocks of " +
                                               std::to_string(block) + " threads is out of range";
  };
  CHECK(is_refused(0, 32));
  CHECK(is_refused(cuda::kMaxGrid + 1, 32));
  CHECK(is_refused(1, 0));
  CHECK(is_refused(1, cuda::kMaxBlock + 1));
  CHECK(error_of_launch(1, 1).empty());
  CHECK(error_of_launch(1, cuda::kMaxBlock).empty());
  // Not refused, but more than can be emulated.
  CHECK(error_of_launch(cuda::kMaxGrid, 1).find("grid (2147483647, 1, 1)") != std::string::npos);
}

void check_configuration() {
  DeviceArray<int> out(3 * 64);
  int stream;  // its address is one
  cuda::launch("write_grid", write_grid, 3, 64, &stream, out.data());
  CHECK(out.host() == std::vector<int>(3 * 64, 3));
  CHECK(simt::last_stream == &stream);
}

void check_blocks() {
  CHECK(cuda::n_blocks(0, 32, 9) == 0);
  CHECK(cuda::n_blocks(1, 32, 9) == 1);
  CHECK(cuda::n_blocks(64, 32, 9) == 2);
  CHECK(cuda::n_blocks(65, 32, 9) == 3);
  CHECK(cuda::n_blocks(1000, 32, 9) == 9);
}

// Rows of full packs get the smallest team that holds them; tiles where none does.
template <class S>
void check_layouts() {
  constexpr int64_t V = cuda::kFullPack<S>;
  for (int64_t d = V; d <= 40 * V; d += V) {
    cuda::dispatch_layout<S>(d, true, [&](auto layout) {
      using Lay = decltype(layout);
      CHECK(Lay::V == V);
      CHECK(Lay::L == 4 || d > Lay::kTile / 2);
      CHECK(Lay::kTiled == (d > 32 * V));
      CHECK(Lay::kTiled || d <= Lay::kTile);
    });
  }
}

}  // namespace

void test_launch() {
  check_limits();
  check_configuration();
  check_blocks();
  check_layouts<float>();
  check_layouts<double>();
  check_layouts<BFloat16>();
}

}  // namespace ifru::test
