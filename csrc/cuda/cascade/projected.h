// Ψ and the cascade in one launch: as cascade/forward.h, and ψ is projected from the feature maps first. The steps of
// the walks are staggered, so that each waits only for steps of the stage before:
//
//   largest scores | rows of W of all walks | stage 0, 1, 2 ...
//   stage s:  Ψ of walk s | statistics of ψ of walk s − 1 | ψ of walk s − 2 in halves | walk s − 3
//
// So walk t waits for ψ_t and yᵗ alone, and the blocks that it leaves idle project ψ of later walks. The first state is
// prepared in stage 1.
#pragma once

#include "cuda/cascade/project.h"
#include "cuda/walk/forward.h"

namespace difnet::cuda {

template <typename With>
struct ProjectedMemory {
  union {
    PrepareMemory<With::kInstance.embed> psi;
    PrepareMemory<With::kInstance.width> state;
    WalkMemory<With> walk;
    typename Project<With::kInstance.embed>::Memory project;
  };
  int32_t next;  // unit of this block, here because registers are scarce; every unit has a barrier before it is read
};

template <typename With>
DIFNET_KERNEL(2)
void projected_cascade(const DIFNET_PARAMETER ProjectedCascade c) {
  constexpr int kHalves = Stage<With>::kHalves, kEmbed = With::kInstance.embed, kWidth = With::kInstance.width;
  auto& memory = shared_memory<ProjectedMemory<With>>();
  for (int unit = block(); unit < c.of_walk.all; unit = memory.next) {
    barrier();  // all have read which unit this is
    if (thread() == 0) memory.next = unit + blocks();
    int at = unit;
    if (at < c.units.reach) {
      class_reach(c, memory.state, at / c.groups, at % c.groups);
      continue;
    }
    at -= c.units.reach;
    if (at < c.of_walk.weights) {
      constexpr int kUnits = Project<kEmbed>::kWeightUnits;
      Project<kEmbed>(c, memory.project, at / kUnits).weight(at % kUnits);
      continue;
    }
    at -= c.of_walk.weights;
    // which step of which walk: passes by `count` units if walk t has none, or they are before this one
    const auto passes = [&](int t, int count) {
      if (t < 0 || t >= c.walks) return true;
      if (at < count) return false;
      at -= count;
      return true;
    };
    int stage = 0, step = 0;
#pragma unroll 1
    for (;; ++stage) {
      step = 0;
      if (!passes(stage, c.of_walk.tiles)) break;
      step = 1;
      if (!passes(stage == 1 ? 0 : -1, c.of_walk.tiles)) break;
      step = 2;
      if (!passes(stage - 1, c.of_walk.groups)) break;
      step = 3;
      if (!passes(stage - 2, c.of_walk.tiles)) break;
      step = 4;
      if (!passes(stage - 3, c.of_walk.tiles * c.of_walk.parts)) break;
    }
    if (step == 0) {
      Project<kEmbed>(c, memory.project, stage).run(at / c.row_tiles, at % c.row_tiles);
    } else if (step == 1) {
      prepare_state<kWidth, kHalves>(c, memory.state, at / c.row_tiles, at % c.row_tiles);
    } else if (step == 2) {
      wait_for_psi(c, stage - 1, at / c.groups);
      psi_statistics(c, memory.psi, stage - 1, at / c.groups, at % c.groups);
    } else if (step == 3) {
      prepare_psi<kEmbed, kHalves>(c, memory.psi, stage - 2, at / c.row_tiles, at % c.row_tiles);
    } else {
      const int tile = at / c.of_walk.parts;
      Walk<With, ProjectedCascade> walk{c, memory.walk, stage - 3, tile / c.row_tiles, tile % c.row_tiles};
      walk.run(at % c.of_walk.parts);
    }
  }
  leave(c, &memory.walk.before);
}

}  // namespace difnet::cuda
