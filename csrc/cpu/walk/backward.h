#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace difnet::cpu {

// B1-B8 of walk t. Fields and bias as in forward.h; grad_next (B, K, N) is dL/dy⁺, grad_row_lse (B, N) dL/d row_lse or
// none. Of the accumulation dtype and contiguous: grad_state (B, N, K), written; grad_seed (B, N, K), added to; grad_bias
// (B, N), written unless none; grad_mu and grad_beta (T,), written at t. grad_psi is (B, D, N) of any float dtype and
// strides, written unless none.
void walk_backward(torch::stable::Tensor grad_next, std::optional<torch::stable::Tensor> grad_row_lse,
                   torch::stable::Tensor state, torch::stable::Tensor seed, torch::stable::Tensor psi,
                   std::optional<torch::stable::Tensor> bias, torch::stable::Tensor mu, torch::stable::Tensor beta,
                   int64_t t, torch::stable::Tensor walked, torch::stable::Tensor row_lse,
                   torch::stable::Tensor grad_state, torch::stable::Tensor grad_seed,
                   std::optional<torch::stable::Tensor> grad_psi, std::optional<torch::stable::Tensor> grad_bias,
                   torch::stable::Tensor grad_mu, torch::stable::Tensor grad_beta, bool high);

}  // namespace difnet::cpu
