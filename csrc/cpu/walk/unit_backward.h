// B1-B8 on tiles (backward_tile.h) with the products on a matrix unit. S, h_i y_j and y_i h_j of a block of nodes are
// multiplied while the vector instructions make P and T of the block before.
#pragma once

#include "cpu/walk/backward_tile.h"
#include "cpu/walk/unit.h"

namespace difnet::cpu::DIFNET_ISA {

// Of a tile, behind WalkBackward::unit. psi over nodes and its sums only where the gradient of psi is wanted.
struct BackwardOperands {
  uint32_t* plain;
  Packed psi, y, h;               // [node][sum over channels, or classes]
  Packed psi_by_node, h_by_node;  // [channel, or class][sum over nodes]
  float *psi_sums, *state_sums;   // [channel, or class][node]: what columns have got

  static DIFNET_MEMBER int64_t places(const Scheme& scheme, const WalkSizes& size, bool with_psi) {
    const int64_t K = blocks(size.classes), D = blocks(size.embed);
    const int64_t of_psi = packed_places(parts_of_b(scheme.psi), D, kBlocks) + D * kBlock * kTile;
    return kPlain + packed_places(parts_of_a(scheme.S), kBlocks, D) +
           2 * packed_places(parts_of_a(scheme.hy), kBlocks, K) + packed_places(parts_of_b(scheme.state), K, kBlocks) +
           K * kBlock * kTile + (with_psi ? of_psi : 0);
  }
  DIFNET_MEMBER BackwardOperands(const Scheme& scheme, const WalkBackward<float>& walk, int64_t tile) {
    const bool with_psi = wants_psi(walk);
    const int64_t K = blocks(walk.size.classes), D = blocks(walk.size.embed);
    uint32_t* at = reinterpret_cast<uint32_t*>(walk.unit) + tile * places(scheme, walk.size, with_psi);
    plain = at;
    at += kPlain;
    psi = packed_at(at, parts_of_a(scheme.S), kBlocks, D);
    y = packed_at(at, parts_of_a(scheme.hy), kBlocks, K);
    h = packed_at(at, parts_of_a(scheme.hy), kBlocks, K);
    h_by_node = packed_at(at, parts_of_b(scheme.state), K, kBlocks);
    state_sums = reinterpret_cast<float*>(at);
    at += K * kBlock * kTile;
    psi_by_node = {};
    psi_sums = nullptr;
    if (!with_psi) return;
    psi_by_node = packed_at(at, parts_of_b(scheme.psi), D, kBlocks);
    psi_sums = reinterpret_cast<float*>(at);
  }
};

// Products of a block of nodes, [node i][node j].
struct BlockOfProducts {
  static constexpr int kSize = kBlock * kBlock;
  float S[kSize], hy[kSize], yh[kSize];
};

// Of a worker, behind WalkBackwardScratch::unit.
struct BackwardMemory {
  BlockOfProducts* products;           // two: one is made while the other is read
  WeightOperand P_ji, T_rows;          // rows i
  WeightOperand P_ij, T_columns;       // columns j
  float *psi_rows, *state_rows;        // [node i][channel, or class]
  float *psi_columns, *state_columns;  // [channel, or class][node j]

