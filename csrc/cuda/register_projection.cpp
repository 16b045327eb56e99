// Ψ's operators of library.cpp on a CUDA device.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "cuda/on_card.h"
#include "cuda/projection/launches.h"

namespace difnet::cuda {
namespace {

#define DIFNET_CHECK(condition, ...) STD_TORCH_CHECK(condition, "difnet_kernels::cuda_projection: ", __VA_ARGS__)

constexpr int64_t kWidest = 128;

// A tensor (B, channels, Z, Y, X) as the kernels see it.
Volume volume_of(const char* name, const Tensor& x, const Tensor& features, int64_t channels, ScalarType type) {
  DIFNET_CHECK(x.dim() == 5, name, " has ", x.dim(), " axes, not 5");
  DIFNET_CHECK(x.size(0) == features.size(0) && x.size(1) == channels, name, " has ", x.size(0), " images of ",
               x.size(1), " channels, not ", features.size(0), " of ", channels);
  DIFNET_CHECK(x.scalar_type() == type, name, " has the wrong dtype");
  DIFNET_CHECK(x.get_device() == features.get_device(), name, " lies on another device than features");
  const DType kept = type == ScalarType::Int ? DType::kFloat : dtype(x);  // of positions nobody asks
  return {x.data_ptr(), x.stride(0), x.stride(1), {x.stride(2), x.stride(3), x.stride(4)}, int32_t(channels), kept};
}
Volume volume_or_none(const char* name, const std::optional<Tensor>& x, const Tensor& features, int64_t channels,
                      ScalarType type) {
  return x ? volume_of(name, *x, features, channels, type) : Volume{};
}

// Contiguous fp32 numbers, or null.
float* numbers_of(const char* name, const std::optional<Tensor>& x, const Tensor& features, int64_t count) {
  if (!x) return nullptr;
  DIFNET_CHECK(x->scalar_type() == ScalarType::Float && x->is_contiguous() && x->numel() == count, name, " must be ",
               count, " contiguous numbers of float32");
  DIFNET_CHECK(x->get_device() == features.get_device(), name, " lies on another device than features");
  return static_cast<float*>(x->data_ptr());
}

void set_sizes(int32_t (&to)[3], const Tensor& of) {
  for (int axis = 0; axis < 3; ++axis) {
    DIFNET_CHECK(of.size(2 + axis) < int64_t(1) << 31, "an axis has ", of.size(2 + axis), " places");
    to[axis] = int32_t(of.size(2 + axis));
  }
}

// What both directions are asked.
void set_common(auto& asked, const Tensor& features, const Tensor& weight, const Tensor& position,
                const Tensor& counters) {
  const ScalarType type = features.scalar_type();
  DIFNET_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
               "features must be float16, bfloat16 or float32");
  DIFNET_CHECK(weight.dim() == 2 && weight.size(0) <= kWidest, "weight must be (D, C) with D up to ", kWidest);
  DIFNET_CHECK(features.size(0) < int64_t(1) << 31, "a launch counts images up to 2^31 - 1, not ", features.size(0),
               "; split the batch");
  asked.images = int32_t(features.size(0)), asked.embed = int32_t(weight.size(0));
  asked.features = volume_of("features", features, features, weight.size(1), type);
  asked.weight = numbers_of("weight", weight, features, weight.numel());
  asked.position = volume_of("position", position, features, weight.size(0), ScalarType::Int);
  set_sizes(asked.pixels, features), set_sizes(asked.nodes, position);
  asked.counters = static_cast<uint32_t*>(counters.mutable_data_ptr()), asked.counters_size = counters.numel();
}

void projection_forward_of_tensors(Tensor features, Tensor weight, std::optional<Tensor> slope, Tensor peak,
                                   Tensor position, std::optional<Tensor> mean, std::optional<Tensor> variance,
                                   Tensor counters) {
  ProjectionRequest asked{};
  set_common(asked, features, weight, position, counters);
  asked.peak = volume_of("peak", peak, features, weight.size(0), ScalarType::Float);
  DIFNET_CHECK(peak.size(2) == position.size(2) && peak.size(3) == position.size(3) && peak.size(4) == position.size(4),
               "peak and position differ in size");
  DIFNET_CHECK(mean.has_value() == variance.has_value(), "mean and variance come together");
  asked.slope = numbers_of("slope", slope, features, weight.size(0));
  asked.mean = numbers_of("mean", mean, features, weight.size(0));
  asked.variance = numbers_of("variance", variance, features, weight.size(0));
  launch(asked, features, device_of(features), [](auto&&... all) { return projection_forward(all...); });
}

void projection_backward_of_tensors(Tensor grad_peak, std::optional<Tensor> grad_mean,
                                    std::optional<Tensor> grad_variance, Tensor features, Tensor weight,
                                    Tensor position, std::optional<Tensor> z, std::optional<Tensor> mean,
                                    std::optional<Tensor> grad_features, std::optional<Tensor> grad_weight,
                                    Tensor counters) {
  const int64_t D = weight.size(0);
  ProjectionBackwardRequest asked{};
  set_common(asked, features, weight, position, counters);
  asked.grad_peak = volume_of("grad_peak", grad_peak, features, D, ScalarType::Float);
  asked.z = volume_or_none("z", z, features, D, ScalarType::Float);
  asked.grad_features =
      volume_or_none("grad_features", grad_features, features, weight.size(1), features.scalar_type());
  asked.mean = numbers_of("mean", mean, features, D);
  asked.grad_mean = numbers_of("grad_mean", grad_mean, features, D);
  asked.grad_variance = numbers_of("grad_variance", grad_variance, features, D);
  DIFNET_CHECK(!grad_variance || mean, "a gradient of the variance needs the mean");
  asked.grad_weight = numbers_of("grad_weight", grad_weight, features, weight.numel());
  launch(asked, features, device_of(features), [](auto&&... all) { return projection_backward(all...); });
}

}  // namespace
}  // namespace difnet::cuda

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CUDA, m) {
  m.impl("cuda_projection_forward", TORCH_BOX(&difnet::cuda::projection_forward_of_tensors));
  m.impl("cuda_projection_backward", TORCH_BOX(&difnet::cuda::projection_backward_of_tensors));
}
