// The cascade backwards in one launch, as cascade/forward.h: blocks take units of work in turn, in this order,
//
//   groups of the first state | groups of every ψ | row tiles of every ψ | row tiles of the gradient that comes in |
//   walk T−1 | walk T−2 | ...
//
// and a unit waits only for units before it. Whoever finishes a row tile of a walk prepares it for the walk before.
#pragma once

#include "cuda/walk/backward.h"

namespace difnet::cuda {

template <typename With>
DIFNET_KERNEL(2)
void cascade_backward(const DIFNET_PARAMETER CascadeBackward c) {
  constexpr int kHalves = BackwardStage<With>::kHalves, kWidth = With::kInstance.width;
  auto& memory = shared_memory<BackwardMemory<With>>();
  const int before = c.units.reach + c.units.statistics + c.units.states + c.units.psi;
  int unit = block();
  for (; unit < before; unit += blocks()) {
    int at = unit;
    if (at < c.units.reach) {
      class_reach(c, memory.gradient.tile, at / c.groups, at % c.groups);
      continue;
    }
    at -= c.units.reach;
    if (at < c.units.statistics) {
      psi_statistics(c, memory.psi, at / c.groups / c.images, at / c.groups % c.images, at % c.groups);
      continue;
    }
    at -= c.units.statistics;
    if (at < c.units.psi) {
      prepare_psi<With::kInstance.embed, kHalves>(c, memory.psi, at / c.row_tiles / c.images,
                                                  at / c.row_tiles % c.images, at % c.row_tiles);
      continue;
    }
    at -= c.units.psi;
    Gradient<kWidth, kHalves>{c, memory.gradient, c.walks - 1, at / c.row_tiles, at % c.row_tiles}.begin();
  }
  // a loop of its own keeps nothing of the others in registers
  for (unit -= before; unit < c.units.walks; unit = memory.unit.number + blocks()) {
    take(c, memory, unit);
    WalkBackward<With>{c, memory}.run();
  }
  const bool last = leave(c, &memory.before);
  if (last && c.first_walk == 0 && (c.grad_mu != nullptr || c.grad_beta != nullptr))
#pragma unroll 1
    for (int walk = warp(); walk < c.all_walks; walk += kThreads / 32) add_gates(c, walk);
}

}  // namespace difnet::cuda
