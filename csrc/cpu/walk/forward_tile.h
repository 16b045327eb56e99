// W1-W4 on tiles, without storing P. One micro-tile of logits S_ij serves both directions, because S is symmetric:
// rows of tile a take exp(S_ij - shift_i) state_j, rows of tile b take exp(S_ij - shift_j) state_i.
//
// shift_i starts at the multiple of ln2 nearest to S_ii = |psi_i|^2, nearly always the row maximum, and is raised only
// when a logit exceeds it by more than kSlack: exp stays far from overflow, and the sums are rescaled almost never.
#pragma once

#include "cpu/convert.h"
#include "cpu/exponential.h"
#include "cpu/products.h"
#include "cpu/walk/gates.h"

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

// The largest S_ij - shift of a micro-tile, over both directions. A NaN is passed over.
template <typename Real>
DIFNET_INLINE Vec<Real> largest_exponent(const MicroTile<Real>& S, const Real* shift_i, const Real* shift_j) {
  using V = Vec<Real>;
  V low = S.at[0][0], high = S.at[0][1], column = larger(low, high) - broadcast<V>(shift_j[0]);
#pragma GCC unroll 8
  for (int c = 1; c < kMR; ++c) {
    low = larger(low, S.at[c][0]);
    high = larger(high, S.at[c][1]);
    column = larger(column, larger(S.at[c][0], S.at[c][1]) - broadcast<V>(shift_j[c]));
  }
  return larger(column, larger(low - load<V>(shift_i), high - load<V>(shift_i + kWidth<Real>)));
}

// body(c, weights of column c for the rows i, for the row j), each in two registers: exp(S_ij - shift_i) and
// exp(S_ij - shift_j) of a micro-tile, whose rows i start at number i of their tile and rows j at number j of theirs.
// The logits are read back from memory: together with the constants of exp they do not fit into the registers.
template <typename Real, typename Body>
DIFNET_INLINE void for_each_weight(const MicroTile<Real>& logits, const Shifts<Real>& rows_i, int i,
                                   const Shifts<Real>& rows_j, int j, bool in_range, Body body) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
  MicroTile<Real> S = logits;
  __asm__("" : "+m"(S));
  if (in_range) {
    const V limit[2] = {load<V>(rows_i.limit + i), load<V>(rows_i.limit + i + W)};
    const V exponent[2] = {load<V>(rows_i.exponent + i), load<V>(rows_i.exponent + i + W)};
#pragma GCC unroll 2
    for (int c = 0; c < kMR; ++c) {
      const V limit_j = broadcast<V>(rows_j.limit[j + c]), exponent_j = broadcast<V>(rows_j.exponent[j + c]);
      const Exponential<Real> low = exponential_parts<Real>(S.at[c][0]), high = exponential_parts<Real>(S.at[c][1]);
      const V row[2] = {weight(low, limit[0], exponent[0]), weight(high, limit[1], exponent[1])};
      const V column[2] = {weight(low, limit_j, exponent_j), weight(high, limit_j, exponent_j)};
      body(c, row, column);
    }
  } else {
    const V shift[2] = {load<V>(rows_i.shift + i), load<V>(rows_i.shift + i + W)};
    for (int c = 0; c < kMR; ++c) {
      const V shift_j = broadcast<V>(rows_j.shift[j + c]);
      const V row[2] = {exponential(S.at[c][0] - shift[0]), exponential(S.at[c][1] - shift[1])};
      const V column[2] = {exponential(S.at[c][0] - shift_j), exponential(S.at[c][1] - shift_j)};
      body(c, row, column);
    }
  }
}

