// Runs a kernel on the CPU: a fiber for every CUDA thread of a block, the blocks one after another.
// A fiber runs until it waits, at a barrier or at a warp collective, or returns; the schedule says
// who comes next. What a GPU would punish with a hang or with undefined results ends the launch
// with a sentence: barriers and collectives that not all of their threads reach.
#pragma once

#include <cstddef>
#include <string>

namespace simt {

constexpr unsigned kWarpSize = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// What threadIdx and its like read.
struct Builtins {
  Dim3 thread, block, block_dim, grid_dim;
};
extern Builtins builtins;

inline unsigned linear_thread() {
  const Builtins& b = builtins;
  return b.thread.x + b.block_dim.x * (b.thread.y + b.block_dim.y * b.thread.z);
}

// Where a kernel waits; as a default argument, the caller's line.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// A kernel with its arguments, type-erased.
struct Call {
  void (*run)(const void* arguments);
  const void* arguments;
  size_t bytes;
};

// False if the launch was given up; last_error() says why.
bool launch(Dim3 grid, Dim3 block, Call call);
const char* last_error();

enum class Order { kForward, kReverse, kRandom };

// The order of blocks and of threads. Results must not depend on it.
void set_schedule(Order order, unsigned seed = 0);

// --- called by kernels ---------------------------------------------------------------------------

struct Collective {
  enum Kind { kShuffle, kBallot, kSyncWarp } kind;
  unsigned mask;
  const void* value;  // this lane's
  void* result;
  size_t bytes;
  int source;  // of a shuffle: a lane
  Site site;
};

void sync_threads(Site site);
void collective(const Collective& request);

// Gives up the launch: the fiber that calls it never runs again.
[[noreturn]] void fail(const std::string& what);

}  // namespace simt
