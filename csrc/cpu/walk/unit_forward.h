// W1-W4 on tiles (forward_tile.h) with the products on a matrix unit. The logits of a block of nodes are multiplied
// while the vector instructions weigh the block before.
#pragma once

#include "cpu/walk/forward_tile.h"
#include "cpu/walk/unit.h"

namespace difnet::cpu::DIFNET_ISA {

// Of a tile, behind WalkForward::unit; y has a channel of ones behind its classes.
struct ForwardOperands {
  uint32_t* plain;
  Packed psi;   // [node][sum over channels]
  Packed y;     // [class][sum over nodes]
  float* sums;  // [class][node]: what columns have got

  static DIFNET_MEMBER int64_t classes(const WalkSizes& size) { return blocks(size.classes + 1); }
  static DIFNET_MEMBER int64_t places(const Scheme& scheme, const WalkSizes& size) {
    return kPlain + packed_places(parts_of_a(scheme.S), kBlocks, blocks(size.embed)) +
           packed_places(parts_of_b(scheme.walked), classes(size), kBlocks) + classes(size) * kBlock * kTile;
  }
  DIFNET_MEMBER ForwardOperands(const Scheme& scheme, const WalkForward<float>& walk, int64_t tile) {
    uint32_t* at = reinterpret_cast<uint32_t*>(walk.unit) + tile * places(scheme, walk.size);
    plain = at;
    at += kPlain;
    psi = packed_at(at, parts_of_a(scheme.S), kBlocks, blocks(walk.size.embed));
    y = packed_at(at, parts_of_b(scheme.walked), classes(walk.size), kBlocks);
    sums = reinterpret_cast<float*>(at);
  }
};

// Of a worker, behind WalkForwardScratch::unit.
struct ForwardMemory {
  float* S;                     // [node i][node j]
  WeightOperand rows, columns;  // exp(S_ij - shift_i), exp(S_ij - shift_j)
  float *to_rows, *to_columns;  // [node i][class], [class][node j]

