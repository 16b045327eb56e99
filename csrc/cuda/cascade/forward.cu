// The kernels of the forward that are compiled, their launch, and what is known of a device.
#include "cuda/cascade/forward.h"
#include "cuda/compiled.h"

namespace difnet::cuda {
namespace {

const Compiled<Cascade> kCompiled[] = DIFNET_ALL_COMPILED(cascade_forward, SharedMemory);
const auto run_all = [](auto&&... arguments) { return run(arguments...); };

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

int64_t workspace_bytes(const Request& asked) { return count_bytes(asked, run_all); }

Failure cascade_forward(const Request& asked, const Device& on, void* workspace, void* stream) {
  return launch_all(asked, run_all, kCompiled, on, workspace, stream);
}

}  // namespace difnet::cuda

int32_t difnet_cuda_cascade_forward(const difnet::cuda::Request* asked, int32_t device, void* workspace, void* stream,
                                    char* told, int32_t room) {
  const difnet::cuda::Device on{device, asked->processors, 0};
  const difnet::cuda::Failure failure = difnet::cuda::cascade_forward(*asked, on, workspace, stream);
  if (room > 0) snprintf(told, size_t(room), "%s", failure.c_str());
  return int32_t(failure.size());
}
