// Tasks over a few threads of their own: this module knows no torch, and so not its pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace ifru::host {

// Calls task(k) for k in [0, n_tasks), each once; which thread takes which is left to chance. The
// first exception, by time, is thrown on when all threads have stopped. Where the system gives no
// more threads, fewer do it.
template <class Task>
void parallel_tasks(int64_t n_tasks, int64_t n_threads, const Task& task) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      for (int64_t k = next++; k < n_tasks; k = next++) task(k);
    } catch (...) {
      next = n_tasks;
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(std::max<int64_t>(n_threads, 1));
  try {
    while (static_cast<int64_t>(helpers.size()) + 1 < std::min(n_threads, n_tasks)) {
      helpers.emplace_back(work);
    }
  } catch (const std::system_error&) {
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

// Where the k-th of `parts` contiguous parts of [0, n) begins.
inline int64_t part_begin(int64_t n, int64_t parts, int64_t k) {
  return n / parts * k + n % parts * k / parts;
}

// As many threads as have something to do.
inline int64_t useful_threads(int64_t n_threads, int64_t n) {
  constexpr int64_t kEach = 1 << 16;  // entries: some 300 us, ten times what a thread costs
  return std::clamp<int64_t>(n / kEach, 1, std::max<int64_t>(n_threads, 1));
}

}  // namespace ifru::host
