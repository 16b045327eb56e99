// W1-W4 on tiles, without storing P. One micro-tile of logits S_ij serves both directions, because S is symmetric:
// rows of tile a take exp(S_ij - shift_i) state_j, rows of tile b take exp(S_ij - shift_j) state_i.
//
// shift_i starts at the multiple of ln2 nearest to S_ii = |psi_i|^2, nearly always the row maximum, and is raised only
// when a logit exceeds it by more than kSlack: exp stays far from overflow, and the sums are rescaled almost never.
#pragma once

#include "cpu/walk/bias.h"
#include "cpu/walk/far.h"
#include "cpu/walk/gates.h"
#include "cpu/walk/logits.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
inline constexpr Real kSlack = 16;

template <typename Real, typename Factor>
struct ForwardWeights : WeightTile<Factor> {
  static constexpr int kWeights = kTile * kTile / kPerFactor<Factor>;
  alignas(64) Factor row_weights[kWeights];     // exp(S_ij - shift_i)
  alignas(64) Factor column_weights[kWeights];  // exp(S_ij - shift_j)
  Real highest;                                 // the largest exponent met
};

// (W1) Logits and weights of the nodes i of tile a against the nodes j of tile b.
template <bool Biased, typename Real, typename Factor>
DIFNET_INLINE void weigh(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b, const Shifts<Real>& rows_a,
                         const Shifts<Real>& rows_b, ForwardWeights<Real, Factor>& tile) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>, per_factor = kPerFactor<Factor>;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const bool may_skip = walk.finite[a] && walk.finite[b], in_range = walk.in_range[a] && walk.in_range[b];
  const Real negligible = -kNegligible<Real> * kLn2<Real>;
  V highest = broadcast<V>(negligible);
  for (int panel = 0; panel < tile.kPanelsI; ++panel) {
    const int i = panel * NR;
    for (int micro = 0; micro < tile.kPanelsJ; ++micro) {
      const int j = micro * kMR;
      tile.mask[panel][micro] = i < nodes_a && j < nodes_b;
      if (!tile.mask[panel][micro]) continue;
      const Rows<Real> rows_i = {rows_a, walk.tile_bias + a, i}, rows_j = {rows_b, walk.tile_bias + b, j};
      MicroTile<Real> S;
      set_logits<Biased>(walk, a, i, b, j, S);  // (W1, W1b)
      const V most = largest_exponent<Biased>(S, rows_i, rows_j);
      if (may_skip && !(largest_lane(most) > negligible)) {
        tile.mask[panel][micro] = false;
        continue;
      }
      highest = larger(highest, most);
      Factor* row = tile.row_weights + tile.micro_tile(panel, micro);
      Factor* column = tile.column_weights + tile.micro_tile(panel, micro);
      V low[per_factor], high[per_factor];
      for_each_weight<Biased>(S, rows_i, rows_j, in_range,
                              [&](int c, const V(&of_i)[2], const V(&of_j)[2]) __attribute__((always_inline)) {
                                Factors<Factor>::store_neighbours(column + c * (NR / per_factor), of_j);
                                low[c % per_factor] = of_i[0];
                                high[c % per_factor] = of_i[1];
                                if (c % per_factor != per_factor - 1) return;
                                store(row + c / per_factor * NR, Factors<Factor>::of_lanes(low));
                                store(row + c / per_factor * NR + W, Factors<Factor>::of_lanes(high));
                              });
    }
  }
  tile.highest = largest_lane(highest);
}

// Raises the shift of row n of a tile to `to`; m is the integer of its bias.
template <typename Real>
DIFNET_INLINE void raise_shift(Shifts<Real>& rows, int n, Real to, Real m) {
  if (!(to > rows.shift[n] + kSlack<Real>)) return;
  Shifts<Real> raised;  // of which one row is wanted
  set_shifts(raised, 0, broadcast<Vec<Real>>(to), broadcast<Vec<Real>>(m));
  rows.shift[n] = raised.shift[0];
  rows.limit[n] = raised.limit[0];
  __builtin_memcpy(rows.exponent + n, raised.exponent, sizeof(Real));
}

