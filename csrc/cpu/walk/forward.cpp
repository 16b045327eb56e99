// The forward walk of a batch (W1-W4): workspace, then a tournament of tiles.

#include "cpu/walk/forward.h"

#include <memory>
#include <optional>
#include <vector>

#include "cpu/schedule.h"
#include "cpu/walk/arguments.h"
#include "cpu/walk/kernels.h"
#include "cpu/workspace.h"

namespace difnet::cpu {

template <typename Real, typename Factor>
static void run(const WalkKernels<Real, Factor>& kernels, const Tensor& state, const Tensor& seed, const Tensor& psi,
                const std::optional<Tensor>& bias, const Tensor& mu, const Tensor& beta, int64_t t,
                const Tensor& next_state, const Tensor& walked, const Tensor& row_lse) {
  const WalkSizes size = walk_sizes(state, psi, kernels);
  const int64_t images = state.size(0), N = size.nodes, K = size.classes;
  const int64_t tiles = (N + kTile - 1) / kTile, padded = tiles * kTile;
  Workspace<Real> work;
  const int64_t psi_node_panels = work.reserve(images * padded * size.embed_factors);
  const int64_t states = padded / kernels.per_factor * size.state_stored,
                state_channel_panels = work.reserve(images * states);
  const int64_t sums = work.reserve(images * padded * size.state_stored);
  const int64_t shifts = work.reserve(images * 3 * padded);
  const int64_t of_bias = bias.has_value() ? tiles * int64_t(sizeof(TileBias<Real>) / sizeof(Real)) : 0,
                tile_bias = work.reserve(images * of_bias);
  const int64_t of_boxes = tiles * (2 * size.embed_factors * kernels.per_factor + 1),
                boxes = work.reserve(images * of_boxes);
  Tournament tournament(images, tiles);
  const int64_t workers = tournament.workers(), sums_of_tile = kTile * size.state_stored;
  const int64_t scratch_sums = work.reserve(workers * 2 * sums_of_tile);
  const WalkUnit<WalkForwardScratch<Real>>& unit = kernels.forward.unit;
  const int64_t unit_of_tile = unit.of_tile != nullptr ? unit.of_tile(size, false) : 0;
  const int64_t unit_of_worker = unit.of_worker != nullptr ? unit.of_worker(size) : 0;
  const int64_t unit_of_tiles = work.reserve(images * tiles * unit_of_tile);
  const int64_t unit_of_workers = work.reserve(workers * unit_of_worker);
  work.allocate(walked);
  const std::unique_ptr<bool[]> flags(new bool[2 * images * tiles]);
  std::vector<WalkForwardScratch<Real>> scratch(workers);
  for (int64_t worker = 0; worker < workers; ++worker) {
    for (int64_t side = 0; side < 2; ++side)
      scratch[worker].sums[side] = work.at(scratch_sums + (2 * worker + side) * sums_of_tile);
    scratch[worker].unit = work.at(unit_of_workers + worker * unit_of_worker);
  }
  std::vector<WalkForward<Real, Factor>> walks;
  for (int64_t b = 0; b < images; ++b)
    walks.push_back(
        {walk_inputs<Real>(size, state, seed, psi, bias, mu, beta, t, b,
                           work.template at<TileBias<Real>>(tile_bias + b * of_bias), work.at(boxes + b * of_boxes)),
         field(next_state, b), static_cast<Real*>(walked.mutable_data_ptr()) + b * N * K,
         static_cast<Real*>(row_lse.mutable_data_ptr()) + b * N,
         work.template at<Factor>(psi_node_panels + b * padded * size.embed_factors),
         work.template at<Factor>(state_channel_panels + b * states), work.at(sums + b * padded * size.state_stored),
         work.template at<Shifts<Real>>(shifts + b * 3 * padded), flags.get() + b * tiles,
         flags.get() + (images + b) * tiles, work.at(unit_of_tiles + b * tiles * unit_of_tile)});
  tournament.play(walks.data(), kernels.forward, scratch.data());
}

void walk_forward(Tensor state, Tensor seed, Tensor psi, std::optional<Tensor> bias, Tensor mu, Tensor beta, int64_t t,
                  Tensor next_state, Tensor walked, Tensor row_lse, bool high) {
  with_walks(walked, seed, psi, high, [&](const auto& kernels) {
    run(kernels, state, seed, psi, bias, mu, beta, t, next_state, walked, row_lse);
  });
}

}  // namespace difnet::cpu
