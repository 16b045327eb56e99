// The whole cascade in one launch: ψ and the state are prepared, then all walks, by blocks that take units of work in
// turn.
//
//   groups of the first state | groups of every ψ | row tiles of the state | row tiles of every ψ | walk 0 | walk 1 | ...
//
// Block b takes units b, b + blocks, ... in this order, and a unit waits only for units before it: the first unfinished
// one can always go on, if all blocks are resident (a cooperative launch). Nobody waits for the grid: a walk waits for
// the row tiles that it reads, each by its own counter.
#pragma once

#include "cuda/walk/forward.h"

namespace difnet::cuda {

template <typename With>
union SharedMemory {
  PrepareMemory<With::kInstance.embed> psi;
  PrepareMemory<With::kInstance.width> state;
  WalkMemory<With> walk;
};

template <typename With>
DIFNET_KERNEL(2)
void cascade_forward(const DIFNET_PARAMETER Cascade c) {
  constexpr int kHalves = Stage<With>::kHalves;
  auto& memory = shared_memory<SharedMemory<With>>();
  const int parts = c.split.all_parts ? 1 : c.split.parts;
  const int all = c.units.reach + c.units.statistics + c.units.states + c.units.psi + c.units.walks;
  for (int unit = block(); unit < all; unit += blocks()) {
    int at = unit;
    if (at < c.units.reach) {
      class_reach(c, memory.state, at / c.groups, at % c.groups);
      continue;
    }
    at -= c.units.reach;
    if (at < c.units.statistics) {
      psi_statistics(c, memory.psi, at / c.groups / c.images, at / c.groups % c.images, at % c.groups);
      continue;
    }
    at -= c.units.statistics;
    if (at < c.units.states) {
      prepare_state<With::kInstance.width, kHalves>(c, memory.state, at / c.row_tiles, at % c.row_tiles);
      continue;
    }
    at -= c.units.states;
    if (at < c.units.psi) {
      prepare_psi<With::kInstance.embed, kHalves>(c, memory.psi, at / c.row_tiles / c.images,
                                                  at / c.row_tiles % c.images, at % c.row_tiles);
      continue;
    }
    at -= c.units.psi;
    const int tile = at / parts;
    Walk<With> walk{c, memory.walk, tile / c.row_tiles / c.images, tile / c.row_tiles % c.images, tile % c.row_tiles};
    walk.run(at % parts);
  }
  leave(c, &memory.walk.before);
}

}  // namespace difnet::cuda
