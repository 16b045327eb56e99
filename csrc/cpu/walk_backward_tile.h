// B1-B7 on tiles in one pass: a strip of logits gives P_ij and P_ji (B3), hence T (B4), which is symmetric and serves the
// rows of both tiles (B5, B6). Every row is written by one step at a time: no atomics, one order, the same bits each run.
//
// The diagonal of T is not computed where it stands. T_ii = 2 P_ii (h_i y_i - delta_i), and delta_i -> h_i y_i when P is
// nearly one-hot, so the difference of the two would be rounding. But the terms of a row sum to zero, because delta_i is
// the mean of h_i y_j under P_i, so the diagonal one is minus the sum of the others, which do not cancel (`pull`).
#pragma once

#include "walk_forward_tile.h"

namespace difnet::DIFNET_ISA {

template <typename Real>
struct BackwardTile : Slots<Real> {
  alignas(64) Real P_ij[kTile * kTile];
  alignas(64) Real P_ji[kTile * kTile];
  alignas(64) Real T[kTile * kTile];
};

// The same weights as factors: to be summed over j into the rows of tile a, over i into those of tile b.
template <typename Factor>
struct BackwardFactors : Slots<Factor> {
  alignas(64) Factor P_ji[kTile * kTile / kTogether<Factor>];
  alignas(64) Factor P_ij[kTile * kTile / kTogether<Factor>];
  alignas(64) Factor T_rows[kTile * kTile / kTogether<Factor>];
  alignas(64) Factor T_columns[kTile * kTile / kTogether<Factor>];

  template <typename Real>
  DIFNET_MEMBER explicit BackwardFactors(const BackwardTile<Real>& from) {
    for (int block = 0; block < this->kBlocks; ++block)
      for (int strip = 0; strip < this->kStrips; ++strip) {
        this->live[block][strip] = from.live[block][strip];
        if (!this->live[block][strip]) continue;
        const int64_t at = from.slot(block, strip), to = this->slot(block, strip);
        row_factors(from.P_ji + at, P_ji + to);
        column_factors(from.P_ij + at, P_ij + to);
        row_factors(from.T + at, T_rows + to);
        column_factors(from.T + at, T_columns + to);
      }
  }
};

// (B3) P_ij and P_ji of lane block `block` of tile a (nodes i) against tile b (nodes j), and which strips matter.
template <typename Real, typename Factor>
DIFNET_INLINE void transition(const Backward<Real, Factor>& walk, int64_t a, int64_t b, int block,
                              BackwardTile<Real>& tile) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>, W = kWidth<Real>;
  const int64_t D = walk.size.embed_factors, i = a * kTile + block * L;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const bool may_skip = walk.finite[a] && walk.finite[b];
  const V lse_low = load<V>(walk.row_lse_padded + i), lse_high = load<V>(walk.row_lse_padded + i + W);
  for (int strip = 0; strip < tile.kStrips; ++strip) {
    const int64_t j = b * kTile + strip * kStrip;
    tile.live[block][strip] = block * L < nodes_a && strip * kStrip < nodes_b;
    if (!tile.live[block][strip]) continue;
    Strip<Real> S = {};
    inner_products(walk.psi_lanes + i * D, walk.psi_lanes + (j - j % L) * D + j % L, D, S);  // (W1)
    V most = S.at[0][0] - lse_low;
#pragma GCC unroll 8
    for (int c = 0; c < kStrip; ++c) {
      const V lse_column = broadcast<V>(walk.row_lse_padded[j + c]);
      most = larger(most, S.at[c][0] - lse_low);
      most = larger(most, S.at[c][1] - lse_high);
      most = larger(most, S.at[c][0] - lse_column);
      most = larger(most, S.at[c][1] - lse_column);
    }
    if (may_skip && !(largest_lane(most) > -kNegligible<Real>)) {
      tile.live[block][strip] = false;
      continue;
    }
    Real* P_ij = tile.P_ij + tile.slot(block, strip);
    Real* P_ji = tile.P_ji + tile.slot(block, strip);
#pragma GCC unroll 8
    for (int c = 0; c < kStrip; ++c) {
      const V lse_column = broadcast<V>(walk.row_lse_padded[j + c]);
      store(P_ij + c * L, exponential(S.at[c][0] - lse_low));
      store(P_ij + c * L + W, exponential(S.at[c][1] - lse_high));
      store(P_ji + c * L, exponential(S.at[c][0] - lse_column));
      store(P_ji + c * L + W, exponential(S.at[c][1] - lse_column));
    }
  }
}

// (B4) T = P_ij (h_i y_j - delta_i), and its sum over j into the pull of the nodes i
template <typename Real, typename Factor>
DIFNET_INLINE void forth(const Backward<Real, Factor>& walk, int64_t a, int64_t b, int block, int strip,
                         BackwardTile<Real>& tile) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>, W = kWidth<Real>;
  const int64_t K = walk.size.classes, i = a * kTile + block * L, j = b * kTile + strip * kStrip;
  const int nodes = tile_nodes(walk.size.nodes, b) - strip * kStrip;
  const Real* P_ij = tile.P_ij + tile.slot(block, strip);
  Real* T = tile.T + tile.slot(block, strip);
  const V delta_low = load<V>(walk.delta + i), delta_high = load<V>(walk.delta + i + W);
  Strip<Real> change;