  static DIFNET_MEMBER int64_t places(const Scheme& scheme, const WalkSizes& size) {
    return kTile * kTile + 2 * parts_of_a(scheme.walked) * WeightOperand::kPart + 3 * kApart +
           2 * ForwardOperands::classes(size) * kBlock * kTile;
  }
  DIFNET_MEMBER ForwardMemory(const Scheme& scheme, const WalkSizes& size, float* memory) {
    S = memory;
    const int64_t weights = parts_of_a(scheme.walked) * WeightOperand::kPart;
    rows.at = reinterpret_cast<uint32_t*>(S + kTile * kTile + kApart);
    columns.at = rows.at + weights + kApart;
    to_rows = reinterpret_cast<float*>(columns.at + weights + kApart);
    to_columns = to_rows + ForwardOperands::classes(size) * kBlock * kTile;
  }
};

// The weights of a block as operands, while `products` run; false if it gets none.
template <bool Biased, int Parts>
DIFNET_INLINE bool weigh_block(const Rows<float>& rows_a, const Rows<float>& rows_b, const BlockOf& block,
                               bool may_skip, const ForwardMemory& memory, BlockProducts& products,
                               Vec<float>& highest) {
  const float* S = memory.S + block.i * kTile + block.j;
  const Vec<float> most = largest_exponent<Biased>(rows_a, rows_b, block, S, kTile);
  const float largest = largest_lane(most);
  if (may_skip && !(largest > -kNegligible<float> * kLn2<float>)) return false;
  highest = larger(highest, most);
  if (largest > kSlack<float>) return false;  // shifts will be raised first: such weights may be no numbers
  const int64_t each = (products.steps() + kSide - 1) / kSide;
  for (int r = 0; r < kSide; ++r) {
    for (int j = 0; j < kSide; j += kWidth<float>) {
      const Weights weights = weights_of<Biased>(rows_a, rows_b, block, r, j, S, kTile);
      memory.rows.template store_rows<Parts>(block, r, j, weights.of_i);
      memory.columns.template store_columns<Parts>(block, r, j, weights.of_j);
    }
    products.run(each);
  }
  return true;
}

// The logits of tiles a and b, unless they are `known`, and their weights; the largest exponent met.
template <bool Biased, int Parts>
DIFNET_INLINE float weigh_on_unit(const Scheme& scheme, const WalkForward<float>& walk, int64_t a, int64_t b,
                                  const Rows<float>& rows_a, const Rows<float>& rows_b, const ForwardMemory& memory,
                                  bool known, WeightBlocks& there) {
  const Packed psi_a = ForwardOperands(scheme, walk, a).psi, psi_b = ForwardOperands(scheme, walk, b).psi;
  BlockOf wanted[kBlocks * kBlocks];
  int count = 0;
  for (int i = 0; i < tile_nodes(walk.size.nodes, a); i += kBlock)
    for (int j = 0; j < tile_nodes(walk.size.nodes, b); j += kBlock) wanted[count++] = {a, b, i, j};
  BlockProducts products;
  const auto multiply = [&](const BlockOf& block) __attribute__((always_inline)) {
    products.add({side_a(psi_a, block.i / kBlock), side_b(psi_b, block.j / kBlock), &scheme.S, psi_a.depth, 0,
                  memory.S + block.i * kTile + block.j, kTile});
  };
  const bool may_skip = walk.finite[a] && walk.finite[b];
  there = {};
  Vec<float> highest = broadcast<Vec<float>>(-__builtin_inff());
  if (!known) multiply(wanted[0]);
  for (int x = 0; x < count; ++x) {
    products.run();
    if (!known && x + 1 < count) multiply(wanted[x + 1]);
    if (Biased && !known)
      add_rests(*rows_a.bias, *rows_b.bias, wanted[x], memory.S + wanted[x].i * kTile + wanted[x].j, kTile);
    if (weigh_block<Biased, Parts>(rows_a, rows_b, wanted[x], may_skip, memory, products, highest))
      there.set(wanted[x]);
  }
  return largest_lane(highest);
}

// The rare case (raise_shifts of forward_tile.h), from logits that are known.
template <bool Biased>
__attribute__((noinline)) void raise_shifts_on_unit(const WalkForward<float>& walk, int64_t a, int64_t b,
                                                    const float* S, Shifts<float>& rows_a, Shifts<float>& rows_b) {
  using V = Vec<float>;
  constexpr int W = kWidth<float>;
  const TileBias<float>*bias_a = walk.tile_bias + a, *bias_b = walk.tile_bias + b;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  V columns[kTile / W];
  for (V& column : columns) column = broadcast<V>(-__builtin_inff());
  for (int i = 0; i < nodes_a; ++i) {
    float most = -__builtin_inff();
    for (int j = 0; j < nodes_b; ++j) {
      const float of_i = S[i * kTile + j] + (Biased ? bias_b->whole[j] : 0);
      const float of_j = S[i * kTile + j] + (Biased ? bias_a->whole[i] : 0);
      most = of_i > most ? of_i : most;
      if (of_j > columns[j / W][j % W]) columns[j / W][j % W] = of_j;
    }
    raise_shift(rows_a, i, most, Biased ? bias_a->integer[i] : 0);
  }
  for (int j = 0; j < nodes_b; ++j) raise_shift(rows_b, j, columns[j / W][j % W], Biased ? bias_b->integer[j] : 0);
}

template <bool Biased, int Parts>
void multiply_on_unit(const Scheme& scheme, const WalkForward<float>& walk, int64_t a, int64_t b,
                      WalkForwardScratch<float>& scratch) {
  const ForwardMemory memory(scheme, walk.size, scratch.unit);
  Shifts<float>&shifts_a = scratch.rows[0], &shifts_b = scratch.rows[a == b ? 0 : 1];
  shifts_a = walk.shifts[a];
  shifts_b = walk.shifts[b];
  const Rows<float> rows_a = {shifts_a, walk.tile_bias + a, 0}, rows_b = {shifts_b, walk.tile_bias + b, 0};
  WeightBlocks there;
  scratch.raised = false;
  while (weigh_on_unit<Biased, Parts>(scheme, walk, a, b, rows_a, rows_b, memory, scratch.raised, there) >
             kSlack<float> &&
         !scratch.raised) {
    raise_shifts_on_unit<Biased>(walk, a, b, memory.S, shifts_a, shifts_b);
    scratch.raised = true;
  }
  const int64_t classes = ForwardOperands::classes(walk.size);
  scratch.written[0] = there.written(true);
  sum_rows(memory.rows, there, ForwardOperands(scheme, walk, b).y, classes, scheme.walked, memory.to_rows);
  if (a == b) return;
  scratch.written[1] = there.written(false);
  sum_columns(memory.columns, there, ForwardOperands(scheme, walk, a).y, classes, scheme.walked_turned,
              memory.to_columns);
}

template <const Scheme& scheme>
void walk_unit_forward_multiply(const WalkForward<float>& walk, int64_t a, int64_t b,
                                WalkForwardScratch<float>& scratch) {
  scratch.on_unit = *ForwardOperands(scheme, walk, a).plain != 0 && *ForwardOperands(scheme, walk, b).plain != 0 &&
                    !far_apart<1>(walk, a, b);
  // tiles that are far apart (far.h) are passed over there
  if (!scratch.on_unit || far_apart<1>(walk, a, b)) {
    scratch.on_unit = false;
    return walk_forward_multiply<float, float>(walk, a, b, scratch);
  }
  constexpr int parts = parts_of_a(scheme.walked);
  biased(walk, a, b) ? multiply_on_unit<true, parts>(scheme, walk, a, b, scratch)
                     : multiply_on_unit<false, parts>(scheme, walk, a, b, scratch);
}

template <const Scheme& scheme>
void walk_unit_forward_commit(const WalkForward<float>& walk, int64_t a, int64_t b,
                              WalkForwardScratch<float>& scratch) {
  const int64_t columns = walk.size.classes + 1;
  for (int side = 0; side < (a == b ? 1 : 2) && scratch.raised; ++side)
    turn_columns(ForwardOperands(scheme, walk, side == 0 ? a : b).sums, columns,
                 walk.sums + (side == 0 ? a : b) * kTile * walk.size.state_stored);
  if (!scratch.on_unit) return walk_forward_commit<float, float>(walk, a, b, scratch);
  const ForwardMemory memory(scheme, walk.size, scratch.unit);
  for (int side = 0; side < (a == b ? 1 : 2); ++side) {
    const int64_t tile = side == 0 ? a : b;
    if (scratch.raised) commit_shifts(walk, tile, scratch.rows[side]);
    if (side == 0)
      add_rows_to_panels(memory.to_rows, scratch.written[0], ForwardOperands::classes(walk.size) * kBlock, columns,
                         walk.sums + tile * kTile * walk.size.state_stored);
    else
      add_columns(memory.to_columns, scratch.written[1], columns, ForwardOperands(scheme, walk, tile).sums);
  }
}

template <const Scheme& scheme>
void walk_unit_forward_prologue(const WalkForward<float>& walk, int64_t tile) {
  walk_forward_prologue<float, float>(walk, tile);
  const ForwardOperands to(scheme, walk, tile);
  const int64_t D = walk.size.embed, stored = walk.size.state_stored;
  const int64_t classes = ForwardOperands::classes(walk.size);
  const float *psi = walk.psi_node_panels + tile * kTile * D, *y = walk.state_channel_panels + tile * kTile * stored;
  for (int64_t x = 0; x < classes * kBlock * kTile; ++x) to.sums[x] = 0;
  *to.plain = walk.in_range[tile] &&
              in_range_of_parts(stored, [&](int n, int64_t c) { return read_channel_panels(y, stored, c, n); });
  if (*to.plain == 0) return;
  pack<parts_of_a(scheme.S)>(to.psi, kBlocks, [&](int64_t c, int64_t n) { return read_node_panels(psi, D, c, n); });
  pack<parts_of_b(scheme.walked)>(to.y, classes,
                                  [&](int64_t n, int64_t c) { return read_channel_panels(y, stored, c, n); });
}

template <const Scheme& scheme>
void walk_unit_forward_epilogue(const WalkForward<float>& walk, int64_t tile) {
  turn_columns(ForwardOperands(scheme, walk, tile).sums, walk.size.classes + 1,
               walk.sums + tile * kTile * walk.size.state_stored);
  walk_forward_epilogue<float, float>(walk, tile);
}

}  // namespace difnet::cpu::DIFNET_ISA