  static DIFNET_MEMBER int64_t places(const Scheme& scheme, const WalkSizes& size) {
    return 2 * int64_t(sizeof(BlockOfProducts) / sizeof(float)) + 4 * kApart +
           2 * (parts_of_a(scheme.state) + parts_of_a(scheme.psi)) * WeightOperand::kPart +
           2 * (blocks(size.classes) + blocks(size.embed)) * kBlock * kTile;
  }
  DIFNET_MEMBER BackwardMemory(const Scheme& scheme, const WalkSizes& size, float* memory) {
    products = reinterpret_cast<BlockOfProducts*>(memory);
    const int64_t P = parts_of_a(scheme.state) * WeightOperand::kPart,
                  T = parts_of_a(scheme.psi) * WeightOperand::kPart;
    P_ji.at = reinterpret_cast<uint32_t*>(products + 2) + kApart;
    T_rows.at = P_ji.at + P + kApart;
    P_ij.at = T_rows.at + T + kApart;
    T_columns.at = P_ij.at + P + kApart;
    const int64_t D = blocks(size.embed) * kBlock * kTile, K = blocks(size.classes) * kBlock * kTile;
    psi_rows = reinterpret_cast<float*>(T_columns.at + T);
    psi_columns = psi_rows + D;
    state_rows = psi_columns + D;
    state_columns = state_rows + K;
  }
};

// What a block of T adds to the sums over a row and over a column (drawn in backward_tile.h).
struct TermSums {
  float *off_diagonal[2], *row_sums[2];  // of tile a, of tile b; row_sums are null where they are not wanted
};

// (B4, B4b) T of rows r and r + 16 of a block, [row of the pair][half of the columns], from its weights. The diagonal is
// left out where `diagonal` says that the block is its own counterpart, and nodes j from `nodes` on do not exist.
DIFNET_INLINE void terms_of(const WalkBackward<float>& walk, const BlockOf& block, int r, int j, bool diagonal,
                            int nodes, const BlockOfProducts& products, const Weights& P, const TermSums& sums,
                            Vec<float> (&T)[2][2], Vec<float> (&of_rows)[2], Vec<float> (&T_of_rows)[2]) {
  using V = Vec<float>;
  constexpr int W = kWidth<float>;
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const int column = block.j + h * kSide + j;
    const V delta_j = load<V>(walk.delta + block.b * kTile + column);
    V of_column = {}, T_of_column = {};
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      const int at = (g * kSide + r) * kBlock + h * kSide + j;
      const V delta_i = broadcast<V>(walk.delta[block.a * kTile + block.i + g * kSide + r]);
      V row = P.of_i[g][h] * (load<V>(products.hy + at) - delta_i);
      V of_j = P.of_j[g][h] * (load<V>(products.yh + at) - delta_j);
      if (diagonal && g == h && r - r % W == j) row[r % W] = of_j[r % W] = 0;
      T[g][h] = row + of_j;
      if (nodes < kTile)  // padding looks nowhere, but its logits are 0, not -inf
        for (int lane = 0; lane < W; ++lane)
          if (column + lane >= nodes) row[lane] = 0;
      of_rows[g] += row;
      of_column += of_j;
      T_of_rows[g] += T[g][h];
      T_of_column += T[g][h];
    }
    if (block.a == block.b) continue;
    store(sums.off_diagonal[1] + column, load<V>(sums.off_diagonal[1] + column) + of_column);
    if (sums.row_sums[1] != nullptr) store(sums.row_sums[1] + column, load<V>(sums.row_sums[1] + column) + T_of_column);
  }
}

// (B3, B4) P and T of a block as operands, while `next` runs; false if its weights are all negligible.
template <bool Biased, int PartsP, int PartsT>
DIFNET_INLINE bool differentiate_block(const WalkBackward<float>& walk, const Rows<float>& rows_a,
                                       const Rows<float>& rows_b, const BlockOf& block, const BlockOfProducts& products,
                                       const BackwardMemory& memory, const TermSums& sums, BlockProducts& next) {
  const Vec<float> most = largest_exponent<Biased>(rows_a, rows_b, block, products.S, kBlock);
  const bool may_skip = walk.finite[block.a] && walk.finite[block.b];
  if (may_skip && !(largest_lane(most) > -kNegligible<float> * kLn2<float>)) return false;
  const bool diagonal = block.a == block.b && block.i == block.j;
  const int nodes = tile_nodes(walk.size.nodes, block.b);
  const int64_t each = (next.steps() + kSide - 1) / kSide;
  for (int r = 0; r < kSide; ++r) {
    Vec<float> of_rows[2] = {}, T_of_rows[2] = {};
    for (int j = 0; j < kSide; j += kWidth<float>) {
      const Weights P = weights_of<Biased>(rows_a, rows_b, block, r, j, products.S, kBlock);  // (B3)
      memory.P_ji.template store_rows<PartsP>(block, r, j, P.of_j);
      memory.P_ij.template store_columns<PartsP>(block, r, j, P.of_i);
      if (!wants_T(walk)) continue;
      Vec<float> T[2][2];
      terms_of(walk, block, r, j, diagonal, nodes, products, P, sums, T, of_rows, T_of_rows);
      if (!wants_psi(walk)) continue;
      memory.T_rows.template store_rows<PartsT>(block, r, j, T);
      memory.T_columns.template store_columns<PartsT>(block, r, j, T);
    }
    for (int g = 0; g < 2 && wants_T(walk); ++g) {
      const int i = block.i + g * kSide + r;
      sums.off_diagonal[0][i] += sum_lanes(of_rows[g]);
      if (sums.row_sums[0] != nullptr) sums.row_sums[0][i] += sum_lanes(T_of_rows[g]);
    }
    next.run(each);
  }
  return true;
}

