// The backward walk of a batch (B1-B7): workspace, a tournament of tiles, and the sums over tiles in a fixed order.

#include "cpu/walk/backward.h"

#include <memory>
#include <vector>

#include "cpu/schedule.h"
#include "cpu/walk/kernels.h"
#include "cpu/workspace.h"

namespace difnet::cpu {

template <typename Real, typename Factor>
static void run(const WalkKernels<Real, Factor>& kernels, const Tensor& grad_next, const Tensor& state,
                const Tensor& seed, const Tensor& psi, const Tensor& mu, const Tensor& beta, int64_t t,
                const Tensor& walked, const Tensor& row_lse, const Tensor& grad_state, const Tensor& grad_seed,
                const Tensor& grad_psi, const Tensor& grad_mu, const Tensor& grad_beta) {
  const WalkSizes size = walk_sizes(state, psi, kernels);
  const int64_t images = state.size(0), N = size.nodes, K = size.classes;
  const int64_t tiles = (N + kTile - 1) / kTile, padded = tiles * kTile;
  Workspace<Real> work;
  const int64_t psi_node_panels = work.reserve(images * padded * size.embed_factors);
  const int64_t psi_size = padded / kernels.per_factor * size.embed_stored;  // of an image, in factors
  const int64_t h_size = padded / kernels.per_factor * size.state_stored;
  const int64_t psi_channel_panels = work.reserve(images * psi_size);
  const int64_t state_node_panels = work.reserve(images * padded * K);
  const int64_t h_node_panels = work.reserve(images * padded * K);
  const int64_t h_channel_panels = work.reserve(images * h_size);
  const int64_t row_lse_padded = work.reserve(images * padded);
  const int64_t delta = work.reserve(images * padded);
  const int64_t psi_sums = work.reserve(images * padded * size.embed_stored);
  const int64_t state_sums = work.reserve(images * padded * size.state_stored);
  const int64_t off_diagonal = work.reserve(images * padded);
  work.allocate(walked);
  const std::unique_ptr<bool[]> finite(new bool[images * tiles]);
  std::vector<double> grad_gates(2 * images * tiles);
  std::vector<WalkBackward<Real, Factor>> walks;
  for (int64_t b = 0; b < images; ++b)
    walks.push_back({size,
                     field(grad_next, b),
                     field(state, b),
                     field(seed, b),
                     field(psi, b),
                     field(grad_psi, b),
                     static_cast<const Real*>(walked.const_data_ptr()) + b * N * K,
                     static_cast<const Real*>(row_lse.const_data_ptr()) + b * N,
                     static_cast<Real*>(grad_state.mutable_data_ptr()) + b * N * K,
                     static_cast<Real*>(grad_seed.mutable_data_ptr()) + b * N * K,
                     grad_gates.data() + 2 * b * tiles,
                     static_cast<const Real*>(mu.const_data_ptr())[t],
                     static_cast<const Real*>(beta.const_data_ptr())[t],
                     work.template at<Factor>(psi_node_panels + b * padded * size.embed_factors),
                     work.template at<Factor>(psi_channel_panels + b * psi_size),
                     work.template at<Factor>(h_channel_panels + b * h_size),
                     work.at(state_node_panels + b * padded * K),
                     work.at(h_node_panels + b * padded * K),
                     work.at(row_lse_padded + b * padded),
                     work.at(delta + b * padded),
                     work.at(psi_sums + b * padded * size.embed_stored),
                     work.at(state_sums + b * padded * size.state_stored),
                     work.at(off_diagonal + b * padded),
                     finite.get() + b * tiles});
  Tournament(images, tiles).play(walks.data(), kernels.backward);
  double total_mu = 0, total_beta = 0;
  for (int64_t x = 0; x < images * tiles; ++x) {
    total_mu += grad_gates[2 * x];
    total_beta += grad_gates[2 * x + 1];
  }
  static_cast<Real*>(grad_mu.mutable_data_ptr())[t] = Real(total_mu);
  static_cast<Real*>(grad_beta.mutable_data_ptr())[t] = Real(total_beta);
}

void walk_backward(Tensor grad_next, Tensor state, Tensor seed, Tensor psi, Tensor mu, Tensor beta, int64_t t,
                   Tensor walked, Tensor row_lse, Tensor grad_state, Tensor grad_seed, Tensor grad_psi, Tensor grad_mu,
                   Tensor grad_beta) {
  with_walks(walked, seed, psi, [&](const auto& kernels) {
    run(kernels, grad_next, state, seed, psi, mu, beta, t, walked, row_lse, grad_state, grad_seed, grad_psi, grad_mu,
        grad_beta);
  });
}

}  // namespace difnet::cpu
