// The kernels that are compiled, and their launch.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>

#include "cascade_forward.h"
#include "launch.h"

namespace difnet::cuda {
namespace {

using Kernel = void (*)(Cascade);
constexpr int kDevices = 64;

struct Compiled {
  Instance with;
  Kernel kernel;
  int shared;
  mutable std::atomic<int32_t> resident[kDevices];  // blocks on a multiprocessor; 0 until somebody asked
};

#define DIFNET_COMPILED(products, embed, width)                                             \
  {                                                                                         \
    Kind<products, embed, width>::kInstance, cascade_forward<Kind<products, embed, width>>, \
        int(sizeof(SharedMemory<Kind<products, embed, width>>)), {}                         \
  }
const Compiled kCompiled[] = {
    DIFNET_COMPILED(1, 64, 24),  DIFNET_COMPILED(1, 64, 64),  DIFNET_COMPILED(3, 64, 24),  DIFNET_COMPILED(3, 64, 64),
    DIFNET_COMPILED(1, 128, 24), DIFNET_COMPILED(1, 128, 64), DIFNET_COMPILED(3, 128, 24), DIFNET_COMPILED(3, 128, 64),
};

const Compiled& find(const Instance& with) {
  for (const Compiled& one : kCompiled)
    if (one.with.products == with.products && one.with.embed == with.embed && one.with.width == with.width) return one;
  return kCompiled[0];  // instance() makes no other
}

Failure failure(const char* call, cudaError_t error, const std::string& of = "") {
  (void)cudaGetLastError();  // told here, not again by the next call of somebody else
  return std::string(call) + of + ": " + cudaGetErrorString(error) + " (CUDA error " + std::to_string(int(error)) + ")";
}

std::string told(const Cascade& c, const Instance& with) {
  char text[300];
  snprintf(
      text, sizeof text,
      " for a cascade of %d walks, %d images of %d nodes, %d classes (kernel: %d products, D <= %d, K < %d; %d parts)",
      c.all_walks, c.images, c.nodes, c.classes, with.products, with.embed, with.width, c.split.parts);
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

cudaError_t blocks_on_a_processor(const Compiled& one, const Device& on, int32_t& resident) {
  std::atomic<int32_t>* known = on.index < kDevices ? &one.resident[on.index] : nullptr;
  resident = known != nullptr ? known->load(std::memory_order_relaxed) : 0;
  if (resident > 0) return cudaSuccess;
  cudaError_t error = cudaFuncSetAttribute(one.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, one.shared);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, one.kernel, kThreads, size_t(one.shared));
  if (error == cudaSuccess && known != nullptr) known->store(resident, std::memory_order_relaxed);
  return error;
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

}  // namespace

Failure why_no_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return failure("cudaGetDeviceCount", error);
  return count > 0 ? "" : "cudaGetDeviceCount found no device";
}

Failure look_at_device(int32_t index, Device& to) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&to.processors, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  to.index = index;
  to.arch = major * 10 + minor;
  return error == cudaSuccess ? "" : failure("cudaDeviceGetAttribute", error);
}

Failure launch(const Cascade& c, const Instance& with, const Device& on, void* stream) {
  const Compiled& one = find(with);
  int32_t resident = 0;
  cudaError_t error = blocks_on_a_processor(one, on, resident);
  if (error != cudaSuccess) return failure("cudaFuncSetAttribute", error, told(c, with));
  const int64_t blocks = std::min<int64_t>(all_units(c), int64_t(resident) * on.processors);
  void* arguments[] = {const_cast<Cascade*>(&c)};
  // cooperative: either all blocks are resident, as the order of the units needs, or the launch fails
  error = cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(one.kernel), dim3(unsigned(blocks)), dim3(kThreads),
                                      arguments, size_t(one.shared), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? "" : failure("cudaLaunchCooperativeKernel", error, told(c, with));
}

int64_t workspace_bytes(const Request& asked) {
  int64_t bytes = -1;
  // the first launch needs the most, and stops here
  (void)run(
      asked,
      [&](Cascade& c, const Instance& with) {
        Sections sections{nullptr};
        take_sections(c, with, sections);
        bytes = sections.size;
      },
      [](const Cascade&, const Instance&) { return true; }, [](const char*) { return true; });
  return bytes;
}

Failure cascade_forward(const Request& asked, const Device& on, void* workspace, void* stream) {
  struct Stop : Failure {
    explicit operator bool() const { return !empty(); }
  };
  const OnDevice guard(on.index);
  if (guard.error != cudaSuccess) return failure("cudaSetDevice", guard.error);
  return run(
      asked,
      [&](Cascade& c, const Instance& with) {
        Sections sections{static_cast<char*>(workspace)};
        take_sections(c, with, sections);
      },
      [&](const Cascade& c, const Instance& with) { return Stop{launch(c, with, on, stream)}; },
      [](const char* words) { return Stop{words}; });
}

}  // namespace difnet::cuda

int32_t difnet_cuda_cascade_forward(const difnet::cuda::Request* asked, int32_t device, void* workspace, void* stream,
                                    char* told, int32_t room) {
  const difnet::cuda::Device on{device, asked->processors, 0};
  const difnet::cuda::Failure failure = difnet::cuda::cascade_forward(*asked, on, workspace, stream);
  if (room > 0) snprintf(told, size_t(room), "%s", failure.c_str());
  return int32_t(failure.size());
}
