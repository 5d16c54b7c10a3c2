// g++ -fsanitize=thread turns every load and store of a kernel into a call of __tsan_read4 or its
// like, -fsanitize=alignment,bounds-strict reports to __ubsan_handle_*. The sanitizers' libraries
// are not linked: these functions are defined here. This file itself is compiled without them.
#include "checker.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "scheduler.h"

namespace simt::check {
namespace {

constexpr size_t kGranule = 2;  // bytes per cell: the smallest type that kernels share

struct Access {
  unsigned block = 0;
  unsigned thread = 0;
  unsigned barriers = 0;    // that the block had passed
  unsigned warp_syncs = 0;  // that the warp had passed
  const void* pc = nullptr;

  unsigned warp() const { return thread / kWarpSize; }
  bool before(const Access& later) const {
    return block == later.block && (thread == later.thread || barriers < later.barriers ||
                                    (warp() == later.warp() && warp_syncs < later.warp_syncs));
  }
};

// The reads of a cell since its last write: the last one stands for those ordered before it, flags
// for the others.
struct Reads {
  Access last;
  bool any = false, many_threads = false, many_warps = false, many_blocks = false;

  void add(const Access& read) {
    if (!any || (last.block == read.block && last.barriers < read.barriers)) {
      many_threads = many_warps = false;
    } else if (last.block != read.block) {
      many_blocks = true;
    } else if (last.warp() != read.warp()) {
      many_warps = true;
    } else if (last.warp_syncs < read.warp_syncs) {
      many_threads = false;
    } else {
      many_threads |= last.thread != read.thread;
    }
    any = true;
    last = read;
  }
  bool before(const Access& write) const {
    if (!any) return true;
    if (many_blocks || last.block != write.block) return false;
    if (last.barriers < write.barriers) return true;
    if (many_warps || last.warp() != write.warp()) return false;
    return last.warp_syncs < write.warp_syncs || (!many_threads && last.thread == write.thread);
  }
};

struct Cell {
  uint64_t generation = 0;  // the launch, of shared memory the block, that the accesses belong to
  bool initialised = false;
  bool written = false;
  Access write;
  Reads reads;
};

struct Region {
  size_t bytes = 0;
  bool shared = false;
  std::vector<Cell> cells;

  Region() = default;
  Region(size_t n, bool is_shared, bool initialised) : bytes(n), shared(is_shared) {
    cells.resize(n / kGranule + 1);
    for (Cell& cell : cells) cell.initialised = initialised;
  }
};

struct Range {
  uintptr_t begin = 0, end = 0;
  bool contains(uintptr_t p) const { return p >= begin && p < end; }
};

struct State {
  std::map<uintptr_t, Region> regions;  // by first byte
  std::vector<Range> image;             // the program's own data: constants, read only
  Range stack, arguments;
  bool active = false;
  unsigned block = 0, thread = 0, barriers = 0;
  std::vector<unsigned> warp_syncs;
  uint64_t launches = 0, blocks = 0;
};

State& state() {
  static State s;  // before any tracked global is made
  return s;
}

// Shared memory is the program's thread-local storage: nothing else in it is.
int find_image(dl_phdr_info* info, size_t, void*) {
  State& s = state();
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type == PT_LOAD) {
      const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
      s.image.push_back({begin, begin + header.p_memsz});
    } else if (header.p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
      s.regions.emplace(reinterpret_cast<uintptr_t>(info->dlpi_tls_data),
                        Region(header.p_memsz, true, false));
    }
  }
  return 1;  // the first one is the program itself
}

// file:line of an instruction, where addr2line is at hand.
std::string source_of(const void* pc) {
  Dl_info info;
  if (pc == nullptr || dladdr(pc, &info) == 0) return "?";
  const auto offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[4096];
  std::snprintf(command, sizeof(command), "addr2line -e '%s' %#tx 2>/dev/null", info.dli_fname,
                offset);
  std::string line;
  if (FILE* pipe = popen(command, "r")) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n' && c != ' ';) line += char(c);
    pclose(pipe);
  }
  return line.empty() ? "?" : line.substr(line.rfind('/') + 1);
}

std::string text(const char* verb, size_t bytes, const void* pc) {
  return std::string(verb) + " of " + std::to_string(bytes) + " bytes at " + source_of(pc);
}

[[noreturn]] void report_bounds(uintptr_t p, size_t bytes, const char* verb, const void* pc) {
  const State& s = state();
  std::string where = "outside device memory";
  uintptr_t nearest = 1 << 16;
  for (const auto& [begin, region] : s.regions) {
    const uintptr_t distance = p < begin ? begin - p : p - begin - region.bytes;
    if (p >= begin && p < begin + region.bytes) {
      nearest = 0;  // it straddles the end
    } else if (distance < nearest) {
      nearest = distance;
    } else {
      continue;
    }
    where = "at byte " + std::to_string(static_cast<int64_t>(p - begin)) + " of " +
            (region.shared ? "shared memory" : "a buffer") + " of " + std::to_string(region.bytes) +
            " bytes";
  }
  fail("out of bounds: " + text(verb, bytes, pc) + ", " + where);
}

