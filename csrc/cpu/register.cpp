// The operators of library.cpp on a CPU.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/check.h"
#include "cpu/isa.h"
#include "cpu/projection/backward.h"
#include "cpu/projection/forward.h"
#include "cpu/walk/arguments.h"
#include "cpu/walk/backward.h"
#include "cpu/walk/forward.h"

namespace difnet::cpu {
namespace {

std::string instruction_set() { return isa_name(); }

std::vector<std::string> instruction_sets(bool runnable) { return isa_names(runnable); }

void checked_walk_forward(Tensor state, Tensor seed, Tensor psi, std::optional<Tensor> bias, Tensor mu, Tensor beta,
                          int64_t t, Tensor next_state, Tensor walked, Tensor row_lse) {
  check_walk(state, seed, psi, bias, mu, beta, t, walked, row_lse);
  check_walk_forward(next_state, seed);
  walk_forward(state, seed, psi, bias, mu, beta, t, next_state, walked, row_lse);
}

void checked_walk_backward(Tensor grad_next, std::optional<Tensor> grad_row_lse, Tensor state, Tensor seed, Tensor psi,
                           std::optional<Tensor> bias, Tensor mu, Tensor beta, int64_t t, Tensor walked, Tensor row_lse,
                           Tensor grad_state, Tensor grad_seed, std::optional<Tensor> grad_psi,
                           std::optional<Tensor> grad_bias, Tensor grad_mu, Tensor grad_beta) {
  check_walk(state, seed, psi, bias, mu, beta, t, walked, row_lse);
  check_walk_backward(grad_next, grad_row_lse, seed, psi, bias, mu, walked, grad_state, grad_seed, grad_psi, grad_bias,
                      grad_mu, grad_beta);
  walk_backward(grad_next, grad_row_lse, state, seed, psi, bias, mu, beta, t, walked, row_lse, grad_state, grad_seed,
                grad_psi, grad_bias, grad_mu, grad_beta);
}

void checked_projection_forward(Tensor features, Tensor weight, std::optional<Tensor> slope, Tensor peak,
                                Tensor position, std::optional<Tensor> mean, std::optional<Tensor> variance) {
  check_projection_forward(features, weight, slope, peak, position, mean, variance);
  projection_forward(features, weight, slope, peak, position, mean, variance);
}

void checked_projection_backward(Tensor grad_peak, std::optional<Tensor> grad_mean, std::optional<Tensor> grad_variance,
                                 Tensor features, Tensor weight, Tensor position, std::optional<Tensor> z,
                                 std::optional<Tensor> mean, std::optional<Tensor> grad_features,
                                 std::optional<Tensor> grad_weight) {
  check_projection_backward(grad_peak, grad_mean, grad_variance, features, weight, position, z, mean, grad_features,
                            grad_weight);
  projection_backward(grad_peak, grad_mean, grad_variance, features, weight, position, z, mean, grad_features,
                      grad_weight);
}

}  // namespace
}  // namespace difnet::cpu

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&difnet::cpu::instruction_set));
  m.impl("instruction_sets", TORCH_BOX(&difnet::cpu::instruction_sets));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CPU, m) {
  m.impl("walk_forward", TORCH_BOX(&difnet::cpu::checked_walk_forward));
  m.impl("walk_backward", TORCH_BOX(&difnet::cpu::checked_walk_backward));
  m.impl("project_pool_forward", TORCH_BOX(&difnet::cpu::checked_projection_forward));
  m.impl("project_pool_backward", TORCH_BOX(&difnet::cpu::checked_projection_backward));
}
