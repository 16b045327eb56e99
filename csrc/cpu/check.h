// What the native operators demand when they are called directly: sizes, dtypes and memory, before a pointer is taken.
// Python's operators have checked the same of the caller's own tensors; here nothing is converted. The demands of a walk
// stand beside the pointers that are taken, in walk/arguments.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "tensors.h"

namespace difnet::cpu {

// "psi must be ..., got a tensor of other sizes": the argument, and the rule that it breaks.
inline void demand(bool holds, const char* name, const char* rule) {
  STD_TORCH_CHECK(holds, name, " must be ", rule, "; pass what backends/cpu.py passes.");
}

inline bool has_sizes(const Tensor& x, std::initializer_list<int64_t> sizes) {
  const auto own = x.sizes();
  return std::equal(own.begin(), own.end(), sizes.begin(), sizes.end());
}

inline bool is_field(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  return x.is_cpu() && (type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                        type == ScalarType::BFloat16);
}

// A dense tensor of the accumulation dtype, whose memory is read and written straight.
inline bool is_dense(const Tensor& x, ScalarType type) {
  return x.is_cpu() && x.scalar_type() == type && x.is_contiguous();
}

inline ScalarType accumulation_type(const Tensor& x, const char* name) {
  const ScalarType type = x.scalar_type();
  demand(type == ScalarType::Float || type == ScalarType::Double, name, "float32 or float64, in which the sums run");
  return type;
}

// Registers of a matrix unit (unit/unit.h): 16 x 16 sums, and operands of 16 x 16 pairs.
inline void check_registers(const Tensor& sums, const Tensor& a, const Tensor& b) {
  demand(sums.dim() == 3 && has_sizes(sums, {sums.size(0), 16, 16}) && is_dense(sums, ScalarType::Float), "sums",
         "(n, 16, 16) of float32, contiguous");
  demand(has_sizes(a, {sums.size(0), 16, 32}) && is_dense(a, ScalarType::BFloat16), "a",
         "(n, 16, 32) of bfloat16, contiguous");
  demand(has_sizes(b, {sums.size(0), 16, 32}) && is_dense(b, ScalarType::BFloat16), "b",
         "(n, 16, 32) of bfloat16, contiguous: 16 pairs of each of the 16 columns");
}

// features and weight, which both directions of a projection share
inline void check_projected(const Tensor& features, const Tensor& weight) {
  demand(features.dim() == 5 && is_field(features), "features", "(B, C, Z, H, W) on the CPU");
  for (int64_t axis = 1; axis < 5; ++axis)
    demand(features.size(axis) > 0, "features", "of at least one channel and pixel");
  const ScalarType type = accumulation_type(weight, "weight");
  demand(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == features.size(1) && is_dense(weight, type),
         "weight", "(D, C) over the channels of features, and contiguous");
}

inline void check_channels(const std::optional<Tensor>& x, const Tensor& weight, const char* name) {
  demand(!x.has_value() || (has_sizes(*x, {weight.size(0)}) && is_dense(*x, weight.scalar_type())), name,
         "(D,), contiguous, of the dtype of weight");
}

inline void check_projection_forward(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& slope,
                                     const Tensor& peak, const Tensor& position, const std::optional<Tensor>& mean,
                                     const std::optional<Tensor>& variance) {
  check_projected(features, weight);
  check_channels(slope, weight, "slope");
  check_channels(mean, weight, "mean");
  check_channels(variance, weight, "variance");
  demand(mean.has_value() == variance.has_value(), "variance", "given if mean is, and else not");
  demand(peak.dim() == 5 && peak.size(0) == features.size(0) && peak.size(1) == weight.size(0) && peak.is_cpu() &&
             peak.scalar_type() == weight.scalar_type(),
         "peak", "(B, D, *grid) of the dtype of weight");
  demand(position.dim() == 5 && position.is_cpu() && position.scalar_type() == ScalarType::Int, "position",
         "(B, D, *grid) of int32");
  for (int64_t axis = 0; axis < 5; ++axis)
    demand(position.size(axis) == peak.size(axis) && position.stride(axis) == peak.stride(axis) &&
               (axis == 0 || peak.size(axis) > 0),
           "position", "of the sizes and strides of peak");
}

inline void check_projection_backward(const Tensor& grad_peak, const std::optional<Tensor>& grad_mean,
                                      const std::optional<Tensor>& grad_variance, const Tensor& features,
                                      const Tensor& weight, const Tensor& position, const std::optional<Tensor>& z,
                                      const std::optional<Tensor>& mean, const std::optional<Tensor>& grad_features,
                                      const std::optional<Tensor>& grad_weight) {
  check_projected(features, weight);
  const ScalarType type = weight.scalar_type();
  const int64_t B = features.size(0), C = features.size(1), D = weight.size(0);
  const int64_t Z = features.size(2), H = features.size(3), W = features.size(4);
  demand(grad_peak.dim() == 5 && grad_peak.size(0) == B && grad_peak.size(4) == D && is_dense(grad_peak, type),
         "grad_peak", "(B, *grid, D), contiguous, of the dtype of weight");
  demand(has_sizes(position, {B, grad_peak.size(1), grad_peak.size(2), grad_peak.size(3), D}) &&
             is_dense(position, ScalarType::Int),
         "position", "int32, contiguous, of the sizes of grad_peak");
  check_channels(grad_mean, weight, "grad_mean");
  check_channels(grad_variance, weight, "grad_variance");
  check_channels(mean, weight, "mean");
  demand(!grad_variance.has_value() || mean.has_value(), "mean", "given with grad_variance");
  demand(!z.has_value() || (has_sizes(*z, {B, Z, H, W, D}) && is_dense(*z, type)), "z",
         "(B, Z, H, W, D), contiguous, of the dtype of weight");
  demand(!grad_features.has_value() || (has_sizes(*grad_features, {B, C, Z, H, W}) && is_field(*grad_features)),
         "grad_features", "of the sizes of features");
  demand(!grad_weight.has_value() || (has_sizes(*grad_weight, {D, C}) && is_dense(*grad_weight, type)), "grad_weight",
         "(D, C) like weight");
}

}  // namespace difnet::cpu
