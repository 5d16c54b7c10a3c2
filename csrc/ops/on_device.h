// Where a CUDA op runs: on its tensor's device and on that device's current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace ifru::ops {

#if defined(IFRU_EMULATED)
// The emulated device is the CPU: a launch is over when it returns.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
#else
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
#endif

template <class T>
T* mutable_or_null(const std::optional<torch::stable::Tensor>& t) {
  return t.has_value() ? t->mutable_data_ptr<T>() : nullptr;
}

}  // namespace ifru::ops
