// The twin of Ψ as a library: a request from Python, run on fibers. The kernels are those of csrc/cuda, word for word.
#include "run_projection_on_host.h"

extern "C" {

// Returns whether all is well; `error` (600 bytes) says what is not.
bool twin_projection_forward(const difnet::cuda::ProjectionRequest* asked, const twin::Options* options,
                             twin::Report* report) {
  *report = twin::run_on_host(*asked, *options);
  return report->error[0] == 0;
}
bool twin_projection_backward(const difnet::cuda::ProjectionBackwardRequest* asked, const twin::Options* options,
                              twin::Report* report) {
  *report = twin::run_on_host(*asked, *options);
  return report->error[0] == 0;
}

// Shared memory of a block of a compiled kernel.
int32_t twin_projection_shared_bytes(int32_t products, int32_t embed, bool backward) {
  using namespace difnet::cuda;
  int32_t bytes = 0;
  const Instance with{products, embed, 0};
  if (backward)
    twin::with_projection_kind<ProjectionBackward>(
        with, [&](auto kind) { bytes = int32_t(sizeof(ProjectionBackwardMemory<decltype(kind)>)); });
  else
    twin::with_projection_kind<ProjectionForward>(with, [&](auto kind) {
      bytes = int32_t(sizeof(ProjectionMemory<kHalvesOf<decltype(kind)>, decltype(kind)::kInstance.embed>));
    });
  return bytes;
}

void twin_projection_sizes(int32_t* to) {
  to[0] = sizeof(difnet::cuda::Volume);
  to[1] = sizeof(difnet::cuda::ProjectionRequest);
  to[2] = sizeof(difnet::cuda::ProjectionBackwardRequest);
}
}