// How the compiler's own records begin.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

void undefined(const char* what, uintptr_t value, const SourceLocation& site) {
  const bool in_kernel = state().active;
  const Checking off(false);
  const std::string file = site.file;
  const std::string text = what + std::to_string(static_cast<intptr_t>(value)) + " at " +
                           file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
  if (in_kernel) fail(text);
  std::fprintf(stderr, "in a test's own code: %s\n", text.c_str());
  std::abort();
}

void access(const void* address, size_t bytes, bool write, const void* pc) {
  State& s = state();
  const auto p = reinterpret_cast<uintptr_t>(address);
  if (!s.active || s.stack.contains(p) || s.arguments.contains(p)) return;
  const Checking off(false);
  const char* verb = write ? "write" : "read";

  auto found = s.regions.upper_bound(p);
  const bool known = found != s.regions.begin() && p < (--found)->first + found->second.bytes;
  if (!known) {
    for (const Range& range : s.image) {
      if (!write && range.contains(p)) return;
    }
  }
  if (!known || p + bytes > found->first + found->second.bytes) report_bounds(p, bytes, verb, pc);

  Region& region = found->second;
  const auto what = [&](const char* finding) {
    return finding + (": " + text(verb, bytes, pc)) + " of " +
           (region.shared ? "shared" : "device") + " memory";
  };
  const uint64_t generation = region.shared ? s.blocks : s.launches;
  const Access mine{s.block, s.thread, s.barriers, s.warp_syncs[s.thread / kWarpSize], pc};
  const size_t last = (p - found->first + bytes - 1) / kGranule;
  for (size_t i = (p - found->first) / kGranule; i <= last; ++i) {
    Cell& cell = region.cells[i];
    if (cell.generation != generation) {
      cell.generation = generation;
      cell.written = false;
      cell.reads = {};
      cell.initialised &= !region.shared;
    }
    if (cell.written && !cell.write.before(mine)) {
      fail(what("race") + " after an unordered write at " + source_of(cell.write.pc));
    }
    if (write) {
      if (!cell.reads.before(mine)) {
        fail(what("race") + " after an unordered read at " + source_of(cell.reads.last.pc));
      }
      cell.written = cell.initialised = true;
      cell.write = mine;
      cell.reads = {};
    } else {
      if (!cell.initialised) {
        fail(what("uninitialised") + " that nothing was written to");
      }
      cell.reads.add(mine);
    }
  }
}

}  // namespace

void track(const void* begin, size_t bytes, bool initialised) {
  state().regions[reinterpret_cast<uintptr_t>(begin)] = Region(bytes, false, initialised);
}

void untrack(const void* begin) { state().regions.erase(reinterpret_cast<uintptr_t>(begin)); }

void start_launch(const void* arguments, size_t bytes) {
  State& s = state();
  if (s.launches++ == 0) dl_iterate_phdr(find_image, nullptr);
  const auto p = reinterpret_cast<uintptr_t>(arguments);
  s.arguments = {p, p + bytes};
}

void start_block(unsigned block) {
  State& s = state();
  ++s.blocks;
  s.block = block;
  s.barriers = 0;
  s.warp_syncs.assign(kWarpSize, 0);  // a block has at most 32 warps
}

void run_thread(unsigned thread, const void* stack, size_t stack_bytes) {
  State& s = state();
  const auto p = reinterpret_cast<uintptr_t>(stack);
  s.thread = thread;
  s.stack = {p, p + stack_bytes};
}

void pass_barrier() { ++state().barriers; }
void sync_warp(unsigned warp) { ++state().warp_syncs[warp]; }

Checking::Checking(bool on) : before_(state().active) { state().active = on; }
Checking::~Checking() { state().active = before_; }

}  // namespace simt::check

// --- what the instrumented code calls ------------------------------------------------------------

#define IFRU_ACCESS(bytes)                                             \
  void __tsan_read##bytes(void* p) {                                   \
    simt::check::access(p, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_write##bytes(void* p) {                                  \
    simt::check::access(p, bytes, true, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_read##bytes(void* p) {                         \
    simt::check::access(p, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_unaligned_write##bytes(void* p) {                        \
    simt::check::access(p, bytes, true, __builtin_return_address(0));  \
  }

extern "C" {

IFRU_ACCESS(1)
IFRU_ACCESS(2)
IFRU_ACCESS(4)
IFRU_ACCESS(8)
IFRU_ACCESS(16)

void __tsan_read_range(void* p, size_t n) {
  simt::check::access(p, n, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  simt::check::access(p, n, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void __ubsan_handle_type_mismatch_v1(simt::check::SourceLocation* site, uintptr_t p) {
  simt::check::undefined("misaligned: access at 256 n + ", p % 256, *site);
}

void __ubsan_handle_out_of_bounds(simt::check::SourceLocation* site, uintptr_t index) {
  simt::check::undefined("out of bounds: array index ", index, *site);
}
}
