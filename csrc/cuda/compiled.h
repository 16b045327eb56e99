// How compiled kernels are launched; only for nvcc.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>

#include "cuda/launch.h"

namespace difnet::cuda {

constexpr int kDevices = 64;

template <typename Asked>
struct Compiled {
  Instance with;
  void (*kernel)(Asked);
  int shared;
  mutable std::atomic<int32_t> resident[kDevices];  // blocks on a multiprocessor; 0 until somebody asked
};

// The eight kernels of a direction: name<Kind> with memory<Kind>.
#define DIFNET_COMPILED(name, memory, products, embed, width)                    \
  {                                                                              \
    Kind<products, embed, width>::kInstance, name<Kind<products, embed, width>>, \
        int(sizeof(memory<Kind<products, embed, width>>)), {}                    \
  }
#define DIFNET_ALL_COMPILED(name, memory)                                                   \
  {                                                                                         \
      DIFNET_COMPILED(name, memory, 1, 64, 24),  DIFNET_COMPILED(name, memory, 1, 64, 64),  \
      DIFNET_COMPILED(name, memory, 3, 64, 24),  DIFNET_COMPILED(name, memory, 3, 64, 64),  \
      DIFNET_COMPILED(name, memory, 1, 128, 24), DIFNET_COMPILED(name, memory, 1, 128, 64), \
      DIFNET_COMPILED(name, memory, 3, 128, 24), DIFNET_COMPILED(name, memory, 3, 128, 64), \
  }

template <typename Asked, int kCount>
const Compiled<Asked>& find(const Compiled<Asked> (&all)[kCount], const Instance& with) {
  for (const Compiled<Asked>& one : all)
    if (one.with.products == with.products && one.with.embed == with.embed && one.with.width == with.width) return one;
  return all[0];  // instance() makes no other
}

inline Failure failure(const char* call, cudaError_t error, const std::string& of = "") {
  (void)cudaGetLastError();  // told here, not again by the next call of somebody else
  return std::string(call) + of + ": " + cudaGetErrorString(error) + " (CUDA error " + std::to_string(int(error)) + ")";
}

inline std::string told(const auto& c, const Instance& with) {
  char text[300];
  snprintf(text, sizeof text,
           " for a cascade of %d walks%s, %d images of %d nodes, %d classes (kernel: %d products, D <= %d, K < %d; %d "
           "parts)",
           c.all_walks, c.kBackward ? " backwards" : "", c.images, c.nodes, c.classes, with.products, with.embed,
           with.width, c.split.parts);
  return text;
}

// The device of the caller comes back.
class OnDevice {
 public:
  explicit OnDevice(int32_t index) {
    error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ != index) {
      error = cudaSetDevice(index);
      changed_ = error == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  cudaError_t error;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// What loads a kernel may allocate inside the driver, which a stream that is being captured, here or on another thread,
// would otherwise take for part of its graph and refuse.
class OutsideCapture {
 public:
  OutsideCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

template <typename Asked>
cudaError_t blocks_on_a_processor(const Compiled<Asked>& one, const Device& on, int32_t& resident) {
  std::atomic<int32_t>* known = on.index < kDevices ? &one.resident[on.index] : nullptr;
  resident = known != nullptr ? known->load(std::memory_order_relaxed) : 0;
  if (resident > 0) return cudaSuccess;
  const OutsideCapture guard;
  cudaError_t error = cudaFuncSetAttribute(one.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, one.shared);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, one.kernel, kThreads, size_t(one.shared));
  if (error == cudaSuccess && known != nullptr) known->store(resident, std::memory_order_relaxed);
  return error;
}

// One cooperative launch on `stream` (a cudaStream_t).
template <typename Asked>
Failure launch(const Compiled<Asked>& one, const Asked& c, const Instance& with, const Device& on, void* stream) {
  int32_t resident = 0;
  cudaError_t error = blocks_on_a_processor(one, on, resident);
  if (error != cudaSuccess) return failure("cudaFuncSetAttribute", error, told(c, with));
  int64_t blocks = std::min<int64_t>(all_units(c), int64_t(resident) * on.processors);
  void* arguments[] = {const_cast<Asked*>(&c)};
  // cooperative: either all blocks are resident, as the order of the units needs, or the launch fails
  const auto try_launch = [&] {
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(one.kernel), dim3(unsigned(blocks)),
                                       dim3(kThreads), arguments, size_t(one.shared),
                                       static_cast<cudaStream_t>(stream));
  };
  error = try_launch();
  // a stream may have fewer multiprocessors than its device (a green context, a share): any number of blocks will do
  while (error == cudaErrorCooperativeLaunchTooLarge && blocks > 1) {
    (void)cudaGetLastError();
    blocks /= 2;
    error = try_launch();
  }
  return error == cudaSuccess ? "" : failure("cudaLaunchCooperativeKernel", error, told(c, with));
}

// Packs the sections of the workspace; without a base it only counts.
struct Sections {
  char* base;
  int64_t size = 0;
  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + size);
    size += (count * int64_t(sizeof(T)) + 127) / 128 * 128;
  }
};

// The bytes of the first launch, which needs the most; -1 where no launch can hold the request. run_all is run or
// run_backward.
template <typename Asked, typename RunAll>
int64_t count_bytes(const Asked& asked, RunAll run_all) {
  int64_t bytes = -1;
  (void)run_all(
      asked,
      [&](auto& c, const Instance& with) {
        Sections sections{nullptr};
        take_sections(c, with, sections);
        bytes = sections.size;
      },
      [](const auto&, const Instance&) { return true; }, [](const char*) { return true; });
  return bytes;
}

// The launches of a request, of the kernels `all`.
template <typename Asked, typename RunAll, typename All>
Failure launch_all(const Asked& asked, RunAll run_all, const All& all, const Device& on, void* workspace,
                   void* stream) {
  struct Stop : Failure {
    explicit operator bool() const { return !empty(); }
  };
  const OnDevice guard(on.index);
  if (guard.error != cudaSuccess) return failure("cudaSetDevice", guard.error);
  return run_all(
      asked,
      [&](auto& c, const Instance& with) {
        Sections sections{static_cast<char*>(workspace)};
        take_sections(c, with, sections);
      },
      [&](const auto& c, const Instance& with) { return Stop{launch(find(all, with), c, with, on, stream)}; },
      [](const char* words) { return Stop{words}; });
}

}  // namespace difnet::cuda
