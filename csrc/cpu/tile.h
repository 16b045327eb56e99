// The unit of work, and the types that kernels and drivers share. No code: see walk/walk.h.
#pragma once

#include <stdint.h>

namespace difnet::cpu {

// Nodes (or pixels) of a tile: the unit of work, of scheduling and of padding.
inline constexpr int kTile = 64;

// Rows of a tile that sums are kept track of together: 64 bits of them, whatever the size of a micro-kernel.
inline constexpr int kRowGroup = 4;

struct Bf16 {
  uint16_t bits;
};

// Two numbers side by side, whose products are summed in one step: of neighbouring channels, or of neighbouring nodes.
struct alignas(4) Bf16Pair {
  Bf16 first, second;
};

}  // namespace difnet::cpu
