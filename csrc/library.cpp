// The schemas of the native operators; each device registers its kernels in its own register.cpp. Python
// (difnet_kernels/backends) allocates and checks; these only compute. Built against the LibTorch stable ABI, so one
// binary serves every torch >= 2.10.
//
// Ψ's kernels are project_pool_*: difnet_kernels::projection_forward is the differentiable operator that Python defines
// on top of them and of the normalisation.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(difnet_kernels, m) {
  m.def("instruction_set() -> str");
  m.def("instruction_sets(bool runnable) -> str[]");
  m.def("matrix_unit_multiply(str instruction_set, Tensor(a!) sums, Tensor a, Tensor b) -> ()");
  m.def("matrix_unit_spin(str instruction_set, int steps) -> int");
  m.def("matrix_unit_counts(str instruction_set) -> int[]");
  m.def(
      "walk_forward(Tensor state, Tensor seed, Tensor psi, Tensor? bias, Tensor mu, Tensor beta, int t, "
      "Tensor(a!) next_state, Tensor(b!) walked, Tensor(c!) row_lse, bool high=True) -> ()");
  m.def(
      "walk_backward(Tensor grad_next, Tensor? grad_row_lse, Tensor state, Tensor seed, Tensor psi, Tensor? bias, "
      "Tensor mu, Tensor beta, int t, Tensor walked, Tensor row_lse, Tensor(a!) grad_state, Tensor(b!) grad_seed, "
      "Tensor(c!)? grad_psi, Tensor(d!)? grad_bias, Tensor(e!) grad_mu, Tensor(f!) grad_beta, bool high=True) -> ()");
  m.def(
      "project_pool_forward(Tensor features, Tensor weight, Tensor? slope, Tensor(a!) peak, Tensor(b!) position, "
      "Tensor(c!)? mean, Tensor(d!)? variance) -> ()");
  m.def(
      "project_pool_backward(Tensor grad_peak, Tensor? grad_mean, Tensor? grad_variance, Tensor features, Tensor "
      "weight, "
      "Tensor position, Tensor? z, Tensor? mean, Tensor(a!)? grad_features, Tensor(b!)? grad_weight) -> ()");
#if defined(DIFNET_HAS_CUDA)
  m.def("why_no_cuda_device() -> str");
  m.def(
      "cuda_cascade_forward(Tensor? state, Tensor seed, Tensor[] psi, Tensor[] bias, Tensor mu, Tensor beta, bool "
      "high, "
      "Tensor(a!)[] states, Tensor(b!)? walked, Tensor(c!)? row_lse, Tensor(d!)[] lse, Tensor(e!) counters) -> ()");
  m.def(
      "cuda_projected_cascade(Tensor seed, Tensor[] features, Tensor[] weight, Tensor[] offset, Tensor[] mean, "
      "Tensor[] "
      "variance, Tensor[] slope, Tensor[] shift, float[] eps, float root, int[] grid, Tensor mu, Tensor beta, Tensor? "
      "bias, "
      "bool high, Tensor(a!)[] states, Tensor(b!) counters) -> ()");
  m.def(
      "cuda_cascade_backward(Tensor[] grad_states, Tensor? state, Tensor seed, Tensor[] psi, Tensor[] bias, Tensor mu, "
      "Tensor beta, Tensor walked, Tensor row_lse, bool high, Tensor[] grad_lse, Tensor(a!)? grad_state, "
      "Tensor(b!)? grad_seed, Tensor(c!)[] grad_psi, Tensor(d!)[] grad_bias, Tensor(e!)? grad_mu, "
      "Tensor(f!)? grad_beta, Tensor(g!) counters) -> ()");
  m.def(
      "cuda_projection_forward(Tensor features, Tensor weight, Tensor? slope, Tensor(a!) peak, Tensor(b!) position, "
      "Tensor(c!)? mean, Tensor(d!)? variance, Tensor(e!) counters) -> ()");
  m.def(
      "cuda_projection_backward(Tensor grad_peak, Tensor? grad_mean, Tensor? grad_variance, Tensor features, Tensor "
      "weight, Tensor position, Tensor? z, Tensor? mean, Tensor(a!)? grad_features, Tensor(b!)? grad_weight, "
      "Tensor(c!) counters) -> ()");
#endif
}