#pragma GCC unroll 8
  for (int c = 0; c < kStrip; ++c) {
    change.at[c][0] = -delta_low;
    change.at[c][1] = -delta_high;
  }
  inner_products(walk.h_lanes + i * K, walk.state_lanes + (j - j % L) * K + j % L, K, change);
  V pull_low = load<V>(walk.pull + i), pull_high = load<V>(walk.pull + i + W);
#pragma GCC unroll 8
  for (int c = 0; c < kStrip; ++c) {
    const V low = load<V>(P_ij + c * L) * change.at[c][0], high = load<V>(P_ij + c * L + W) * change.at[c][1];
    store(T + c * L, low);
    store(T + c * L + W, high);
    if (c >= nodes) continue;  // padding looks nowhere, but its logits are 0, not -inf
    pull_low += low;
    pull_high += high;
  }
  store(walk.pull + i, pull_low);
  store(walk.pull + i + W, pull_high);
}

// (B4) T += P_ji (h_j y_i - delta_j), and its sum over i into the pull of the nodes j
template <typename Real, typename Factor>
DIFNET_INLINE void back(const Backward<Real, Factor>& walk, int64_t a, int64_t b, int block, int strip,
                        BackwardTile<Real>& tile) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>, W = kWidth<Real>;
  const int64_t K = walk.size.classes, i = a * kTile + block * L, j = b * kTile + strip * kStrip;
  const Real* P_ji = tile.P_ji + tile.slot(block, strip);
  Real* T = tile.T + tile.slot(block, strip);
  Strip<Real> change;
#pragma GCC unroll 8
  for (int c = 0; c < kStrip; ++c) change.at[c][0] = change.at[c][1] = broadcast<V>(-walk.delta[j + c]);
  inner_products(walk.state_lanes + i * K, walk.h_lanes + (j - j % L) * K + j % L, K, change);
#pragma GCC unroll 8
  for (int c = 0; c < kStrip; ++c) {
    const V low = load<V>(P_ji + c * L) * change.at[c][0], high = load<V>(P_ji + c * L + W) * change.at[c][1];
    store(T + c * L, load<V>(T + c * L) + low);
    store(T + c * L + W, load<V>(T + c * L + W) + high);
    if (a != b) walk.pull[j + c] += sum_lanes(low + high);
  }
}

// P and T of the nodes i of tile a against the nodes j of tile b, from one set of logits. One product at a time passes
// over the strips, so that its operands stay in the first-level cache.
template <typename Real, typename Factor>
DIFNET_INLINE void weigh(const Backward<Real, Factor>& walk, int64_t a, int64_t b, BackwardTile<Real>& tile) {
  for (int block = 0; block < tile.kBlocks; ++block) {
    transition(walk, a, b, block, tile);
    for (int strip = 0; strip < tile.kStrips; ++strip)
      if (tile.live[block][strip]) forth(walk, a, b, block, strip, tile);
    for (int strip = 0; strip < tile.kStrips; ++strip)
      if (tile.live[block][strip]) back(walk, a, b, block, strip, tile);
  }
}

// Takes the diagonal out of T and of `pull`; `close` puts it back as minus the pull.
template <typename Real, typename Factor>
DIFNET_INLINE void drop_diagonal(const Backward<Real, Factor>& walk, int64_t tile, BackwardTile<Real>& weights) {
  constexpr int L = kLanes<Real>;
  for (int n = 0; n < kTile; ++n) {
    if (!weights.live[n / L][n / kStrip]) continue;
    Real& T_nn = weights.T[weights.slot(n / L, n / kStrip) + n % kStrip * L + n % L];
    walk.pull[tile * kTile + n] -= T_nn / 2;
    T_nn = 0;
  }
}

