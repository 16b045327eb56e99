// W1-W4 on tiles, without storing P. One micro-tile of logits S_ij serves both directions, because S is symmetric:
// rows of tile a take exp(S_ij - shift_i) state_j, rows of tile b take exp(S_ij - shift_j) state_i.
//
// shift_i starts at S_ii = |psi_i|^2, nearly always the row maximum, and is raised only when a logit exceeds it by more
// than kSlack: exp stays far from overflow, and the sums are rescaled almost never.
#pragma once

#include "cpu/convert.h"
#include "cpu/products.h"
#include "cpu/walk/walk.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
inline constexpr Real kSlack = 16;

// A weight below exp(-kNegligible) of its row sum (which is at least 1) changes no bit of the sum, also N times over.
template <typename Real>
inline constexpr Real kNegligible = sizeof(Real) == 4 ? 32 : 56;

template <typename Real, typename Factor>
struct ForwardWeights : WeightTile<Factor> {
  static constexpr int kWeights = kTile * kTile / kPerFactor<Factor>;
  alignas(64) Factor row_weights[kWeights];     // exp(S_ij - shift_i)
  alignas(64) Factor column_weights[kWeights];  // exp(S_ij - shift_j)
  Real highest;                                 // the largest exponent met
};

// (W1) Logits and weights of the nodes i of tile a against the nodes j of tile b.
template <typename Real, typename Factor>
DIFNET_INLINE void weigh(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b,
                         ForwardWeights<Real, Factor>& tile) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>, per_factor = kPerFactor<Factor>;
  const int64_t D = walk.size.embed_factors;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const bool may_skip = walk.finite[a] && walk.finite[b];
  V highest = broadcast<V>(-kNegligible<Real>);
  for (int panel = 0; panel < tile.kPanelsI; ++panel) {
    const int64_t i = a * kTile + panel * NR;
    const V shift_low = load<V>(walk.shift + i), shift_high = load<V>(walk.shift + i + W);
    for (int micro = 0; micro < tile.kPanelsJ; ++micro) {
      const int64_t j = b * kTile + micro * kMR;
      tile.mask[panel][micro] = panel * NR < nodes_a && micro * kMR < nodes_b;
      if (!tile.mask[panel][micro]) continue;
      MicroTile<Real> S = {};
      inner_products(walk.psi_node_panels + i * D, walk.psi_node_panels + (j - j % NR) * D + j % NR, D, S);  // (W1)
      V most = S.at[0][0] - shift_low;
#pragma GCC unroll 8
      for (int c = 0; c < kMR; ++c) {
        const V shift_column = broadcast<V>(walk.shift[j + c]);
        most = larger(most, S.at[c][0] - shift_low);
        most = larger(most, S.at[c][1] - shift_high);
        most = larger(most, S.at[c][0] - shift_column);
        most = larger(most, S.at[c][1] - shift_column);
      }
      if (may_skip && !(largest_lane(most) > -kNegligible<Real>)) {
        tile.mask[panel][micro] = false;
        continue;
      }
      highest = larger(highest, most);
      Factor* row = tile.row_weights + tile.micro_tile(panel, micro);
      Factor* column = tile.column_weights + tile.micro_tile(panel, micro);
#pragma GCC unroll 8
      for (int c = 0; c < kMR; c += per_factor, row += NR) {
        V low[per_factor], high[per_factor];
#pragma GCC unroll 2
        for (int n = 0; n < per_factor; ++n, column += NR / per_factor) {
          const V shift_column = broadcast<V>(walk.shift[j + c + n]);
          low[n] = exponential(S.at[c + n][0] - shift_low);
          high[n] = exponential(S.at[c + n][1] - shift_high);
          const V both[2] = {exponential(S.at[c + n][0] - shift_column), exponential(S.at[c + n][1] - shift_column)};
          Factors<Factor>::store_neighbours(column, both);
        }
        store(row, Factors<Factor>::of_lanes(low));
        store(row + W, Factors<Factor>::of_lanes(high));
      }
    }
  }
  tile.highest = largest_lane(highest);
}

// Raises the shift of node n to `to`, keeping the meaning of its sums.
template <typename Real, typename Factor>
DIFNET_INLINE void raise_shift(const WalkForward<Real, Factor>& walk, int64_t n, Real to) {
  if (!(to > walk.shift[n] + kSlack<Real>)) return;
  const Real factor = exponential(broadcast<Vec<Real>>(walk.shift[n] - to))[0];
  Real* sums = walk.sums + n / kTile * kTile * walk.size.state_stored;
  for (int64_t c = 0; c < walk.size.state_columns; ++c) sums[in_channel_panels<Real>(n % kTile, c)] *= factor;
  walk.shift[n] = to;
}