// The rare case: some logit exceeds its row's shift by more than kSlack. Raises the shifts concerned, of both tiles.
template <bool Biased, typename Real, typename Factor>
__attribute__((noinline)) void raise_shifts(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                                            Shifts<Real>& rows_a, Shifts<Real>& rows_b) {
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  using V = Vec<Real>;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const TileBias<Real>*bias_a = walk.tile_bias + a, *bias_b = walk.tile_bias + b;
  for (int i = 0; i < nodes_a; i += NR) {
    V low = load<V>(rows_a.shift + i), high = load<V>(rows_a.shift + i + W);
    for (int j = 0; j < nodes_b; j += kMR) {
      MicroTile<Real> S;
      set_logits<Biased>(walk, a, i, b, j, S);
      for (int c = 0; c < kMR; ++c) {
        V of_j[2] = {S.at[c][0], S.at[c][1]}, of_i[2] = {S.at[c][0], S.at[c][1]};
        if constexpr (Biased) {
          for (int half = 0; half < 2; ++half) {
            of_i[half] += broadcast<V>(bias_b->whole[j + c]);
            of_j[half] += load<V>(bias_a->whole + i + half * W);
          }
        }
        low = larger(low, of_i[0]);
        high = larger(high, of_i[1]);
        raise_shift(rows_b, j + c, largest_lane(larger(of_j[0], of_j[1])), Biased ? bias_b->integer[j + c] : 0);
      }
    }
    for (int lane = 0; lane < W; ++lane) {
      raise_shift(rows_a, i + lane, low[lane], Biased ? bias_a->integer[i + lane] : 0);
      raise_shift(rows_a, i + W + lane, high[lane], Biased ? bias_a->integer[i + W + lane] : 0);
    }
  }
}

// What a tile's sums so far are multiplied by when its shifts are raised, which they then mean: row by row.
template <typename Real, typename Factor>
DIFNET_INLINE void commit_shifts(const WalkForward<Real, Factor>& walk, int64_t tile, const Shifts<Real>& raised) {
  Shifts<Real>& rows = walk.shifts[tile];
  Real* sums = walk.sums + tile * kTile * walk.size.state_stored;
  for (int n = 0; n < kTile; ++n) {
    if (!(raised.shift[n] > rows.shift[n])) continue;
    // then the difference of the two k ln2 is known exactly
    const bool in_range = raised.shift[n] <= kShiftInRange && rows.shift[n] >= -kShiftInRange;
    const Real by = in_range ? (rows.limit[n] - raised.limit[n]) * kLn2<Real> : rows.shift[n] - raised.shift[n];
    const Real factor = exponential(broadcast<Vec<Real>>(by))[0];
    for (int64_t c = 0; c < walk.size.state_columns; ++c) sums[in_channel_panels<Real>(n, c)] *= factor;
  }
  rows = raised;
}

// Logits and weights of two tiles, whose shifts are raised first where a logit asks for it; whether one did.
template <bool Biased, typename Real, typename Factor>
DIFNET_INLINE bool weigh_and_raise(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b, Shifts<Real>& rows_a,
                                   Shifts<Real>& rows_b, ForwardWeights<Real, Factor>& tile) {
  for (bool raised = false;; raised = true) {
    weigh<Biased>(walk, a, b, rows_a, rows_b, tile);
    if (!(tile.highest > kSlack<Real>) || raised) return raised;
    raise_shifts<Biased>(walk, a, b, rows_a, rows_b);
  }
}

// (W2) for tiles a and b: the rows of a and, unless they are the same tile, the rows of b.
template <typename Real, typename Factor>
void walk_forward_multiply(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                           WalkForwardScratch<Real>& scratch) {
  if (far_apart<kPerFactor<Factor>>(walk, a, b)) {
    scratch.raised = false;
    scratch.written[0] = scratch.written[1] = 0;
    return;
  }
  const int64_t states = kTile * walk.size.state_stored / kPerFactor<Factor>, columns = walk.size.state_columns;
  const Factor* state = walk.state_channel_panels;
  Shifts<Real>&rows_a = scratch.rows[0], &rows_b = scratch.rows[a == b ? 0 : 1];
  rows_a = walk.shifts[a];
  rows_b = walk.shifts[b];
  ForwardWeights<Real, Factor> tile;
  scratch.raised = biased(walk, a, b) ? weigh_and_raise<true>(walk, a, b, rows_a, rows_b, tile)
                                      : weigh_and_raise<false>(walk, a, b, rows_a, rows_b, tile);
  scratch.written[0] = tile.rows();
  tile.sum_rows(tile.row_weights, state + b * states, columns, scratch.sums[0]);
  if (a == b) return;
  scratch.written[1] = tile.columns();
  tile.sum_columns(tile.column_weights, state + a * states, columns, scratch.sums[1]);
}

