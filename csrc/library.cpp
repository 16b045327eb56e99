// The native operators: schemas here, kernels by device. Python (difnet_kernels/backends) allocates and checks; these
// only compute. Built against the LibTorch stable ABI, so one binary serves every torch >= 2.10.

#include <torch/csrc/stable/library.h>

#include "cpu/driver.h"
#include "cpu/psi_backward.h"
#include "cpu/psi_forward.h"
#include "cpu/walk_backward.h"
#include "cpu/walk_forward.h"

namespace {

int64_t instruction_set() { return int64_t(difnet::isa()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(difnet_kernels, m) {
  m.def("instruction_set() -> int");
  m.def(
      "walk_forward(Tensor state, Tensor seed, Tensor psi, Tensor mu, Tensor beta, int t, Tensor(a!) next_state, "
      "Tensor(b!) walked, Tensor(c!) row_lse) -> ()");
  m.def(
      "walk_backward(Tensor grad_next, Tensor state, Tensor seed, Tensor psi, Tensor mu, Tensor beta, int t, "
      "Tensor walked, Tensor row_lse, Tensor(a!) grad_state, Tensor(b!) grad_seed, Tensor(c!) grad_psi, "
      "Tensor(d!) grad_mu, Tensor(e!) grad_beta) -> ()");
  m.def(
      "psi_forward(Tensor features, Tensor weight, Tensor? slope, Tensor(a!) peak, Tensor(b!) position, "
      "Tensor(c!)? mean, Tensor(d!)? variance) -> ()");
  m.def(
      "psi_backward(Tensor grad_peak, Tensor? grad_mean, Tensor? grad_variance, Tensor features, Tensor weight, "
      "Tensor position, Tensor? z, Tensor? mean, Tensor(a!)? grad_features, Tensor(b!)? grad_weight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CPU, m) {
  m.impl("walk_forward", TORCH_BOX(&difnet::walk_forward));
  m.impl("walk_backward", TORCH_BOX(&difnet::walk_backward));
  m.impl("psi_forward", TORCH_BOX(&difnet::psi_forward));
  m.impl("psi_backward", TORCH_BOX(&difnet::psi_backward));
}