// (W1) Logits and weights of the nodes i of tile a against the nodes j of tile b.
template <typename Real, typename Factor>
DIFNET_INLINE void weigh(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b, const Shifts<Real>& rows_a,
                         const Shifts<Real>& rows_b, ForwardWeights<Real, Factor>& tile) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>, per_factor = kPerFactor<Factor>;
  const int64_t D = walk.size.embed_factors;
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
      MicroTile<Real> S = {};
      inner_products(walk.psi_node_panels + (a * kTile + i) * D,
                     walk.psi_node_panels + (b * kTile + j - j % NR) * D + j % NR, D, S);  // (W1)
      const V most = largest_exponent(S, rows_a.shift + i, rows_b.shift + j);
      if (may_skip && !(largest_lane(most) > negligible)) {
        tile.mask[panel][micro] = false;
        continue;
      }
      highest = larger(highest, most);
      Factor* row = tile.row_weights + tile.micro_tile(panel, micro);
      Factor* column = tile.column_weights + tile.micro_tile(panel, micro);
      V low[per_factor], high[per_factor];
      for_each_weight(S, rows_a, i, rows_b, j, in_range,
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

// Raises the shift of row n of a tile to `to`.
template <typename Real>
DIFNET_INLINE void raise_shift(Shifts<Real>& rows, int n, Real to) {
  if (!(to > rows.shift[n] + kSlack<Real>)) return;
  Shifts<Real> raised;  // of which one row is wanted
  set_shifts(raised, 0, broadcast<Vec<Real>>(to));
  rows.shift[n] = raised.shift[0];
  rows.limit[n] = raised.limit[0];
  __builtin_memcpy(rows.exponent + n, raised.exponent, sizeof(Real));
}

// The rare case: some logit exceeds its row's shift by more than kSlack. Raises the shifts concerned, of both tiles.
template <typename Real, typename Factor>
__attribute__((noinline)) void raise_shifts(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                                            Shifts<Real>& rows_a, Shifts<Real>& rows_b) {
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  using V = Vec<Real>;
  const int64_t D = walk.size.embed_factors;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  for (int i = 0; i < nodes_a; i += NR) {
    V low = load<V>(rows_a.shift + i), high = load<V>(rows_a.shift + i + W);
    for (int j = 0; j < nodes_b; j += kMR) {
      MicroTile<Real> S = {};
      inner_products(walk.psi_node_panels + (a * kTile + i) * D,
                     walk.psi_node_panels + (b * kTile + j - j % NR) * D + j % NR, D, S);
      for (int c = 0; c < kMR; ++c) {
        low = larger(low, S.at[c][0]);
        high = larger(high, S.at[c][1]);
        raise_shift(rows_b, j + c, largest_lane(larger(S.at[c][0], S.at[c][1])));
      }
    }
    for (int lane = 0; lane < W; ++lane) {
      raise_shift(rows_a, i + lane, low[lane]);
      raise_shift(rows_a, i + W + lane, high[lane]);
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
    const bool in_range = raised.shift[n] <= kInRange;  // then the difference of the two k ln2 is known exactly
    const Real by = in_range ? (rows.limit[n] - raised.limit[n]) * kLn2<Real> : rows.shift[n] - raised.shift[n];
    const Real factor = exponential(broadcast<Vec<Real>>(by))[0];
    for (int64_t c = 0; c < walk.size.state_columns; ++c) sums[in_channel_panels<Real>(n, c)] *= factor;
  }
  rows = raised;
}

// (W2) for tiles a and b: the rows of a and, unless they are the same tile, the rows of b.
template <typename Real, typename Factor>
void walk_forward_multiply(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                           WalkForwardScratch<Real>& scratch) {
  const int64_t states = kTile * walk.size.state_stored / kPerFactor<Factor>, columns = walk.size.state_columns;
  const Factor* state = walk.state_channel_panels;
  Shifts<Real>&rows_a = scratch.rows[0], &rows_b = scratch.rows[a == b ? 0 : 1];
  rows_a = walk.shifts[a];
  rows_b = walk.shifts[b];
  ForwardWeights<Real, Factor> tile;
  weigh(walk, a, b, rows_a, rows_b, tile);
  scratch.raised = tile.highest > kSlack<Real>;
  if (scratch.raised) {
    raise_shifts(walk, a, b, rows_a, rows_b);
    weigh(walk, a, b, rows_a, rows_b, tile);
  }
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
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
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
  Vec<Real> squares[kTile / W], largest = {};
  for (int n = 0; n < kTile; n += W) {
    const Factor* x = lanes + n / NR * D * NR + n % NR;
    Vec<Real> square = {};
    for (int64_t c = 0; c < D; ++c, x += NR)
      square = Factors<Factor>::multiply_add(square, load<Vec<Factor>>(x), load<Vec<Factor>>(x));
    squares[n / W] = square;
    largest = larger(largest, square);
  }
  walk.in_range[tile] = psi_finite && largest_lane(largest) <= kInRange;
  for (int n = 0; n < kTile; n += W) set_shifts(walk.shifts[tile], n, squares[n / W]);
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
    // k ln2 as exactly as the sum is rounded
    const double whole = shift <= kInRange ? double(shift_exponent(shifts, n)) * kLn2<double> : double(shift);
    walk.row_lse[first + n] = Real(whole + double(log));
    for (int64_t c = 0; c < K; ++c)
      walk.walked[(first + n) * K + c] = rows[in_channel_panels<Real>(n, c)] / total;  // (W2)
  }
  apply_gates(walk, tile, rows);
  unpack_channel_panels(rows, K, tile, nodes, walk.next_state);
}

}  // namespace difnet::cpu::DIFNET_ISA
