// The kernels of Ψ that are compiled, and their launch.
#include "cuda/compiled.h"
#include "cuda/projection/backward.h"
#include "cuda/projection/forward.h"
#include "cuda/projection/launches.h"

namespace difnet::cuda {

inline std::string told_of_projection(const auto& c, const Instance& with) {
  char text[300];
  const auto &pixels = c.psi.windows.pixels, &nodes = c.psi.windows.nodes;
  snprintf(text, sizeof text,
           " for a projection%s of %d images of %d x %d x %d pixels, %d channels, to %d x %d x %d nodes, %d channels "
           "(kernel: %d products, D <= %d)",
           c.kBackward ? " backwards" : "", c.images, pixels[0], pixels[1], pixels[2], c.psi.features.channels,
           nodes[0], nodes[1], nodes[2], c.psi.embed, with.products, with.embed);
  return text;
}
inline std::string told(const ProjectionForward& c, const Instance& with) { return told_of_projection(c, with); }
inline std::string told(const ProjectionBackward& c, const Instance& with) { return told_of_projection(c, with); }

namespace {

template <typename With>
using ForwardMemory = ProjectionMemory<kHalvesOf<With>, With::kInstance.embed>;

#define DIFNET_PROJECTIONS(name, memory, Arguments)               \
  {                                                               \
      DIFNET_COMPILED(name, memory, 2, 64, 0),                    \
      DIFNET_COMPILED(name, memory, Arguments::kOfFloat, 64, 0),  \
      DIFNET_COMPILED(name, memory, 2, 128, 0),                   \
      DIFNET_COMPILED(name, memory, Arguments::kOfFloat, 128, 0), \
  }
const Compiled<ProjectionForward> kForward[] = DIFNET_PROJECTIONS(projection_forward, ForwardMemory, ProjectionForward);
const Compiled<ProjectionBackward> kBackward[] =
    DIFNET_PROJECTIONS(projection_backward, ProjectionBackwardMemory, ProjectionBackward);
const auto run_projection_forth = [](auto&&... arguments) { return run_projection(arguments...); };
const auto run_projection_back = [](auto&&... arguments) { return run_projection_backward(arguments...); };

}  // namespace

int64_t workspace_bytes(const ProjectionRequest& asked) { return count_bytes(asked, run_projection_forth); }

Failure projection_forward(const ProjectionRequest& asked, const Device& on, void* workspace, void* stream) {
  return launch_all(asked, run_projection_forth, kForward, on, workspace, stream);
}

int64_t workspace_bytes(const ProjectionBackwardRequest& asked) { return count_bytes(asked, run_projection_back); }

Failure projection_backward(const ProjectionBackwardRequest& asked, const Device& on, void* workspace, void* stream) {
  return launch_all(asked, run_projection_back, kBackward, on, workspace, stream);
}

}  // namespace difnet::cuda