// (B5, B6) for tiles a and b: the rows of a and, unless they are the same tile, the rows of b.
template <typename Real, typename Factor>
DIFNET_INLINE void walk_tiles(const Backward<Real, Factor>& walk, int64_t a, int64_t b) {
  const int64_t psi = kTile * walk.size.embed_stored, h = kTile * walk.size.state_stored;
  const int64_t psi_columns = walk.size.embed_columns, h_columns = walk.size.state_columns;
  constexpr int together = kTogether<Factor>;
  const Factor *psi_rows_a = walk.psi_rows + a * psi / together, *psi_rows_b = walk.psi_rows + b * psi / together;
  const Factor *h_rows_a = walk.h_rows + a * h / together, *h_rows_b = walk.h_rows + b * h / together;
  BackwardTile<Real> tile;
  weigh(walk, a, b, tile);
  if (a == b) drop_diagonal(walk, a, tile);
  const auto sum = [&](const auto& over, const Factor* T_rows, const Factor* T_columns) __attribute__((always_inline)) {
    over.add_rows(T_rows, psi_rows_b, psi_columns, walk.psi_sums + a * psi);
    over.add_rows(over.P_ji, h_rows_b, h_columns, walk.state_sums + a * h);
    if (a == b) return;
    over.add_columns(T_columns, psi_rows_a, psi_columns, walk.psi_sums + b * psi);
    over.add_columns(over.P_ij, h_rows_a, h_columns, walk.state_sums + b * h);
  };
  if constexpr (together == 1) {
    sum(tile, tile.T, tile.T);
  } else {
    const BackwardFactors<Factor> factors(tile);
    sum(factors, factors.T_rows, factors.T_columns);
  }
}

template <typename Real, typename Factor>
void backward_open(const Backward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed, first = tile * kTile;
  const int64_t embed = walk.size.embed_stored, stored = walk.size.state_stored;
  const Real mu = walk.mu, beta = walk.beta;
  constexpr int together = kTogether<Factor>;
  Factor *psi_rows = walk.psi_rows + first * embed / together, *h_rows = walk.h_rows + first * stored / together;
  Real *states = walk.state_lanes + first * K, *grads = walk.h_lanes + first * K;  // of which h is made in place
  read_lanes(walk.psi, D, tile, nodes, walk.psi_lanes + first * walk.size.embed_factors);
  read_rows(walk.psi, D, tile, nodes, psi_rows, embed);
  read_lanes(walk.state, K, tile, nodes, states);
  read_lanes(walk.grad_next, K, tile, nodes, grads);
  for (int n = 0; n < kTile; ++n) {
    walk.delta[first + n] = walk.pull[first + n] = 0;
    walk.row_lse_padded[first + n] = n < nodes ? walk.row_lse[first + n] : 0;
  }
  double grad_mu = 0, grad_beta = 0;
  with_type(walk.seed.dtype, [&](auto* type) {
    const auto* seed = static_cast<decltype(type)>(walk.seed.data) + first * walk.seed.node_stride;
    for (int n = 0; n < nodes; ++n)
      for (int64_t c = 0; c < K; ++c) {  // in this order whatever the strides: the sums have one value
        const int64_t at = in_lanes<Real>(K, n, c);
        const Real grad = grads[at], y = states[at], w = walk.walked[(first + n) * K + c];
        const Real s = widen<Real>(seed[c * walk.seed.channel_stride + n * walk.seed.node_stride]);
        grad_mu += double((w - s) * grad);                              // (B7)
        grad_beta += double((mu * w + (1 - mu) * s - y) * grad);        // (B7)
        walk.grad_seed[(first + n) * K + c] += beta * (1 - mu) * grad;  // (B1)
        walk.grad_state[(first + n) * K + c] = (1 - beta) * grad;       // (B1)
        grads[at] = beta * mu * grad;                                   // (B1)
        walk.delta[first + n] += grads[at] * w;                         // (B2)
      }
  });
  walk.grad_gates[2 * tile] = double(beta) * grad_mu;
  walk.grad_gates[2 * tile + 1] = grad_beta;
  lanes_to_rows(grads, K, h_rows, stored);
  walk.finite[tile] = all_finite(psi_rows, kTile * embed / together) && all_finite(states, kTile * K) &&
                      all_finite(grads, kTile * K) && all_finite(walk.delta + first, kTile) &&
                      all_finite(walk.row_lse_padded + first, kTile);
  for (int64_t x = 0; x < kTile * embed; ++x) walk.psi_sums[first * embed + x] = 0;
  for (int64_t x = 0; x < kTile * stored; ++x) walk.state_sums[first * stored + x] = 0;
  walk_tiles(walk, tile, tile);
}

template <typename Real, typename Factor>
void backward_pair(const Backward<Real, Factor>& walk, int64_t a, int64_t b) {
  walk_tiles(walk, a, b);
}

template <typename Real, typename Factor>
void backward_close(const Backward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed, first = tile * kTile;
  const int64_t embed = walk.size.embed_stored, stored = walk.size.state_stored;
  const Real* states = walk.state_sums + first * stored;
  const auto* psi = numbers(walk.psi_rows + first * embed / kTogether<Factor>);
  Real* grads = walk.psi_sums + first * embed;
  for (int64_t n = 0; n < nodes; ++n) {
    for (int64_t c = 0; c < K; ++c) walk.grad_state[(first + n) * K + c] += states[in_rows<Real>(n, c)];
    for (int64_t c = 0; c < D; ++c)
      grads[in_rows<Real>(n, c)] -= 2 * walk.pull[first + n] * widen<Real>(psi[in_rows<Factor>(n, c)]);
  }
  write_rows(grads, D, tile, nodes, walk.grad_psi);
}

}  // namespace difnet::DIFNET_ISA
