// Device memory of the emulated GPU, of one test.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "checker.h"

namespace simt {

template <class T>
class DeviceArray {
 public:
  // Without a value: NaN, or ids that are out of range.
  explicit DeviceArray(size_t n) : DeviceArray(n, nullptr) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size(), values.data()) {}
  ~DeviceArray() {
    check::untrack(data_);
    ::operator delete(memory_, std::align_val_t(kAlignment));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return data_; }
  std::vector<T> host() const { return {data_, data_ + size_}; }

 private:
  static constexpr size_t kAlignment = 256;  // as cudaMalloc
  // What runs over one array must not land in another. AddressSanitizer has its own red zones,
  // which must begin where the array ends.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGap = 0;
#else
  static constexpr size_t kGap = 4096;
#endif

  DeviceArray(size_t n, const T* values)
      : size_(n), memory_(::operator new(n * sizeof(T) + 2 * kGap, std::align_val_t(kAlignment))) {
    data_ = reinterpret_cast<T*>(static_cast<char*>(memory_) + kGap);
    if (values == nullptr) {
      std::memset(data_, 0xff, n * sizeof(T));
    } else if (n > 0) {
      std::memcpy(data_, values, n * sizeof(T));
    }
    check::track(data_, n * sizeof(T), values != nullptr);
  }

  size_t size_;
  void* memory_;
  T* data_;
};

}  // namespace simt
