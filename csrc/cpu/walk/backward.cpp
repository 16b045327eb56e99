// The backward walk of a batch (B1-B7): workspace, a tournament of tiles, and the sums over tiles in a fixed order.

#include "cpu/walk/backward.h"

#include <memory>
#include <optional>
#include <vector>

#include "cpu/schedule.h"
#include "cpu/walk/arguments.h"
#include "cpu/walk/kernels.h"
#include "cpu/workspace.h"

namespace difnet::cpu {

template <typename Real, typename Factor>
static void run(const WalkKernels<Real, Factor>& kernels, const Tensor& grad_next,
                const std::optional<Tensor>& grad_row_lse, const Tensor& state, const Tensor& seed, const Tensor& psi,
                const std::optional<Tensor>& bias, const Tensor& mu, const Tensor& beta, int64_t t,
                const Tensor& walked, const Tensor& row_lse, const Tensor& grad_state, const Tensor& grad_seed,
                const std::optional<Tensor>& grad_psi, const std::optional<Tensor>& grad_bias, const Tensor& grad_mu,
                const Tensor& grad_beta) {
  const WalkSizes size = walk_sizes(state, psi, kernels);
  const int64_t images = state.size(0), N = size.nodes, K = size.classes;
  const int64_t tiles = (N + kTile - 1) / kTile, padded = tiles * kTile;
  Workspace<Real> work;
  const int64_t psi_node_panels = work.reserve(images * padded * size.embed_factors);
  // of an image, in factors; nothing where the gradient of psi is not wanted
  const int64_t embed_stored = grad_psi.has_value() ? size.embed_stored : 0;
  const int64_t psi_size = padded / kernels.per_factor * embed_stored;
  const int64_t h_size = padded / kernels.per_factor * size.state_stored;
  const int64_t psi_channel_panels = work.reserve(images * psi_size);
  const int64_t state_node_panels = work.reserve(images * padded * K);
  const int64_t h_node_panels = work.reserve(images * padded * K);
  const int64_t h_channel_panels = work.reserve(images * h_size);
  const int64_t shifts = work.reserve(images * 3 * padded);
  const int64_t delta = work.reserve(images * padded);
  const int64_t psi_sums = work.reserve(images * padded * embed_stored);
  const int64_t state_sums = work.reserve(images * padded * size.state_stored);
  const int64_t off_diagonal = work.reserve(images * padded);
  const int64_t of_bias = bias.has_value() ? tiles * int64_t(sizeof(TileBias<Real>) / sizeof(Real)) : 0,
                tile_bias = work.reserve(images * of_bias);
  const int64_t of_boxes = tiles * (2 * size.embed_factors * kernels.per_factor + 1),
                boxes = work.reserve(images * of_boxes);
  const int64_t summed = grad_bias.has_value() ? padded : 0, row_sums = work.reserve(images * summed);
  Tournament tournament(images, tiles);
  const int64_t workers = tournament.workers();
  const int64_t psi_of_tile = kTile * embed_stored, state_of_tile = kTile * size.state_stored;
  const int64_t scratch_psi = work.reserve(workers * 2 * psi_of_tile);
  const int64_t scratch_state = work.reserve(workers * 2 * state_of_tile);
  const WalkUnit<WalkBackwardScratch<Real>>& unit = kernels.backward.unit;
  const int64_t unit_of_tile = unit.of_tile != nullptr ? unit.of_tile(size, grad_psi.has_value()) : 0;
  const int64_t unit_of_worker = unit.of_worker != nullptr ? unit.of_worker(size) : 0;
  const int64_t unit_of_tiles = work.reserve(images * tiles * unit_of_tile);
  const int64_t unit_of_workers = work.reserve(workers * unit_of_worker);
  work.allocate(walked);
  const std::unique_ptr<bool[]> flags(new bool[2 * images * tiles]);
  std::vector<WalkBackwardScratch<Real>> scratch(workers);
  for (int64_t worker = 0; worker < workers; ++worker) {
    for (int64_t side = 0; side < 2; ++side) {
      scratch[worker].psi_sums[side] = work.at(scratch_psi + (2 * worker + side) * psi_of_tile);
      scratch[worker].state_sums[side] = work.at(scratch_state + (2 * worker + side) * state_of_tile);
    }
    scratch[worker].unit = work.at(unit_of_workers + worker * unit_of_worker);
  }
  GateGradients<Real> grad_gates(grad_mu, grad_beta, t, images, tiles);
  std::vector<WalkBackward<Real, Factor>> walks;
  for (int64_t b = 0; b < images; ++b)
    walks.push_back(
        {walk_inputs<Real>(size, state, seed, psi, bias, mu, beta, t, b,
                           work.template at<TileBias<Real>>(tile_bias + b * of_bias), work.at(boxes + b * of_boxes)),
         field(grad_next, b),
         grad_psi.has_value() ? field(*grad_psi, b) : Field{},
         static_cast<const Real*>(walked.const_data_ptr()) + b * N * K,
         static_cast<const Real*>(row_lse.const_data_ptr()) + b * N,
         of_nodes<Real>(grad_row_lse, b),
         static_cast<Real*>(grad_state.mutable_data_ptr()) + b * N * K,
         static_cast<Real*>(grad_seed.mutable_data_ptr()) + b * N * K,
         of_nodes<Real>(grad_bias, b),
         grad_gates.of_image(b),
         work.template at<Factor>(psi_node_panels + b * padded * size.embed_factors),
         work.template at<Factor>(psi_channel_panels + b * psi_size),
         work.template at<Factor>(h_channel_panels + b * h_size),
         work.at(state_node_panels + b * padded * K),
         work.at(h_node_panels + b * padded * K),
         work.at(delta + b * padded),
         work.template at<Shifts<Real>>(shifts + b * 3 * padded),
         work.at(psi_sums + b * padded * embed_stored),
         work.at(state_sums + b * padded * size.state_stored),
         work.at(off_diagonal + b * padded),
         work.at(row_sums + b * summed),
         flags.get() + b * tiles,
         flags.get() + (images + b) * tiles,
         work.at(unit_of_tiles + b * tiles * unit_of_tile)});
  tournament.play(walks.data(), kernels.backward, scratch.data());
  grad_gates.write();
}

void walk_backward(Tensor grad_next, std::optional<Tensor> grad_row_lse, Tensor state, Tensor seed, Tensor psi,
                   std::optional<Tensor> bias, Tensor mu, Tensor beta, int64_t t, Tensor walked, Tensor row_lse,
                   Tensor grad_state, Tensor grad_seed, std::optional<Tensor> grad_psi, std::optional<Tensor> grad_bias,
                   Tensor grad_mu, Tensor grad_beta, bool high) {
  with_walks(walked, seed, psi, high, [&](const auto& kernels) {
    run(kernels, grad_next, grad_row_lse, state, seed, psi, bias, mu, beta, t, walked, row_lse, grad_state, grad_seed,
        grad_psi, grad_bias, grad_mu, grad_beta);
  });
}

}  // namespace difnet::cpu
