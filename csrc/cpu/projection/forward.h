#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace difnet::cpu {

// Ψ1 without its normalisation: features (B, C, Z, H, W) of any float dtype and strides; weight (D, C) and slope (D,),
// none meaning all positive, contiguous and of the accumulation dtype. Writes peak (B, D, Z', H', W') of that dtype, z
// = W f at the pixel of each window where sign(slope) z is largest; position, int32 with the strides of peak, that
// pixel's index in its image; and, unless they are none, the mean and biased variance (D,) of z over the batch.
void projection_forward(torch::stable::Tensor features, torch::stable::Tensor weight,
                        std::optional<torch::stable::Tensor> slope, torch::stable::Tensor peak,
                        torch::stable::Tensor position, std::optional<torch::stable::Tensor> mean,
                        std::optional<torch::stable::Tensor> variance);

}  // namespace difnet::cpu