template <bool Biased, int PartsP, int PartsT>
void multiply_on_unit(const Scheme& scheme, const WalkBackward<float>& walk, int64_t a, int64_t b,
                      WalkBackwardScratch<float>& scratch) {
  const BackwardMemory memory(scheme, walk.size, scratch.unit);
  const BackwardOperands of_a(scheme, walk, a), of_b(scheme, walk, b);
  const Rows<float> rows_a = {walk.shifts[a], walk.tile_bias + a, 0}, rows_b = {walk.shifts[b], walk.tile_bias + b, 0};
  const bool of_bias = walk.grad_bias != nullptr;
  const TermSums sums = {{scratch.off_diagonal[0], scratch.off_diagonal[1]},
                         {of_bias ? scratch.row_sums[0] : nullptr, of_bias ? scratch.row_sums[1] : nullptr}};
  BlockOf wanted[kBlocks * kBlocks];
  int count = 0;
  for (int i = 0; i < tile_nodes(walk.size.nodes, a); i += kBlock)
    for (int j = 0; j < tile_nodes(walk.size.nodes, b); j += kBlock) wanted[count++] = {a, b, i, j};
  BlockProducts next;
  const auto multiply = [&](int x) __attribute__((always_inline)) {
    const int64_t i = wanted[x].i / kBlock, j = wanted[x].j / kBlock;
    BlockOfProducts& to = memory.products[x % 2];
    next.add({side_a(of_a.psi, i), side_b(of_b.psi, j), &scheme.S, of_a.psi.depth, 0, to.S, kBlock});
    if (!wants_T(walk)) return;
    next.add({side_a(of_a.h, i), side_b(of_b.y, j), &scheme.hy, of_a.h.depth, 0, to.hy, kBlock});
    next.add({side_a(of_a.y, i), side_b(of_b.h, j), &scheme.hy, of_a.h.depth, 0, to.yh, kBlock});
  };
  WeightBlocks there;
  multiply(0);
  for (int x = 0; x < count; ++x) {
    next.run();
    if (x + 1 < count) multiply(x + 1);
    BlockOfProducts& products = memory.products[x % 2];
    if (Biased) add_rests(*rows_a.bias, *rows_b.bias, wanted[x], products.S, kBlock);
    if (differentiate_block<Biased, PartsP, PartsT>(walk, rows_a, rows_b, wanted[x], products, memory, sums, next))
      there.set(wanted[x]);
  }
  const int64_t K = blocks(walk.size.classes), D = blocks(walk.size.embed);
  scratch.written[0] = there.written(true);
  if (wants_psi(walk)) sum_rows(memory.T_rows, there, of_b.psi_by_node, D, scheme.psi, memory.psi_rows);  // (B5)
  sum_rows(memory.P_ji, there, of_b.h_by_node, K, scheme.state, memory.state_rows);                       // (B6)
  if (a == b) return;
  scratch.written[1] = there.written(false);
  if (wants_psi(walk))
    sum_columns(memory.T_columns, there, of_a.psi_by_node, D, scheme.psi_turned, memory.psi_columns);  // (B5)
  sum_columns(memory.P_ij, there, of_a.h_by_node, K, scheme.state_turned, memory.state_columns);       // (B6)
}

template <const Scheme& scheme>
void walk_unit_backward_multiply(const WalkBackward<float>& walk, int64_t a, int64_t b,
                                 WalkBackwardScratch<float>& scratch) {
  scratch.on_unit = *BackwardOperands(scheme, walk, a).plain != 0 && *BackwardOperands(scheme, walk, b).plain != 0 &&
                    !far_apart<1>(walk, a, b);
  if (!scratch.on_unit || far_apart<1>(walk, a, b)) {
    scratch.on_unit = false;
    return walk_backward_multiply<float, float>(walk, a, b, scratch);
  }
  start_terms(walk, a, b, scratch);
  constexpr int P = parts_of_a(scheme.state), T = parts_of_a(scheme.psi);
  biased(walk, a, b) ? multiply_on_unit<true, P, T>(scheme, walk, a, b, scratch)
                     : multiply_on_unit<false, P, T>(scheme, walk, a, b, scratch);
}

