// The kernels of Ψ that are compiled, and their launch.
#include "compiled.h"
#include "projection_launches.h"

namespace difnet::cuda {
namespace {

template <typename With>
using ForwardMemory = ProjectionMemory<With::kInstance.products - 1, With::kInstance.embed>;

#define DIFNET_PROJECTIONS(name, memory)        \
  {                                             \
      DIFNET_COMPILED(name, memory, 2, 64, 0),  \
      DIFNET_COMPILED(name, memory, 3, 64, 0),  \
      DIFNET_COMPILED(name, memory, 2, 128, 0), \
      DIFNET_COMPILED(name, memory, 3, 128, 0), \
  }
const Compiled<ProjectionForward> kForward[] = DIFNET_PROJECTIONS(projection_forward, ForwardMemory);
const auto run_forward = [](auto&&... arguments) { return run_projection(arguments...); };

}  // namespace

int64_t workspace_bytes(const ProjectionRequest& asked) { return count_bytes(asked, run_forward); }

Failure projection_forward(const ProjectionRequest& asked, const Device& on, void* workspace, void* stream) {
  return launch_all(asked, run_forward, kForward, on, workspace, stream);
}

}  // namespace difnet::cuda
