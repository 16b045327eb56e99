// The CUDA runtime as csrc/cuda uses it, for simulated cards: each has multiprocessors, a launch runs on fibers, and what a
// real one would refuse is an error.
#pragma once

#include <device.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

using cudaError_t = int;
using cudaStream_t = void*;
enum : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
struct dim3 {
  unsigned x;
  explicit dim3(unsigned x) : x(x) {}
};

namespace simulated {

struct Launch {
  int32_t device, blocks;
  void* stream;
};

// What the tests set and read.
struct Cards {
  int32_t count = 1, current = 0, processors = 4, resident = 2;
  int32_t room = 1 << 20;  // blocks that a stream has room for
  int32_t capturing = 0;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaError_t last = cudaSuccess;
  std::string wrong;  // what a kernel did that it may not
  std::map<const void*, std::function<void(void**)>> kernels;
  std::set<std::pair<int32_t, const void*>> prepared;  // of which device which kernel may have its shared memory
  std::vector<Launch> launches;
};
extern Cards cards;

inline cudaError_t said(cudaError_t error) {
  if (error != cudaSuccess) cards.last = error;
  return error;
}

}  // namespace simulated

inline const char* cudaGetErrorString(cudaError_t) { return simulated::cards.wrong.c_str(); }
inline cudaError_t cudaGetLastError() { return std::exchange(simulated::cards.last, cudaSuccess); }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = simulated::cards.count, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = simulated::cards.current, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= simulated::cards.count) return simulated::said(cudaErrorInvalidDevice);
  simulated::cards.current = device;
  return cudaSuccess;
}
// Card n has n more multiprocessors than the first.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= simulated::cards.count) return simulated::said(cudaErrorInvalidDevice);
  *value = attribute == cudaDevAttrMultiProcessorCount      ? simulated::cards.processors + device
           : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                            : 0;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, simulated::cards.mode);
  return cudaSuccess;
}
template <typename Asked>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Asked), cudaFuncAttribute, int) {
  if (simulated::cards.capturing && simulated::cards.mode != cudaStreamCaptureModeRelaxed)
    return simulated::said(cudaErrorStreamCaptureUnsupported);  // it loads the kernel
  const void* const name = reinterpret_cast<const void*>(kernel);
  simulated::cards.prepared.insert({simulated::cards.current, name});
  simulated::cards.kernels[name] = [kernel](void** arguments) { kernel(*static_cast<Asked*>(arguments[0])); };
  return cudaSuccess;
}
template <typename Asked>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Asked), int, size_t) {
  if (!simulated::cards.prepared.contains({simulated::cards.current, reinterpret_cast<const void*>(kernel)}))
    return simulated::said(cudaErrorInvalidValue);
  *blocks = simulated::cards.resident;
  return cudaSuccess;
}
inline cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                               size_t shared, cudaStream_t stream) {
  simulated::Cards& cards = simulated::cards;
  if (!cards.prepared.contains({cards.current, kernel})) return simulated::said(cudaErrorInvalidValue);
  if (grid.x == 0) return simulated::said(cudaErrorInvalidConfiguration);
  if (int32_t(grid.x) > cards.room) return simulated::said(cudaErrorCooperativeLaunchTooLarge);
  cards.launches.push_back({cards.current, int32_t(grid.x), stream});
  twin::Machine::Settings settings{};
  settings.blocks = int(grid.x), settings.threads = int(block.x), settings.shared_bytes = shared, settings.schedule = 1;
  cards.wrong = twin::Machine::run(settings, [&] { cards.kernels.at(kernel)(arguments); }).error;
  return simulated::said(cards.wrong.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}
