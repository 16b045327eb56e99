// What the operators on a CUDA device need: the device of a tensor, a workspace, a launch on torch's stream.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <mutex>
#include <optional>

#include "cuda/launch.h"
#include "cuda/stream.h"
#include "tensors.h"

namespace difnet::cuda {

inline const Device& device_of(const Tensor& x) {
  static std::array<std::optional<Device>, 64> known;
  static std::mutex lock;
  const std::lock_guard<std::mutex> guard(lock);
  std::optional<Device>& device = known.at(size_t(x.get_device()));
  if (!device) {
    Device found;
    const Failure failure = look_at_device(x.get_device(), found);
    STD_TORCH_CHECK(failure.empty(), failure);
    device = found;
  }
  return *device;
}

// Takes the workspace and launches, by a function of launch.h.
template <typename Request, typename Launch>
void launch(const Request& asked, const Tensor& seed, const Device& device, Launch launch) {
  const int64_t bytes = workspace_bytes(asked);
  const Tensor workspace = torch::stable::new_empty(seed, {std::max<int64_t>(bytes, 0)}, ScalarType::Byte);
  const Failure failure = launch(asked, device, workspace.mutable_data_ptr(), current_stream(device.index));
  STD_TORCH_CHECK(failure.empty(), "the CUDA kernels of difnet_kernels did not run: ", failure,
                  ". Use backend=\"triton\" or \"reference\", or report the case with this line.");
}

}  // namespace difnet::cuda
