// The unit of work of a walk backwards: 64 rows of one image and one part of the columns. Which it is, its sums, its
// shared memory.
#pragma once

#include "cuda/walk/gradient.h"

namespace difnet::cuda {

template <typename With>
struct BackwardStage {
  static constexpr int kTile = backward_tile(With::kInstance), kHalves = With::kInstance.products == 3 ? 2 : 1;
  static constexpr int kWidth = With::kInstance.width;
  uint16_t psi[kHalves][kTile * With::kInstance.embed];
  uint16_t y[kHalves][kTile * kWidth], h[kHalves][kTile * kWidth], class_h[kHalves][kTile * kWidth];
  float bias[kTile], lse[kTile], drop[kTile];
  float tile[tile_numbers(kWidth)];
};

// What of a unit's own rows has no place in registers and is read again for every 16 columns, from shared memory: how
// many halves of ψ, the high ones first, and whether y and h. In the widest kernel the low halves of ψ come from global
// memory, for its shared memory is full.
constexpr int psi_in_shared(const Instance& k) {
  if (k.products == 3) return k.embed == 128 && k.width == 64 ? 1 : k.embed == 128 || k.width == 64 ? 2 : 0;
  return k.embed == 128;
}
constexpr bool is_widest(const Instance& k) { return k.products == 3 && k.embed == 128 && k.width == 64; }

template <typename With>
struct StreamMemory {
  static constexpr Instance k = With::kInstance;
  static constexpr int kHalves = BackwardStage<With>::kHalves, kPsi = psi_in_shared(k);
  static constexpr bool kFields = is_widest(k);
  alignas(128) BackwardStage<With> stage[2];
  uint16_t psi[kPsi ? kPsi : 1][kPsi ? kRows * k.embed : 8];
  uint16_t field[2][kHalves][kFields ? kRows * k.width : 8];  // h, y
};

// The sums of the rows, once the columns are through.
template <int kEmbed>
struct FinishMemory {
  float psi[kRows * (kEmbed + 1)];
  float against[kRows], looked[kRows], own[kRows], itself[kRows];
};

// Which unit: kept here, because the columns leave no registers for it.
struct Unit {
  int32_t number, t, image, row_tile, part;  // t: of this launch
  int64_t psi, field;  // where the nodes of the image begin in what is kept for every walk, and for t & 1
};

template <typename With>
struct BackwardMemory {
  union {
    PrepareMemory<With::kInstance.embed> psi;
    GradientMemory<With::kInstance.width> gradient;
    StreamMemory<With> stream;
    FinishMemory<With::kInstance.embed> finish;
  };
  Unit unit;
  // of the unit's rows: the two levels and the exponent of their tile; P_ii, and A_ii as the difference that it is
  float levels[3], own[kRows], itself[kRows];
  uint32_t before;  // how many parts of the row tile came before this one
};

// The numbers of one thread, for rows g and g + 8 as Sums of the forward.
template <int kEmbed, int kWidth>
struct BackwardSums {
  float psi[kEmbed / 8][4];     // Σ_(j≠i) T_ij ψ̃_j
  float moved[kWidth / 8][4];   // Σ_(j≠i) P_ji h_j
  float against[2], looked[2];  // Σ_(j≠i) A_ij, Σ_(j≠i) T_ij over this thread's columns
  float own[2], itself[2];      // P_ii and A_ii, once the columns are through

  template <typename Act>  // act(number, which of all)
  DIFNET_DEVICE void for_each_four(Act act) {
#pragma unroll
    for (int n = 0; n < kEmbed / 8; ++n) act(psi[n], n);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) act(moved[n], kEmbed / 8 + n);
    float first[4] = {against[0], against[1], looked[0], looked[1]}, second[4] = {own[0], own[1], itself[0], itself[1]};
    act(first, kEmbed / 8 + kWidth / 8);
    act(second, kEmbed / 8 + kWidth / 8 + 1);
    against[0] = first[0], against[1] = first[1], looked[0] = first[2], looked[1] = first[3];
    own[0] = second[0], own[1] = second[1], itself[0] = second[2], itself[1] = second[3];
  }
};

// Unit `number` of the walks, for the whole block.
template <typename With>
DIFNET_DEVICE void take(const CascadeBackward& c, BackwardMemory<With>& memory, int number) {
  barrier();  // the unit before is done with
  if (thread() == 0) {
    const int parts = c.split.all_parts ? 1 : c.split.parts, tile = number / parts, images = tile / c.row_tiles;
    const int t = c.walks - 1 - images / c.images, image = images % c.images;
    const int64_t nodes = int64_t(c.row_tiles) * kRows;
    memory.unit = {number,
                   t,
                   image,
                   tile % c.row_tiles,
                   number % parts,
                   (int64_t(t) * c.images + image) * nodes,
                   (((c.first_walk + t) & 1) * int64_t(c.images) + image) * nodes};
  }
  barrier();
}

// What the pieces of a walk backwards have in common.
template <typename With>
struct BackwardUnit {
  using Stage = BackwardStage<With>;
  using Memory = BackwardMemory<With>;
  using Numbers = BackwardSums<With::kInstance.embed, With::kInstance.width>;
  static constexpr int kTile = Stage::kTile, kHalves = Stage::kHalves;
  static constexpr int kEmbed = With::kInstance.embed, kWidth = With::kInstance.width;
  static constexpr int kTileNumbers = tile_numbers(kWidth);

  const CascadeBackward& c;
  Memory& memory;

  DIFNET_DEVICE int t() const { return memory.unit.t; }
  DIFNET_DEVICE int image() const { return memory.unit.image; }
  DIFNET_DEVICE int row_tile() const { return memory.unit.row_tile; }
  DIFNET_DEVICE int64_t first_psi() const { return memory.unit.psi; }
  DIFNET_DEVICE int64_t first_field() const { return memory.unit.field; }
  DIFNET_DEVICE int64_t tile_of_all() const { return int64_t(image()) * c.row_tiles + row_tile(); }
  DIFNET_DEVICE bool of_psi() const { return c.grad_psi[t()].data != nullptr || c.grad_bias[t()] != nullptr; }
  DIFNET_DEVICE bool hands_on() const { return t() > 0 || c.first_hands_on != 0; }
  DIFNET_DEVICE const float* tile_of(int tile) const { return c.tile + (first_field() / kRows + tile) * kTileNumbers; }
};

}  // namespace difnet::cuda