// The rare case: some logit exceeds its row's shift by more than kSlack. Raises the shifts concerned, of both tiles.
template <typename Real, typename Factor>
__attribute__((noinline)) void raise_shifts(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b) {
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  using V = Vec<Real>;
  const int64_t D = walk.size.embed_factors, end_a = a * kTile + tile_nodes(walk.size.nodes, a),
                end_b = b * kTile + tile_nodes(walk.size.nodes, b);
  for (int64_t i = a * kTile; i < end_a; i += NR) {
    V low = load<V>(walk.shift + i), high = load<V>(walk.shift + i + W);
    for (int64_t j = b * kTile; j < end_b; j += kMR) {
      MicroTile<Real> S = {};
      inner_products(walk.psi_node_panels + i * D, walk.psi_node_panels + (j - j % NR) * D + j % NR, D, S);
      for (int c = 0; c < kMR; ++c) {
        low = larger(low, S.at[c][0]);
        high = larger(high, S.at[c][1]);
        raise_shift(walk, j + c, largest_lane(larger(S.at[c][0], S.at[c][1])));
      }
    }
    for (int lane = 0; lane < W; ++lane) {
      raise_shift(walk, i + lane, low[lane]);
      raise_shift(walk, i + W + lane, high[lane]);
    }
  }
}

// (W2) for tiles a and b: the rows of a and, unless they are the same tile, the rows of b.
template <typename Real, typename Factor>
DIFNET_INLINE void walk_tiles(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b) {
  const int64_t stored = kTile * walk.size.state_stored, columns = walk.size.state_columns;
  const int64_t states = stored / kPerFactor<Factor>;
  ForwardWeights<Real, Factor> tile;
  weigh(walk, a, b, tile);
  if (tile.highest > kSlack<Real>) {
    raise_shifts(walk, a, b);
    weigh(walk, a, b, tile);
  }
  tile.add_rows(tile.row_weights, walk.state_channel_panels + b * states, columns, walk.sums + a * stored);
  if (a != b)
    tile.add_columns(tile.column_weights, walk.state_channel_panels + a * states, columns, walk.sums + b * stored);
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
  walk.finite[tile] = all_finite(lanes, kTile * D) && all_finite(states, states_stored);
  for (int n = 0; n < nodes; ++n) narrow(Real(1), numbers(states)[in_channel_panels<Factor>(n, K)]);
  for (int64_t x = 0; x < kTile * stored; ++x) walk.sums[first * stored + x] = 0;
  for (int64_t n = 0; n < kTile; n += W) {
    const Factor* x = lanes + n / NR * D * NR + n % NR;
    Vec<Real> square = {};
    for (int64_t c = 0; c < D; ++c, x += NR)
      square = Factors<Factor>::multiply_add(square, load<Vec<Factor>>(x), load<Vec<Factor>>(x));
    store(walk.shift + first + n, square);
  }
  walk_tiles(walk, tile, tile);
}

template <typename Real, typename Factor>
void walk_forward_tiles(const WalkForward<Real, Factor>& walk, int64_t a, int64_t b) {
  walk_tiles(walk, a, b);
}

template <typename Real, typename Factor>
void walk_forward_epilogue(const WalkForward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, stored = walk.size.state_stored, first = tile * kTile;
  const Real mu = walk.mu, beta = walk.beta;
  Real* rows = walk.sums + first * stored;
  for (int n = 0; n < nodes; ++n) {
    const Real total = rows[in_channel_panels<Real>(n, K)];
    walk.row_lse[first + n] =
        walk.shift[first + n] + (sizeof(Real) == 4 ? __builtin_logf(total) : __builtin_log(total));
    for (int64_t c = 0; c < K; ++c)
      walk.walked[(first + n) * K + c] = rows[in_channel_panels<Real>(n, c)] / total;  // (W2)
  }
  for_each_number<Real>(walk.seed, K, tile, nodes, [&](int64_t c, int n, Real s) {
    const Real mixed = mu * walk.walked[(first + n) * K + c] + (1 - mu) * s;  // (W3)
    rows[in_channel_panels<Real>(n, c)] = mixed;
  });
  for_each_number<Real>(walk.state, K, tile, nodes, [&](int64_t c, int n, Real y) {
    const Real mixed = rows[in_channel_panels<Real>(n, c)];
    rows[in_channel_panels<Real>(n, c)] = beta * mixed + (1 - beta) * y;  // (W4)
  });
  unpack_channel_panels(rows, K, tile, nodes, walk.next_state);
}

}  // namespace difnet::cpu::DIFNET_ISA
