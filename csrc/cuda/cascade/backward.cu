// The kernels of the backward that are compiled, and their launch.
#include "cuda/cascade/backward.h"
#include "cuda/compiled.h"

namespace difnet::cuda {
namespace {

const Compiled<CascadeBackward> kCompiled[] = DIFNET_ALL_COMPILED(cascade_backward, BackwardMemory);
const auto run_all = [](auto&&... arguments) { return run_backward(arguments...); };

}  // namespace

int64_t workspace_bytes(const BackwardRequest& asked) { return count_bytes(asked, run_all); }

Failure cascade_backward(const BackwardRequest& asked, const Device& on, void* workspace, void* stream) {
  return launch_all(asked, run_all, kCompiled, on, workspace, stream);
}

}  // namespace difnet::cuda

int32_t difnet_cuda_cascade_backward(const difnet::cuda::BackwardRequest* asked, int32_t device, void* workspace,
                                     void* stream, char* told, int32_t room) {
  const difnet::cuda::Device on{device, asked->processors, 0};
  const difnet::cuda::Failure failure = difnet::cuda::cascade_backward(*asked, on, workspace, stream);
  if (room > 0) snprintf(told, size_t(room), "%s", failure.c_str());
  return int32_t(failure.size());
}
