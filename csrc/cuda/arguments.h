// What a launch is asked: plain data, the same for the host, the card and the tests; and where its workspace lies.
#pragma once

#include <cstdint>

#include "cuda/split.h"
#include "field.h"

namespace difnet::cuda {

constexpr int kThreads = 128;  // of a block: four warps of 16 rows
constexpr int kRows = 64;      // nodes of a row tile
constexpr int kGroups = 16;    // of nodes, whose means have the centre of ψ as their median
constexpr int kMaxWalks = 48;  // of one launch, whose arguments have room for them; more are several launches

// A field (B, C, N) of any dtype and strides (in elements), with all its images; fp64 never comes here.
struct BatchField {
  void* data;
  int64_t batch_stride, channel_stride, node_stride;
  int32_t channels;
  DType dtype;
};

// Which of the compiled kernels: fp16 products per product, padded D, padded K with the column of ones.
struct Instance {
  int32_t products, embed, width;
  constexpr int32_t tile() const { return embed == 64 && width == 24 ? 64 : 32; }  // nodes of a column tile
  // Whether a block has registers for the sums of two parts at a time.
  constexpr bool in_registers() const { return width == 24; }
};
// The same as a type, for the kernels.
template <int kProducts, int kEmbed, int kWidth>
struct Kind {
  static constexpr Instance kInstance{kProducts, kEmbed, kWidth};
  static constexpr bool kInRegisters = kInstance.in_registers();
};

// Units of work of one launch, kind by kind.
struct Units {
  int32_t reach, statistics, states, psi, walks;
};

// kMost: walks of a launch.
template <int kMost>
struct CascadeOf {
  static constexpr bool kBackward = false, kProjected = false;
  int32_t images, nodes, classes, groups;
  int32_t row_tiles, column_tiles;  // of one image
  Split split;
  Units units;
  int32_t walks, first_walk, all_walks;  // of this launch, before it, of the cascade
  int32_t wants_lse;
  int32_t centred;          // 16-bit ψ too is centred, because it is split in halves
  BatchField state, seed;   // y⁰, s
  BatchField states;        // strides and dtype of every step; where each lies is in `steps`
  const float *mu, *beta;   // of all walks
  float *walked, *row_lse;  // [T, B, N, K], [T, B, N] for a backward, or null

  // workspace; n_pad = row_tiles · kRows nodes per image, two y: that of walk t is t & 1
  uint16_t *psi_hi, *psi_lo;  // [walks, B, n_pad, embed]
  float *bias, *floor;        // [walks, B, n_pad]
  float* row_term;            // [walks, B, n_pad], of the logits in natural units; only where lse is wanted
  float* sigma;               // [walks, B, row_tiles], the same for all row tiles of an image
  uint16_t *y_hi, *y_lo;      // [2, B, n_pad, width]
  float* y;                   // [B, n_pad, width], the fp32 state
  float* scale;               // [B, width], 2^-e of every class
  float* class_reach;         // [B, groups, width]
  float* psi_statistics;      // [walks, B, groups, 3, embed]: sum, least, largest
  float* part;                // [B, row_tiles, parts, width / 8, kThreads, 4]
  float* part_peak;           // [B, row_tiles, parts, kThreads, 2]
  uint32_t* counters;         // zero before a launch and after it

  // of the walks of this launch
  BatchField psi[kMost];
  const float* column_bias[kMost];  // [B, N], the caller's b (W1b), or null
  float* lse[kMost];                // [B, N], for the caller, or null
  void* steps[kMost];               // yᵗ after the walk, or null where nobody wants it
};
using Cascade = CascadeOf<kMaxWalks>;
static_assert(sizeof(Cascade) <= 4096, "a kernel takes 4 KiB of arguments");

// ---- the host's part ------------------------------------------------------------------------------------------------
// False where they are too many to be numbered.
// begins: the first launch of a cascade, which looks for the largest scores.
inline bool count_units(auto& c, bool begins) {
  const int64_t tiles = int64_t(c.images) * c.row_tiles, groups = int64_t(c.images) * c.groups;
  const int64_t walks = c.walks * tiles * (c.split.all_parts ? 1 : c.split.parts);
  if (groups * (1 + c.walks) + tiles * (1 + c.walks) + walks >= int64_t(1) << 31) return false;
  c.units = {begins ? int32_t(groups) : 0, int32_t(c.walks * groups), int32_t(tiles), int32_t(c.walks * tiles),
             int32_t(walks)};
  return true;
}
inline int64_t all_units(const auto& c) {
  return int64_t(c.units.reach) + c.units.statistics + c.units.states + c.units.psi + c.units.walks;
}

// finished blocks; groups of class_reach [B]; groups of psi_statistics [walks, B]; parts of a row tile [B, row_tiles];
// what a walk reads of a row tile [walks, B, row_tiles]
inline int64_t counters(const auto& c) {
  return 1 + int64_t(c.images) * (1 + c.walks) + int64_t(c.images) * c.row_tiles * (1 + c.walks);
}

inline Instance instance(bool three_products, int32_t widest, int32_t classes) {
  return {three_products ? 3 : 1, widest <= 64 ? 64 : 128, classes + 1 <= 24 ? 24 : 64};
}

// The cut of a cascade of c.images, c.nodes on a card; forced parts are for the tests, 0 leaves them to the plan.
// in_registers: whether a block can add the parts of a row tile in turn.
inline void cut(auto& c, int32_t tile, bool in_registers, int32_t processors, int32_t forced_parts,
                int32_t forced_all_parts) {
  c.row_tiles = (c.nodes + kRows - 1) / kRows;
  c.column_tiles = (c.nodes + tile - 1) / tile;
  c.groups = std::min(c.nodes, kGroups);
  c.split = split_columns(c.images, c.row_tiles, c.column_tiles, processors, in_registers);
  if (forced_parts > 0) {
    const int32_t part_tiles = (c.column_tiles + forced_parts - 1) / forced_parts;
    c.split = {(c.column_tiles + part_tiles - 1) / part_tiles, part_tiles, forced_all_parts && in_registers};
  }
  c.split.all_parts |= c.split.parts == 1;
}

// The sections of the workspace, by work.take(pointer, count). Those that later launches of the same cascade need come
// first, so that every launch finds them in the same place.
template <int kMost, typename Work>
void take_sections(CascadeOf<kMost>& c, const Instance& with, Work& work) {
  const int64_t nodes = int64_t(c.images) * c.row_tiles * kRows, walks = c.walks, halves = with.products == 3;
  const int64_t parts = c.split.all_parts ? 0 : int64_t(c.images) * c.row_tiles * c.split.parts;
  work.take(c.y_hi, 2 * nodes * with.width);
  work.take(c.y_lo, 2 * nodes * with.width * halves);
  work.take(c.y, nodes * with.width);
  work.take(c.scale, int64_t(c.images) * with.width);
  work.take(c.class_reach, int64_t(c.images) * c.groups * with.width);
  work.take(c.part, parts * with.width / 8 * kThreads * 4);
  work.take(c.part_peak, parts * kThreads * 2);
  work.take(c.psi_hi, walks * nodes * with.embed);
  work.take(c.psi_lo, walks * nodes * with.embed * halves);
  work.take(c.bias, walks * nodes);
  work.take(c.floor, walks * nodes);
  work.take(c.row_term, c.wants_lse ? walks * nodes : 0);
  work.take(c.sigma, walks * nodes / kRows);
  work.take(c.psi_statistics, walks * c.images * c.groups * 3 * with.embed);
}

}  // namespace difnet::cuda
