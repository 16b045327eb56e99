// What a launch of the backward is asked: as arguments.h for the forward. Walks are numbered as in the forward and
// come last first.
#pragma once

#include "cuda/arguments.h"

namespace difnet::cuda {

constexpr int kMaxWalksBackward = 20;  // of one launch, whose arguments have room for them

// Nodes of a column tile: two stages of ψ, y and two h, so that two blocks fit in 100 KiB.
constexpr int32_t backward_tile(const Instance& with) {
  if (with.products == 1) return with.embed == 64 && with.width == 24 ? 64 : with.embed + with.width == 192 ? 16 : 32;
  return with.embed == 64 && with.width == 24 ? 32 : 16;
}

// Of a row tile, in floats: what turns the units of h into those of the loss, class by class (over 2¹³); the least and
// the largest level; the exponent of h.
constexpr int32_t tile_numbers(int32_t width) { return width + 4; }
// Of a part of a row tile, four floats for every thread: ∂ψ, ∂y and the sums of rows.
constexpr int32_t part_fours(const Instance& with) { return with.embed / 8 + with.width / 8 + 2; }

struct CascadeBackward {
  static constexpr bool kBackward = true;
  int32_t images, nodes, classes, groups;
  int32_t row_tiles, column_tiles;  // of one image
  Split split;
  Units units;
  int32_t walks, first_walk, all_walks;       // of this launch, before it, of the cascade
  int32_t centred;                            // as in the forward
  int32_t has_state;                          // else the gradient of y⁰ is added to that of the seed (W5)
  int32_t first_hands_on;                     // whether somebody wants ∂L/∂y before the first walk of this launch
  BatchField state, seed;                     // y⁰, s
  BatchField grad_state, grad_seed;           // without data where they are not wanted
  const float *mu, *beta, *walked, *row_lse;  // of all walks; what the forward kept
  float *grad_mu, *grad_beta;                 // of all walks, or null

  // workspace; n_pad = row_tiles · kRows nodes per image; [2]: that of walk t is t & 1
  uint16_t *psi_hi, *psi_lo;          // [walks, B, n_pad, embed]
  float *bias, *sigma, *back_to_psi;  // [walks, B, n_pad]; [walks, B, row_tiles] twice
  float* centre;                      // [walks, B, embed]
  uint16_t *y_hi, *y_lo;              // [2, B, n_pad, width], yᵗ in units of its class, and ones
  uint16_t *h_hi, *h_lo;              // [2, B, n_pad, width], h to meet y, and γ − δ
  uint16_t *class_h_hi, *class_h_lo;  // [2, B, n_pad, width], h in units of its class and row tile
  float *lse, *drop;                  // [2, B, n_pad]
  float* tile;                        // [2, B, row_tiles, tile_numbers]
  float *g, *seed_sum;                // [B, n_pad, width], ∂L/∂yᵗ⁺¹ and Σ ∂L/∂s so far
  float* gates;                       // [all_walks, B, row_tiles, 2]: parts of ∂μ, ∂β
  float* scale;                       // [B, width], 2^-e of every class
  float* class_reach;                 // [B, groups, width]
  float* psi_statistics;              // [walks, B, groups, 3, embed]: sum, least, largest
  float* part;                        // [B, row_tiles, parts (one where a unit has all), part_fours, kThreads, 4]
  uint32_t* counters;                 // zero before a launch and after it

  // of the walks of this launch
  BatchField psi[kMaxWalksBackward];
  BatchField grad_psi[kMaxWalksBackward];       // without data where it is not wanted
  BatchField grad_step[kMaxWalksBackward];      // what the caller gives for yᵗ⁺¹; without data where nothing
  const float* column_bias[kMaxWalksBackward];  // [B, N], the caller's b (W1b), or null
  const float* grad_lse[kMaxWalksBackward];     // [B, N], γ, or null
  float* grad_bias[kMaxWalksBackward];          // [B, N], or null
};
static_assert(sizeof(CascadeBackward) <= 4096, "a kernel takes 4 KiB of arguments");

// The sections of the workspace, by work.take(pointer, count). Those that later launches of the same cascade need come
// first.
template <typename Work>
void take_sections(CascadeBackward& c, const Instance& with, Work& work) {
  const int64_t tiles = int64_t(c.images) * c.row_tiles, nodes = tiles * kRows, walks = c.walks;
  const int64_t halves = with.products == 3, parts = c.split.parts == 1 ? 0 : c.split.all_parts ? 1 : c.split.parts;
  work.take(c.g, nodes * with.width);
  work.take(c.seed_sum, nodes * with.width);
  work.take(c.gates, c.all_walks * tiles * 2);
  work.take(c.scale, int64_t(c.images) * with.width);
  work.take(c.class_reach, int64_t(c.images) * c.groups * with.width);
  work.take(c.y_hi, 2 * nodes * with.width);
  work.take(c.y_lo, 2 * nodes * with.width * halves);
  work.take(c.h_hi, 2 * nodes * with.width);
  work.take(c.h_lo, 2 * nodes * with.width * halves);
  work.take(c.class_h_hi, 2 * nodes * with.width);
  work.take(c.class_h_lo, 2 * nodes * with.width * halves);
  work.take(c.lse, 2 * nodes);
  work.take(c.drop, 2 * nodes);
  work.take(c.tile, 2 * tiles * tile_numbers(with.width));
  work.take(c.part, tiles * parts * part_fours(with) * kThreads * 4);
  work.take(c.psi_hi, walks * nodes * with.embed);
  work.take(c.psi_lo, walks * nodes * with.embed * halves);
  work.take(c.bias, walks * nodes);
  work.take(c.sigma, walks * tiles);
  work.take(c.back_to_psi, walks * tiles);
  work.take(c.centre, walks * c.images * with.embed);
  work.take(c.psi_statistics, walks * c.images * c.groups * 3 * with.embed);
}

}  // namespace difnet::cuda
