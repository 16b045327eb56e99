#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace difnet::cpu {

// W1-W4 of walk t for (B, K, N) state and seed and (B, D, N) psi of any float dtype and strides. bias (B, N; W1b), mu,
// beta (T,), walked (B, N, K) and row_lse (B, N) are contiguous and of the accumulation dtype; next_state, walked and
// row_lse are written. Unless `high`, a matrix unit may form the products of fp32 fields from 16 digits.
void walk_forward(torch::stable::Tensor state, torch::stable::Tensor seed, torch::stable::Tensor psi,
                  std::optional<torch::stable::Tensor> bias, torch::stable::Tensor mu, torch::stable::Tensor beta,
                  int64_t t, torch::stable::Tensor next_state, torch::stable::Tensor walked,
                  torch::stable::Tensor row_lse, bool high);

}  // namespace difnet::cpu
