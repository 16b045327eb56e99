// The arguments of a walk between tensors and kernels: what they must be, where an image of them lies, and what becomes
// of the gradients of the gates.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/check.h"
#include "cpu/walk/walk.h"

namespace difnet::cpu {

// A number for each node, or nothing.
inline void check_nodes(const std::optional<Tensor>& x, int64_t B, int64_t N, ScalarType type, const char* name) {
  demand(!x.has_value() || (has_sizes(*x, {B, N}) && is_dense(*x, type)), name,
         "(B, N), contiguous, of the dtype of walked");
}

// The arguments that both directions of a walk share.
inline void check_walk(const Tensor& state, const Tensor& seed, const Tensor& psi, const std::optional<Tensor>& bias,
                       const Tensor& mu, const Tensor& beta, int64_t t, const Tensor& walked, const Tensor& row_lse) {
  demand(seed.dim() == 3 && seed.size(1) > 0 && is_field(seed), "seed", "a field (B, K, N) on the CPU");
  const int64_t B = seed.size(0), K = seed.size(1), N = seed.size(2);
  demand(has_sizes(state, {B, K, N}) && is_field(state), "state", "a field (B, K, N) of the sizes of seed");
  demand(psi.dim() == 3 && psi.size(0) == B && psi.size(1) > 0 && psi.size(2) == N && is_field(psi), "psi",
         "a field (B, D, N) on the batch and nodes of seed");
  const ScalarType type = accumulation_type(walked, "walked");
  demand(has_sizes(walked, {B, N, K}) && is_dense(walked, type), "walked", "(B, N, K) and contiguous");
  demand(has_sizes(row_lse, {B, N}) && is_dense(row_lse, type), "row_lse",
         "(B, N), contiguous, of the dtype of walked");
  check_nodes(bias, B, N, type, "bias");
  demand(mu.dim() == 1 && is_dense(mu, type), "mu", "(T,), contiguous, of the dtype of walked");
  demand(has_sizes(beta, {mu.size(0)}) && is_dense(beta, type), "beta",
         "(T,) like mu, contiguous, of the dtype of walked");
  demand(t >= 0 && t < mu.size(0), "t", "a walk, from 0 to T - 1");
}

inline void check_walk_forward(const Tensor& next_state, const Tensor& seed) {
  demand(has_sizes(next_state, {seed.size(0), seed.size(1), seed.size(2)}) && is_field(next_state), "next_state",
         "a field (B, K, N) of the sizes of seed");
}

inline void check_walk_backward(const Tensor& grad_next, const std::optional<Tensor>& grad_row_lse, const Tensor& seed,
                                const Tensor& psi, const std::optional<Tensor>& bias, const Tensor& mu,
                                const Tensor& walked, const Tensor& grad_state, const Tensor& grad_seed,
                                const std::optional<Tensor>& grad_psi, const std::optional<Tensor>& grad_bias,
                                const Tensor& grad_mu, const Tensor& grad_beta) {
  const int64_t B = seed.size(0), K = seed.size(1), N = seed.size(2), T = mu.size(0);
  const ScalarType type = walked.scalar_type();
  demand(has_sizes(grad_next, {B, K, N}) && is_field(grad_next), "grad_next", "a field (B, K, N) of the sizes of seed");
  demand(has_sizes(grad_state, {B, N, K}) && is_dense(grad_state, type), "grad_state", "(B, N, K) like walked");
  demand(has_sizes(grad_seed, {B, N, K}) && is_dense(grad_seed, type), "grad_seed", "(B, N, K) like walked");
  demand(!grad_psi.has_value() || (has_sizes(*grad_psi, {B, psi.size(1), N}) && is_field(*grad_psi)), "grad_psi",
         "a field (B, D, N) of the sizes of psi");
  check_nodes(grad_row_lse, B, N, type, "grad_row_lse");
  check_nodes(grad_bias, B, N, type, "grad_bias");
  demand(!grad_bias.has_value() || bias.has_value(), "grad_bias", "given only where there is a bias");
  demand(has_sizes(grad_mu, {T}) && is_dense(grad_mu, type), "grad_mu", "(T,) like mu");
  demand(has_sizes(grad_beta, {T}) && is_dense(grad_beta, type), "grad_beta", "(T,) like mu");
}

// A number for each node of image `image`; null where there is none.
template <typename Real>
Real* of_nodes(const std::optional<Tensor>& x, int64_t image) {
  return x.has_value() ? static_cast<Real*>(x->mutable_data_ptr()) + image * x->size(1) : nullptr;
}

// The first node of the largest bias; -1 where there is none above -inf.
template <typename Real>
int64_t heaviest(const Real* bias, int64_t nodes) {
  int64_t found = -1;
  Real most = -std::numeric_limits<Real>::infinity();
  for (int64_t n = 0; n < nodes && bias != nullptr; ++n)
    if (bias[n] > most) most = bias[found = n];
  return found;
}

// What both directions read of image `image`; tile_bias and boxes are workspace.
template <typename Real>
WalkInputs<Real> walk_inputs(const WalkSizes& size, const Tensor& state, const Tensor& seed, const Tensor& psi,
                             const std::optional<Tensor>& bias, const Tensor& mu, const Tensor& beta, int64_t t,
                             int64_t image, TileBias<Real>* tile_bias, Real* boxes) {
  const Real* of_image = of_nodes<Real>(bias, image);
  return {size,
          field(state, image),
          field(seed, image),
          field(psi, image),
          of_image,
          heaviest(of_image, size.nodes),
          static_cast<const Real*>(mu.const_data_ptr())[t],
          static_cast<const Real*>(beta.const_data_ptr())[t],
          tile_bias,
          boxes};
}

// dL/dmu and dL/dbeta of walk t: every tile leaves its share, and the sum has one order, whoever made them.
template <typename Real>
class GateGradients {
 public:
  GateGradients(const Tensor& grad_mu, const Tensor& grad_beta, int64_t t, int64_t images, int64_t tiles)
      : mu_(static_cast<Real*>(grad_mu.mutable_data_ptr()) + t),
        beta_(static_cast<Real*>(grad_beta.mutable_data_ptr()) + t),
        tiles_(tiles),
        shares_(2 * images * tiles) {}

  double* of_image(int64_t image) { return shares_.data() + 2 * image * tiles_; }

  void write() const {
    double total_mu = 0, total_beta = 0;
    for (size_t x = 0; x < shares_.size(); x += 2) {
      total_mu += shares_[x];
      total_beta += shares_[x + 1];
    }
    *mu_ = Real(total_mu);
    *beta_ = Real(total_beta);
  }

 private:
  Real *mu_, *beta_;
  int64_t tiles_;
  std::vector<double> shares_;
};

}  // namespace difnet::cpu
