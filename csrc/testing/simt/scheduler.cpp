// Jumps lead from one stack to another, which a fortified longjmp takes for an attack.
#undef _FORTIFY_SOURCE

#include "scheduler.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checker.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
// A fiber that failed is never unwound.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

namespace simt {

Builtins builtins;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxBlocks = 1 << 24;  // more would take hours

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Context {
  ucontext_t first;
  jmp_buf later;
  bool entered = false;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  Dim3 thread;
  State state = State::kReady;
  Collective request{};  // where it waits; of a barrier, the site alone
};

struct Scheduler {
  std::vector<Fiber> fibers;
  std::vector<unsigned> turns;  // of the fibers
  Context context{{}, {}, true};
  Fiber* running = nullptr;
  Call call{};
  std::string error;
  Order order = Order::kForward;
  unsigned seed = 0;
  const void* stack = nullptr;  // the scheduler's own, for AddressSanitizer
  size_t stack_bytes = 0;
};
Scheduler scheduler;

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer wants to know which stack comes next.
void switch_context(Context* from, Context* to, const void* stack, size_t bytes) {
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, stack, bytes);
  swapcontext(&from->first, &to->first);
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
}
#else
// swapcontext saves the signal mask, by two system calls; it is needed once, to get on the stack.
void switch_context(Context* from, Context* to, const void*, size_t) {
  if (_setjmp(from->later) != 0) return;
  if (to->entered) _longjmp(to->later, 1);
  to->entered = true;
  setcontext(&to->first);
}
#endif

void suspend() {
  switch_context(&scheduler.running->context, &scheduler.context, scheduler.stack,
                 scheduler.stack_bytes);
}

void resume(unsigned index) {
  Fiber& fiber = scheduler.fibers[index];
  scheduler.running = &fiber;
  builtins.thread = fiber.thread;
  check::run_thread(index, fiber.stack.get(), kStackBytes);
  switch_context(&scheduler.context, &fiber.context, fiber.stack.get(), kStackBytes);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
  for (;;) {  // once per block
    {
      const check::Checking on(true);
      scheduler.call.run(scheduler.call.arguments);
    }
    scheduler.running->state = State::kDone;
    suspend();
  }
}

void make_fibers(Dim3 block, unsigned count) {
  scheduler.fibers.resize(count);
  scheduler.turns.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = scheduler.fibers[i];
    fiber.thread = Dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    scheduler.turns[i] = scheduler.order == Order::kReverse ? count - 1 - i : i;
    if (fiber.stack == nullptr) fiber.stack.reset(new char[kStackBytes]);
    fiber.context.entered = false;
    ucontext_t& first = fiber.context.first;
    getcontext(&first);
    first.uc_stack.ss_sp = fiber.stack.get();
    first.uc_stack.ss_size = kStackBytes;
    first.uc_link = nullptr;
    makecontext(&first, fiber_main, 0);
  }
}

// --- diagnosis -----------------------------------------------------------------------------------

std::string text(const Dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

std::string text(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash == nullptr ? site.file : slash + 1) + ":" + std::to_string(site.line);
}

const char* name(Collective::Kind kind) {
  constexpr const char* kNames[] = {"shuffle", "vote", "__syncwarp"};
  return kNames[kind];
}

std::string text(const Collective& c) { return std::string(name(c.kind)) + " at " + text(c.site); }

void give_up(const Fiber& fiber, const std::string& what) {
  scheduler.error = "block " + text(builtins.block) + " thread " + text(fiber.thread) + ": " + what;
}

// --- barriers and collectives --------------------------------------------------------------------

// No fiber can run. Either all of them wait at one barrier, or somebody waits in vain.
bool pass_barrier() {
  const Fiber* first = nullptr;
  const Fiber* returned = nullptr;
  for (const Fiber& fiber : scheduler.fibers) {
    if (fiber.state == State::kInCollective) {
      give_up(fiber, "deadlock: " + text(fiber.request) + " waits for lanes that never come");
      return false;
    }
    if (fiber.state == State::kDone) {
      returned = &fiber;
    } else if (first == nullptr) {
      first = &fiber;
    } else if (fiber.request.site.line != first->request.site.line) {
      give_up(fiber, "divergent barrier: waits at " + text(fiber.request.site) +
                         ", another thread at " + text(first->request.site));
      return false;
    }
  }
  if (returned != nullptr) {
    give_up(*first, "divergent barrier: waits at " + text(first->request.site) + ", thread " +
                        text(returned->thread) + " has returned");
    return false;
  }
  for (Fiber& fiber : scheduler.fibers) fiber.state = State::kReady;
  check::pass_barrier();
  return true;
}

