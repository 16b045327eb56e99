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
  twin::with_projection_kind({products, embed, 0}, [&](auto kind) {
    using With = decltype(kind);
    bytes = int32_t(backward ? sizeof(ProjectionBackwardMemory<With>)
                             : sizeof(ProjectionMemory<With::kInstance.products - 1, With::kInstance.embed>));
  });
  return bytes;
}

void twin_projection_sizes(int32_t* to) {
  to[0] = sizeof(difnet::cuda::Volume);
  to[1] = sizeof(difnet::cuda::ProjectionRequest);
  to[2] = sizeof(difnet::cuda::ProjectionBackwardRequest);
}
}
