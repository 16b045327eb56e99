// What the rest of the library calls: launches without torch, so that this is all that nvcc compiles.
#pragma once

#include <string>

#include "cuda/cascade/projected_arguments.h"

namespace difnet::cuda {

struct ProjectionRequest;
struct ProjectionBackwardRequest;

// A card that torch calls cuda:index; arch is 90 for sm_90.
struct Device {
  int32_t index = 0, processors = 0, arch = 0;
};

// Empty if all is well, else what was called, for which case, and the driver's words.
using Failure = std::string;

// What the driver says where no card can be used; empty where one can.
Failure why_no_device();
Failure look_at_device(int32_t index, Device& to);

// The bytes of workspace that a request needs on a card, or -1 where no launch can hold it.
int64_t workspace_bytes(const Request& asked);
int64_t workspace_bytes(const BackwardRequest& asked);
int64_t workspace_bytes(const ProjectionRequest& asked);
int64_t workspace_bytes(const ProjectionBackwardRequest& asked);
int64_t workspace_bytes(const ProjectedRequest& asked);
// The launches of a request; `workspace` has that many bytes, aligned to 128.
Failure cascade_forward(const Request& asked, const Device& on, void* workspace, void* stream);
Failure cascade_backward(const BackwardRequest& asked, const Device& on, void* workspace, void* stream);
Failure projection_forward(const ProjectionRequest& asked, const Device& on, void* workspace, void* stream);
Failure projection_backward(const ProjectionBackwardRequest& asked, const Device& on, void* workspace, void* stream);
Failure projected_cascade(const ProjectedRequest& asked, const Device& on, void* workspace, void* stream);

}  // namespace difnet::cuda

// The same for callers without C++: `told` receives the failure, the result is its length.
extern "C" __attribute__((visibility("default"))) int32_t difnet_cuda_cascade_forward(
    const difnet::cuda::Request* asked, int32_t device, void* workspace, void* stream, char* told, int32_t room);
extern "C" __attribute__((visibility("default"))) int32_t
difnet_cuda_cascade_backward(const difnet::cuda::BackwardRequest* asked, int32_t device, void* workspace, void* stream,
                             char* told, int32_t room);