template <const Scheme& scheme>
void walk_unit_backward_commit(const WalkBackward<float>& walk, int64_t a, int64_t b,
                               WalkBackwardScratch<float>& scratch) {
  if (!scratch.on_unit) return walk_backward_commit<float, float>(walk, a, b, scratch);
  const BackwardMemory memory(scheme, walk.size, scratch.unit);
  const int64_t K = walk.size.classes, D = walk.size.embed;
  for (int side = 0; side < (a == b ? 1 : 2); ++side) {
    const int64_t tile = side == 0 ? a : b;
    const uint64_t written = scratch.written[side];
    if (written == 0) continue;
    const BackwardOperands to(scheme, walk, tile);
    if (side == 0) {
      if (wants_psi(walk))
        add_rows_to_panels(memory.psi_rows, written, blocks(D) * kBlock, D,
                           walk.psi_sums + tile * kTile * walk.size.embed_stored);
      add_rows_to_panels(memory.state_rows, written, blocks(K) * kBlock, K,
                         walk.state_sums + tile * kTile * walk.size.state_stored);
    } else {
      if (wants_psi(walk)) add_columns(memory.psi_columns, written, D, to.psi_sums);
      add_columns(memory.state_columns, written, K, to.state_sums);
    }
    commit_terms(walk, tile, side, scratch);
  }
}

template <const Scheme& scheme>
void walk_unit_backward_prologue(const WalkBackward<float>& walk, int64_t tile) {
  walk_backward_prologue<float, float>(walk, tile);
  const BackwardOperands to(scheme, walk, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed, first = tile * kTile;
  const int64_t h_stored = walk.size.state_stored, psi_stored = walk.size.embed_stored;
  for (int64_t x = 0; x < blocks(K) * kBlock * kTile; ++x) to.state_sums[x] = 0;
  for (int64_t x = 0; wants_psi(walk) && x < blocks(D) * kBlock * kTile; ++x) to.psi_sums[x] = 0;
  const float *psi = walk.psi_node_panels + first * D, *y = walk.state_node_panels + first * K;
  const float *h = walk.h_node_panels + first * K, *h_by_node = walk.h_channel_panels + first * h_stored;
  Vec<float> squares[kTile / kWidth<float>];
  // of psi, what the forward asks, too: both directions have their logits from the same instruction
  bool in_range = squared_norms(psi, D, squares) <= kInRange && all_finite(psi, kTile * D) &&
                  (walk.bias == nullptr || walk.in_range[tile]);
  for (int n = 0; n < tile_nodes(walk.size.nodes, tile); ++n)
    in_range = in_range && walk.row_lse[first + n] - walk.row_lse[first + n] == 0;
  const auto by_class = [&](const float* panels) {
    alignas(64) float of_classes[kTile][kWidth<float>];
    for (int64_t c = 0; c < K; c += kWidth<float>) {
      for (int n = 0; n < kTile; ++n)
        for (int lane = 0; lane < kWidth<float>; ++lane)
          of_classes[n][lane] = c + lane < K ? panels[in_node_panels<float>(K, n, c + lane)] : 0;
      if (!in_range_of_parts(kWidth<float>, [&](int n, int64_t) { return load<Vec<float>>(of_classes[n]); }))
        return false;
    }
    return true;
  };
  *to.plain = in_range && by_class(y) && by_class(h);
  if (*to.plain == 0) return;
  const auto over_channels = [](const float* panels, int64_t channels) {
    return [=](int64_t c, int64_t n) { return read_node_panels(panels, channels, c, n); };
  };
  const auto over_nodes = [](const float* panels, int64_t stored) {
    return [=](int64_t n, int64_t c) { return read_channel_panels(panels, stored, c, n); };
  };
  pack<parts_of_a(scheme.S)>(to.psi, kBlocks, over_channels(psi, D));
  pack<parts_of_a(scheme.hy)>(to.y, kBlocks, over_channels(y, K));
  pack<parts_of_a(scheme.hy)>(to.h, kBlocks, over_channels(h, K));
  pack<parts_of_b(scheme.state)>(to.h_by_node, blocks(K), over_nodes(h_by_node, h_stored));
  if (wants_psi(walk))
    pack<parts_of_b(scheme.psi)>(to.psi_by_node, blocks(D),
                                 over_nodes(walk.psi_channel_panels + first * psi_stored, psi_stored));
}

template <const Scheme& scheme>
void walk_unit_backward_epilogue(const WalkBackward<float>& walk, int64_t tile) {
  const BackwardOperands of(scheme, walk, tile);
  const int64_t first = tile * kTile;
  turn_columns(of.state_sums, walk.size.classes, walk.state_sums + first * walk.size.state_stored);
  if (wants_psi(walk)) turn_columns(of.psi_sums, walk.size.embed, walk.psi_sums + first * walk.size.embed_stored);
  walk_backward_epilogue<float, float>(walk, tile);
}

}  // namespace difnet::cpu::DIFNET_ISA
