// W1-W4 on tiles, without storing P. One strip of logits S_ij serves both directions, because S is symmetric:
// rows of tile a take exp(S_ij - shift_i) state_j, rows of tile b take exp(S_ij - shift_j) state_i.
//
// shift_i starts at S_ii = |psi_i|^2, nearly always the row maximum, and is raised only when a logit exceeds it by more
// than kSlack: exp stays far from overflow, and the sums are rescaled almost never.
#pragma once

#include "fields.h"

namespace difnet::DIFNET_ISA {

template <typename Real>
inline constexpr Real kSlack = 16;

// A weight below exp(-kNegligible) of its row sum (which is at least 1) changes no bit of the sum, also N times over.
template <typename Real>
inline constexpr Real kNegligible = sizeof(Real) == 4 ? 32 : 56;

template <typename Real, typename Factor>
struct ForwardTile : Slots<Factor> {
  static constexpr int kWeights = kTile * kTile / kTogether<Factor>;
  alignas(64) Factor row_weights[kWeights];     // exp(S_ij - shift_i)
  alignas(64) Factor column_weights[kWeights];  // exp(S_ij - shift_j)
  Real highest;                                 // the largest exponent met
};

// Logits and weights of the nodes i of tile a against the nodes j of tile b.
template <typename Real, typename Factor>
DIFNET_INLINE void weigh(const Forward<Real, Factor>& walk, int64_t a, int64_t b, ForwardTile<Real, Factor>& tile) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>, W = kWidth<Real>, together = kTogether<Factor>;
  const int64_t D = walk.size.embed_factors;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const bool may_skip = walk.finite[a] && walk.finite[b];
  V highest = broadcast<V>(-kNegligible<Real>);
  for (int block = 0; block < tile.kBlocks; ++block) {
    const int64_t i = a * kTile + block * L;
    const V shift_low = load<V>(walk.shift + i), shift_high = load<V>(walk.shift + i + W);
    for (int strip = 0; strip < tile.kStrips; ++strip) {
      const int64_t j = b * kTile + strip * kStrip;
      tile.live[block][strip] = block * L < nodes_a && strip * kStrip < nodes_b;
      if (!tile.live[block][strip]) continue;
      Strip<Real> S = {};
      inner_products(walk.psi_lanes + i * D, walk.psi_lanes + (j - j % L) * D + j % L, D, S);  // (W1)
      V most = S.at[0][0] - shift_low;
#pragma GCC unroll 8
      for (int c = 0; c < kStrip; ++c) {
        const V shift_column = broadcast<V>(walk.shift[j + c]);
        most = larger(most, S.at[c][0] - shift_low);
        most = larger(most, S.at[c][1] - shift_high);
        most = larger(most, S.at[c][0] - shift_column);
        most = larger(most, S.at[c][1] - shift_column);
      }
      if (may_skip && !(largest_lane(most) > -kNegligible<Real>)) {
        tile.live[block][strip] = false;
        continue;
      }
      highest = larger(highest, most);
      Factor* row = tile.row_weights + tile.slot(block, strip);
      Factor* column = tile.column_weights + tile.slot(block, strip);
#pragma GCC unroll 8
      for (int c = 0; c < kStrip; c += together, row += L) {
        V low[together], high[together];
#pragma GCC unroll 2
        for (int n = 0; n < together; ++n, column += L / together) {
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
DIFNET_INLINE void raise_shift(const Forward<Real, Factor>& walk, int64_t n, Real to) {
  if (!(to > walk.shift[n] + kSlack<Real>)) return;
  const Real factor = exponential(broadcast<Vec<Real>>(walk.shift[n] - to))[0];
  Real* sums = walk.sums + n / kTile * kTile * walk.size.state_stored;
  for (int64_t c = 0; c < walk.size.state_columns; ++c) sums[in_rows<Real>(n % kTile, c)] *= factor;
  walk.shift[n] = to;
}

// The rare case: some logit exceeds its row's shift by more than kSlack. Raises the shifts concerned, of both tiles.
template <typename Real, typename Factor>
__attribute__((noinline)) void raise_shifts(const Forward<Real, Factor>& walk, int64_t a, int64_t b) {
  constexpr int L = kLanes<Real>, W = kWidth<Real>;
  using V = Vec<Real>;
  const int64_t D = walk.size.embed_factors, end_a = a * kTile + tile_nodes(walk.size.nodes, a),
                end_b = b * kTile + tile_nodes(walk.size.nodes, b);
  for (int64_t i = a * kTile; i < end_a; i += L) {
    V low = load<V>(walk.shift + i), high = load<V>(walk.shift + i + W);
    for (int64_t j = b * kTile; j < end_b; j += kStrip) {
      Strip<Real> S = {};
      inner_products(walk.psi_lanes + i * D, walk.psi_lanes + (j - j % L) * D + j % L, D, S);
      for (int c = 0; c < kStrip; ++c) {
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
DIFNET_INLINE void walk_tiles(const Forward<Real, Factor>& walk, int64_t a, int64_t b) {
  const int64_t stored = kTile * walk.size.state_stored, columns = walk.size.state_columns;
  const int64_t states = stored / kTogether<Factor>;
  ForwardTile<Real, Factor> tile;
  weigh(walk, a, b, tile);
  if (tile.highest > kSlack<Real>) {
    raise_shifts(walk, a, b);
    weigh(walk, a, b, tile);
  }
  tile.add_rows(tile.row_weights, walk.state_rows + b * states, columns, walk.sums + a * stored);
  if (a != b) tile.add_columns(tile.column_weights, walk.state_rows + a * states, columns, walk.sums + b * stored);
}

template <typename Real, typename Factor>
void forward_open(const Forward<Real, Factor>& walk, int64_t tile) {
  constexpr int L = kLanes<Real>, W = kWidth<Real>;
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed_factors, stored = walk.size.state_stored;
  const int64_t first = tile * kTile, states_stored = kTile * stored / kTogether<Factor>;
  Factor* lanes = walk.psi_lanes + first * D;
  Factor* states = walk.state_rows + tile * states_stored;
  read_lanes(walk.psi, walk.size.embed, tile, nodes, lanes);
  read_rows(walk.state, K, tile, nodes, states, stored);
  walk.finite[tile] = all_finite(lanes, kTile * D) && all_finite(states, states_stored);
  for (int n = 0; n < nodes; ++n) narrow(Real(1), numbers(states)[in_rows<Factor>(n, K)]);
  for (int64_t x = 0; x < kTile * stored; ++x) walk.sums[first * stored + x] = 0;
  for (int64_t n = 0; n < kTile; n += W) {
    const Factor* x = lanes + n / L * D * L + n % L;
    Vec<Real> square = {};
    for (int64_t c = 0; c < D; ++c, x += L)
      square = Factors<Factor>::multiply_add(square, load<Vec<Factor>>(x), load<Vec<Factor>>(x));
    store(walk.shift + first + n, square);
  }
  walk_tiles(walk, tile, tile);
}

template <typename Real, typename Factor>
void forward_pair(const Forward<Real, Factor>& walk, int64_t a, int64_t b) {
  walk_tiles(walk, a, b);
}

template <typename Real, typename Factor>
void forward_close(const Forward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, stored = walk.size.state_stored, first = tile * kTile;
  const Real mu = walk.mu, beta = walk.beta;
  Real* rows = walk.sums + first * stored;
  for (int n = 0; n < nodes; ++n) {
    const Real total = rows[in_rows<Real>(n, K)];
    walk.row_lse[first + n] =
        walk.shift[first + n] + (sizeof(Real) == 4 ? __builtin_logf(total) : __builtin_log(total));
    for (int64_t c = 0; c < K; ++c) walk.walked[(first + n) * K + c] = rows[in_rows<Real>(n, c)] / total;  // (W2)
  }
  for_each_number<Real>(walk.seed, K, tile, nodes, [&](int64_t c, int n, Real s) {
    rows[in_rows<Real>(n, c)] = mu * walk.walked[(first + n) * K + c] + (1 - mu) * s;  // (W3)
  });
  for_each_number<Real>(walk.state, K, tile, nodes, [&](int64_t c, int n, Real y) {
    rows[in_rows<Real>(n, c)] = beta * rows[in_rows<Real>(n, c)] + (1 - beta) * y;  // (W4)
  });
  write_rows(rows, K, tile, nodes, walk.next_state);
}

}  // namespace difnet::DIFNET_ISA
