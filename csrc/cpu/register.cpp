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
#include "cpu/walk/kernels.h"

namespace difnet::cpu {
namespace {

std::string instruction_set() { return isa_name(); }

std::vector<std::string> instruction_sets(bool runnable) { return isa_names(runnable); }

const WalkUnitKernels& matrix_unit(const std::string& name) {
  const WalkUnitKernels* kernels = unit_walk_kernels(name);
  STD_TORCH_CHECK(kernels != nullptr,
                  "instruction_set must be one that runs here and has a matrix unit, or its model; got ", name,
                  "; name another one of instruction_sets().");
  return *kernels;
}

void matrix_unit_multiply(std::string instruction_set, Tensor sums, Tensor a, Tensor b) {
  check_registers(sums, a, b);
  const WalkUnitKernels& kernels = matrix_unit(instruction_set);
  for (int64_t n = 0; n < sums.size(0); ++n)
    kernels.multiply(static_cast<float*>(sums.mutable_data_ptr()) + n * 256,
                     static_cast<const uint32_t*>(a.const_data_ptr()) + n * 256,
                     static_cast<const uint32_t*>(b.const_data_ptr()) + n * 256);
}

// On every thread; how many did.
int64_t matrix_unit_spin(std::string instruction_set, int64_t steps) {
  const WalkUnitKernels& kernels = matrix_unit(instruction_set);
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t end) {
    for (; first < end; ++first) kernels.spin(steps);
  });
  return threads;
}

std::vector<int64_t> matrix_unit_counts(std::string instruction_set) {
  std::vector<int64_t> counts(3);
  matrix_unit(instruction_set).counts(counts.data());
  return counts;
}

void checked_walk_forward(Tensor state, Tensor seed, Tensor psi, std::optional<Tensor> bias, Tensor mu, Tensor beta,
                          int64_t t, Tensor next_state, Tensor walked, Tensor row_lse, bool high) {
  check_walk(state, seed, psi, bias, mu, beta, t, walked, row_lse);
  check_walk_forward(next_state, seed);
  walk_forward(state, seed, psi, bias, mu, beta, t, next_state, walked, row_lse, high);
}

void checked_walk_backward(Tensor grad_next, std::optional<Tensor> grad_row_lse, Tensor state, Tensor seed, Tensor psi,
                           std::optional<Tensor> bias, Tensor mu, Tensor beta, int64_t t, Tensor walked, Tensor row_lse,
                           Tensor grad_state, Tensor grad_seed, std::optional<Tensor> grad_psi,
                           std::optional<Tensor> grad_bias, Tensor grad_mu, Tensor grad_beta, bool high) {
  check_walk(state, seed, psi, bias, mu, beta, t, walked, row_lse);
  check_walk_backward(grad_next, grad_row_lse, seed, psi, bias, mu, walked, grad_state, grad_seed, grad_psi, grad_bias,
                      grad_mu, grad_beta);
  walk_backward(grad_next, grad_row_lse, state, seed, psi, bias, mu, beta, t, walked, row_lse, grad_state, grad_seed,
                grad_psi, grad_bias, grad_mu, grad_beta, high);
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
  m.impl("matrix_unit_spin", TORCH_BOX(&difnet::cpu::matrix_unit_spin));
  m.impl("matrix_unit_counts", TORCH_BOX(&difnet::cpu::matrix_unit_counts));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CPU, m) {
  m.impl("matrix_unit_multiply", TORCH_BOX(&difnet::cpu::matrix_unit_multiply));
  m.impl("walk_forward", TORCH_BOX(&difnet::cpu::checked_walk_forward));
  m.impl("walk_backward", TORCH_BOX(&difnet::cpu::checked_walk_backward));
  m.impl("project_pool_forward", TORCH_BOX(&difnet::cpu::checked_projection_forward));
  m.impl("project_pool_backward", TORCH_BOX(&difnet::cpu::checked_projection_backward));
}
