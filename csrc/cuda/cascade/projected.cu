// The kernels of Ψ and the cascade in one launch that are compiled, and their launch.
#include "cuda/cascade/projected.h"
#include "cuda/compiled.h"

namespace difnet::cuda {
namespace {

const Compiled<ProjectedCascade> kCompiled[] = {
    DIFNET_COMPILED(projected_cascade, ProjectedMemory, 1, 64, 24),
    DIFNET_COMPILED(projected_cascade, ProjectedMemory, 3, 64, 24),
    DIFNET_COMPILED(projected_cascade, ProjectedMemory, 1, 64, 64),
    DIFNET_COMPILED(projected_cascade, ProjectedMemory, 3, 64, 64),
};
const auto run_all = [](auto&&... arguments) { return run_projected(arguments...); };

}  // namespace

int64_t workspace_bytes(const ProjectedRequest& asked) { return count_bytes(asked, run_all); }

Failure projected_cascade(const ProjectedRequest& asked, const Device& on, void* workspace, void* stream) {
  if (!is_compiled(instance_of(asked))) return "no launch with Ψ in it is compiled for D above 64";
  return launch_all(asked, run_all, kCompiled, on, workspace, stream);
}

}  // namespace difnet::cuda