void finish(Fiber* lanes, const Collective& c, unsigned warp) {
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((c.mask >> lane & 1) == 0) continue;
    lanes[lane].state = State::kReady;
    const Collective& own = lanes[lane].request;
    if (c.kind == Collective::kBallot) {
      ballot |= *static_cast<const unsigned*>(own.value) << lane;
    } else if (c.kind == Collective::kShuffle) {
      if ((c.mask >> own.source & 1) == 0) {
        fail("inactive lane: " + text(own) + " reads lane " + std::to_string(own.source) +
             ", which its mask leaves out");
      }
      std::memcpy(own.result, lanes[own.source].request.value, own.bytes);
    }
  }
  if (c.kind == Collective::kBallot) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (c.mask >> lane & 1) *static_cast<unsigned*>(lanes[lane].request.result) = ballot;
    }
  }
  // Shuffles and votes order no memory accesses; a mask of some lanes is taken to order none.
  if (c.kind == Collective::kSyncWarp && c.mask == ~0u) check::sync_warp(warp);
}

// Runs every fiber of one block to its end.
bool run_block(std::mt19937& random) {
  check::start_block(builtins.block.x +
                     builtins.grid_dim.x *
                         (builtins.block.y + builtins.grid_dim.y * builtins.block.z));
  for (Fiber& fiber : scheduler.fibers) fiber.state = State::kReady;
  for (;;) {
    if (scheduler.order == Order::kRandom) {
      std::shuffle(scheduler.turns.begin(), scheduler.turns.end(), random);
    }
    bool moved = false;
    for (const unsigned i : scheduler.turns) {
      if (scheduler.fibers[i].state != State::kReady) continue;
      moved = true;
      resume(i);
      if (!scheduler.error.empty()) return false;
    }
    if (moved) continue;
    const bool done = std::all_of(scheduler.fibers.begin(), scheduler.fibers.end(),
                                  [](const Fiber& f) { return f.state == State::kDone; });
    if (done) return true;
    if (!pass_barrier()) return false;
  }
}

}  // namespace

void sync_threads(Site site) {
  const check::Checking off(false);
  scheduler.running->state = State::kAtBarrier;
  scheduler.running->request.site = site;
  suspend();
}

void collective(const Collective& request) {
  const check::Checking off(false);
  const unsigned thread = linear_thread();
  const unsigned warp = thread / kWarpSize;
  const size_t first = size_t(warp) * kWarpSize;
  Fiber* lanes = &scheduler.fibers[first];
  Fiber& own = *scheduler.running;
  if ((request.mask >> (thread % kWarpSize) & 1) == 0) {
    fail("mask: " + text(request) + " is called with a mask that lacks the caller's lane");
  }
  own.request = request;
  own.state = State::kInCollective;
  bool complete = true;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((request.mask >> lane & 1) == 0) continue;
    if (first + lane >= scheduler.fibers.size()) {
      fail("inactive lane: " + text(request) + " names lane " + std::to_string(lane) +
           ", which the block does not have");
    }
    const Fiber& other = lanes[lane];
    if (other.state == State::kDone) {
      fail("inactive lane: " + text(request) + " names lane " + std::to_string(lane) +
           ", which has returned");
    }
    const Collective& theirs = other.request;
    const bool waits = other.state == State::kInCollective;
    const bool meets = waits && theirs.kind == request.kind && theirs.mask == request.mask &&
                       theirs.site.line == request.site.line;
    if (meets) continue;
    // A lane that waits for other lanes may still come here; one that waits for this lane cannot.
    complete = false;
    if (waits && (theirs.mask >> (thread % kWarpSize) & 1) != 0) {
      fail("divergent warp: " + text(request) + " meets " + text(theirs) + " of lane " +
           std::to_string(lane));
    }
  }
  if (complete) {
    finish(lanes, request, warp);
  } else {
    suspend();
  }
}

void fail(const std::string& what) {
  give_up(*scheduler.running, what);
  suspend();
  std::abort();  // nobody resumes it
}

bool launch(Dim3 grid, Dim3 block, Call call) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  const size_t n_blocks = size_t(grid.x) * grid.y * grid.z;
  scheduler.error.clear();
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || n_blocks == 0 ||
      grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    scheduler.error =
        "invalid configuration: grid " + text(grid) + ", block " + text(block) + " of threads";
    return false;
  }
  if (n_blocks > kMaxBlocks) {
    scheduler.error = "too many blocks to emulate: grid " + text(grid);
    return false;
  }
  builtins.grid_dim = grid;
  builtins.block_dim = block;
  scheduler.call = call;
  make_fibers(block, static_cast<unsigned>(threads));
  check::start_launch(call.arguments, call.bytes);
  std::mt19937 random(scheduler.seed);
  std::vector<size_t> blocks(n_blocks);
  for (size_t i = 0; i < n_blocks; ++i) {
    blocks[i] = scheduler.order == Order::kReverse ? n_blocks - 1 - i : i;
  }
  if (scheduler.order == Order::kRandom) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const size_t i : blocks) {
    builtins.block =
        Dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
             static_cast<unsigned>(i / (size_t(grid.x) * grid.y)));
    if (!run_block(random)) {
      scheduler.fibers.clear();  // some stopped in the middle of their stacks
      return false;
    }
  }
  return true;
}

const char* last_error() { return scheduler.error.c_str(); }

void set_schedule(Order order, unsigned seed) {
  scheduler.order = order;
  scheduler.seed = seed;
}

}  // namespace simt
