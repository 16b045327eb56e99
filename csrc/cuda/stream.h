// The CUDA stream that torch is using, from a library that also loads under a torch without CUDA.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// Weak: a torch without CUDA does not have this symbol, and the loader then leaves a null here instead of failing.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace difnet::cuda {

inline bool torch_has_cuda() { return &aoti_torch_get_current_cuda_stream != nullptr; }

// The result is a cudaStream_t; only CUDA files need to know the type.
inline void* current_stream(int32_t device_index) {
  STD_TORCH_CHECK(torch_has_cuda(), "this torch was built without CUDA; install one with it, or use backend=\"cpu\"");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream) == 0,
                  "torch has no stream for CUDA device ", device_index);
  return stream;
}

}  // namespace difnet::cuda
