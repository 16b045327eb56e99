#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace difnet::cpu {

// Ψ2-Ψ4 for features, weight and position as in projection_forward.h; grad_peak and position are node-major, (B, Z',
// H', W', D) and contiguous, grad_peak of the accumulation dtype. grad_mean, grad_variance and mean (D,) are what came
// for the statistics, none if nothing did; z, laid out like grad_peak, is W f where every window is one pixel, or none.
// Writes grad_features, of any float dtype and strides, and grad_weight (D, C), each unless none.
void projection_backward(torch::stable::Tensor grad_peak, std::optional<torch::stable::Tensor> grad_mean,
                         std::optional<torch::stable::Tensor> grad_variance, torch::stable::Tensor features,
                         torch::stable::Tensor weight, torch::stable::Tensor position,
                         std::optional<torch::stable::Tensor> z, std::optional<torch::stable::Tensor> mean,
                         std::optional<torch::stable::Tensor> grad_features,
                         std::optional<torch::stable::Tensor> grad_weight);

}  // namespace difnet::cpu