template <typename Real, typename Factor>
void walk_forward_commit(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                         WalkForwardScratch<Real>& scratch) {
  const int64_t stored = kTile * walk.size.state_stored, columns = walk.size.state_columns;
  for (int side = 0; side < (a == b ? 1 : 2); ++side) {
    const int64_t tile = side == 0 ? a : b;
    if (scratch.raised) commit_shifts(walk, tile, scratch.rows[side]);
    add_sums(scratch.sums[side], scratch.written[side], columns, walk.sums + tile * stored);
  }
}

template <typename Real, typename Factor>
void walk_forward_prologue(const WalkForward<Real, Factor>& walk, int64_t tile) {
  constexpr int W = kWidth<Real>;
  using V = Vec<Real>;
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed_factors, stored = walk.size.state_stored;
  const int64_t first = tile * kTile, states_stored = kTile * stored / kPerFactor<Factor>;
  Factor* lanes = walk.psi_node_panels + first * D;
  Factor* states = walk.state_channel_panels + tile * states_stored;
  pack_node_panels(walk.psi, walk.size.embed, tile, nodes, lanes);
  pack_channel_panels(walk.state, K, tile, nodes, states, stored);
  const bool psi_finite = all_finite(lanes, kTile * D);
  walk.finite[tile] = psi_finite && all_finite(states, states_stored);
  for (int n = 0; n < nodes; ++n) narrow(Real(1), numbers(states)[in_channel_panels<Factor>(n, K)]);
  for (int64_t x = 0; x < kTile * stored; ++x) walk.sums[first * stored + x] = 0;
  V starts[kTile / W];
  const Real squared_norm = squared_norms(lanes, D, starts);
  walk.in_range[tile] = squared_norm <= kInRange && psi_finite;
  set_box(walk, tile, lanes, squared_norm);
  if (walk.bias == nullptr) {
    for (int n = 0; n < kTile; n += W) set_shifts(walk.shifts[tile], n, starts[n / W], V{});
    return;
  }
  const BiasRange range = set_bias(walk, tile);
  walk.finite[tile] = walk.finite[tile] && range.finite;
  walk.in_range[tile] = walk.in_range[tile] && range.in_range;
  start_with_bias(walk, tile, lanes, starts);
  for (int n = 0; n < kTile; n += W)
    set_shifts(walk.shifts[tile], n, starts[n / W], load<V>(walk.tile_bias[tile].integer + n));
}

template <typename Real, typename Factor>
void walk_forward_epilogue(const WalkForward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, stored = walk.size.state_stored, first = tile * kTile;
  const Shifts<Real>& shifts = walk.shifts[tile];
  Real* rows = walk.sums + first * stored;
  for (int n = 0; n < nodes; ++n) {
    const Real total = rows[in_channel_panels<Real>(n, K)];
    const Real log = sizeof(Real) == 4 ? __builtin_logf(total) : __builtin_log(total), shift = shifts.shift[n];
    const Real m = walk.bias == nullptr ? 0 : walk.tile_bias[tile].integer[n];
    const Real rest = walk.bias == nullptr ? 0 : walk.tile_bias[tile].rest[n];
    // k ln2 as exactly as the sum is rounded
    const bool in_range = shift <= kShiftInRange && shift >= -kShiftInRange;
    const double whole = in_range ? double(shift_exponent(shifts, n) - m) * kLn2<double> : double(shift);
    walk.row_lse[first + n] = Real(whole + double(log) - double(rest));
    for (int64_t c = 0; c < K; ++c)
      walk.walked[(first + n) * K + c] = rows[in_channel_panels<Real>(n, c)] / total;  // (W2)
  }
  apply_gates(walk, tile, rows);
  unpack_channel_panels(rows, K, tile, nodes, walk.next_state);
}

}  // namespace difnet::cpu::DIFNET_ISA
