// The backward of Ψ in one launch: ∂z of a bounded number of pixels at a time, then what is made of it.
//
//   rows of W | round 0: ∂z of its tiles | ∂f (tile, chunks) | ∂W (tiles, chunk) | round 1: ...
//
// Every chunk of channels needs ∂z, so the ∂z of a round goes through workspace: two rounds have room, whatever the
// size of the features. Block b takes units b, b + blocks, ..., and a unit waits only for units before it: for W, for
// the ∂z of its round, and ∂z for those who read the room it writes to. Gradients are gathered, never scattered: no
// atomic addition of data. ∂W is added in parts: tiles of a range, ranges of a round, rounds, each in their order, by
// whoever finishes the last of them.
#pragma once

#include "cuda/projection/gradients.h"

namespace difnet::cuda {

template <typename With>
union ProjectionBackwardMemory {
  ProjectionMemory<kHalvesOf<With>, With::kInstance.embed> pixels;
  FeatureGradientMemory<With::kInstance.embed> features;
  WeightGradientMemory<kHalvesOf<With>, With::kInstance.embed> weight;
};

template <typename With>
DIFNET_KERNEL(2)
void projection_backward(const DIFNET_PARAMETER ProjectionBackward c) {
  constexpr int kEmbed = With::kInstance.embed, kHalves = kHalvesOf<With>;
  auto& memory = shared_memory<ProjectionBackwardMemory<With>>();
  const int of_features = c.round_tiles * c.feature_groups, of_weight = c.ranges * c.chunks;
  const int of_round = c.round_tiles + of_features + of_weight;
#pragma unroll 1
  for (int unit = block(); unit < c.weight_units + c.rounds * of_round; unit += blocks()) {
    barrier();
    if (unit < c.weight_units) {
      prepare_weight<kEmbed>(c.psi, unit);
      barrier();
      if (thread() == 0) add_release(prepared(c), 1);
      continue;
    }
    const int round = (unit - c.weight_units) / of_round;
    int at = (unit - c.weight_units) % of_round;
    if (thread() == 0) {
      wait_for(prepared(c), c.weight_units, "a block waits for W", __LINE__);
      if (at < c.round_tiles) {
        if (round >= kSlots)
          wait_for(used(c, round - kSlots), of_features + of_weight, "a block waits for room for its pixels", __LINE__);
      } else {
        wait_for(made(c, round), c.round_tiles, "a block waits for the gradient of z", __LINE__);
      }
    }
    barrier();
    if (at < c.round_tiles) {
      pixel_gradient<kHalves, kEmbed>(c, memory.pixels, round, at);
      barrier();
      if (thread() == 0) add_release(made(c, round), 1);
      continue;
    }
    at -= c.round_tiles;
    if (at < of_features)
      feature_gradient<kEmbed>(c, memory.features, round, at / c.feature_groups, at % c.feature_groups);
    else
      weight_gradient<kHalves, kEmbed>(c, memory.weight, round, (at - of_features) / c.chunks,
                                       (at - of_features) % c.chunks);
    barrier();
    if (thread() == 0) add_release(used(c, round), 1);
  }
  leave(c.counters, c.counters_size, &memory.weight.before);
}

}  // namespace difnet::cuda
