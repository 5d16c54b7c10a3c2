// The checking build's memory model: which bytes a kernel may touch, which hold a value, and which
// accesses of different threads are ordered. In other builds every call here is empty.
//
// Two accesses of which one writes race unless one is known to come first: same thread; same block
// and a __syncthreads between them; same warp and a __syncwarp of all lanes between them; different
// launches. Blocks of one launch are never ordered.
#pragma once

#include <cstddef>

namespace simt::check {

#if defined(IFRU_SIMT_CHECK)
constexpr bool kEnabled = true;
// Device memory: what a kernel may access beside its stack, arguments and shared memory.
void track(const void* begin, size_t bytes, bool initialised);
void untrack(const void* begin);

void start_launch(const void* arguments, size_t bytes);
void start_block(unsigned block);
void run_thread(unsigned thread, const void* stack, size_t stack_bytes);
void pass_barrier();
void sync_warp(unsigned warp);

// Whether accesses are checked, while this lives. The emulation's own code must switch it off: the
// linker may give it the kernels' instrumented copy of an inline function.
class Checking {
 public:
  explicit Checking(bool on);
  ~Checking();

 private:
  bool before_;
};
#else
constexpr bool kEnabled = false;
inline void track(const void*, size_t, bool) {}
inline void untrack(const void*) {}
inline void start_launch(const void*, size_t) {}
inline void start_block(unsigned) {}
inline void run_thread(unsigned, const void*, size_t) {}
inline void pass_barrier() {}
inline void sync_warp(unsigned) {}
struct Checking {
  explicit Checking(bool) {}
};
#endif

}  // namespace simt::check
