// B1-B7 on tiles in one pass: a micro-tile of logits gives P_ij and P_ji (B3), hence T (B4), which is symmetric and
// serves the rows of both tiles (B5, B6). Every row is written by one step at a time: no atomics, one order, the same
// bits each run.
//
// The diagonal of T is not computed where it stands. T_ii = 2 P_ii (h_i y_i - delta_i), and delta_i -> h_i y_i when P
// is nearly one-hot, so the difference of the two would be rounding. But the terms of a row sum to zero, because
// delta_i is the mean of h_i y_j under P_i, so the diagonal one is minus the sum of the others, which do not cancel
// (`off_diagonal`). With a gradient gamma_i of row_lse, delta_i is lessened by it (B4b), and the terms of a row sum to
// gamma_i.
#pragma once

#include "cpu/walk/forward_tile.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
struct BackwardWeights : WeightTile<Real> {
  alignas(64) Real P_ij[kTile * kTile];
  alignas(64) Real P_ji[kTile * kTile];
  alignas(64) Real T[kTile * kTile];
};

// The same weights as factors: to be summed over j into the rows of tile a, over i into those of tile b.
template <typename Factor>
struct BackwardWeightFactors : WeightTile<Factor> {
  alignas(64) Factor P_ji[kTile * kTile / kPerFactor<Factor>];
  alignas(64) Factor P_ij[kTile * kTile / kPerFactor<Factor>];
  alignas(64) Factor T_rows[kTile * kTile / kPerFactor<Factor>];
  alignas(64) Factor T_columns[kTile * kTile / kPerFactor<Factor>];

  template <typename Real>
  DIFNET_MEMBER BackwardWeightFactors(const BackwardWeights<Real>& from, bool with_T) {
    for (int panel = 0; panel < this->kPanelsI; ++panel)
      for (int micro = 0; micro < this->kPanelsJ; ++micro) {
        this->mask[panel][micro] = from.mask[panel][micro];
        if (!this->mask[panel][micro]) continue;
        const int64_t at = from.micro_tile(panel, micro), to = this->micro_tile(panel, micro);
        pair_rows(from.P_ji + at, P_ji + to);
        pair_columns(from.P_ij + at, P_ij + to);
        if (!with_T) continue;
        pair_rows(from.T + at, T_rows + to);
        pair_columns(from.T + at, T_columns + to);
      }
  }
};

// (B3) P_ij and P_ji of panel `panel` of tile a (nodes i) against tile b (nodes j), and which micro-tiles matter.
template <bool Biased, typename Real, typename Factor>
DIFNET_INLINE void transition(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b, int panel,
                              BackwardWeights<Real>& tile) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  const int i = panel * NR;
  const int nodes_a = tile_nodes(walk.size.nodes, a), nodes_b = tile_nodes(walk.size.nodes, b);
  const bool may_skip = walk.finite[a] && walk.finite[b], in_range = walk.in_range[a] && walk.in_range[b];
  const Rows<Real> rows_i = {walk.shifts[a], walk.tile_bias + a, i};
  for (int micro = 0; micro < tile.kPanelsJ; ++micro) {
    const int j = micro * kMR;
    tile.mask[panel][micro] = i < nodes_a && j < nodes_b;
    if (!tile.mask[panel][micro]) continue;
    const Rows<Real> rows_j = {walk.shifts[b], walk.tile_bias + b, j};
    MicroTile<Real> S;
    set_logits<Biased>(walk, a, i, b, j, S);  // (W1, W1b)
    const V most = largest_exponent<Biased>(S, rows_i, rows_j);
    if (may_skip && !(largest_lane(most) > -kNegligible<Real> * kLn2<Real>)) {
      tile.mask[panel][micro] = false;
      continue;
    }
    Real* P_ij = tile.P_ij + tile.micro_tile(panel, micro);
    Real* P_ji = tile.P_ji + tile.micro_tile(panel, micro);
    for_each_weight<Biased>(S, rows_i, rows_j, in_range,
                            [&](int c, const V(&of_i)[2], const V(&of_j)[2]) __attribute__((always_inline)) {
                              store(P_ij + c * NR, of_i[0]);
                              store(P_ij + c * NR + W, of_i[1]);
                              store(P_ji + c * NR, of_j[0]);
                              store(P_ji + c * NR + W, of_j[1]);
                            });
  }
}

// (B4, B4b) T = P_ij (h_i y_j - delta_i), and its sum over j into `off_diagonal` of the nodes i
template <typename Real, typename Factor>
DIFNET_INLINE void add_row_terms(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b, int panel, int micro,
                                 BackwardWeights<Real>& tile, Real* off_diagonal) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  const int64_t K = walk.size.classes, i = a * kTile + panel * NR, j = b * kTile + micro * kMR;
  const int nodes = tile_nodes(walk.size.nodes, b) - micro * kMR;
  const Real* P_ij = tile.P_ij + tile.micro_tile(panel, micro);
  Real* T = tile.T + tile.micro_tile(panel, micro);
  const V delta_low = load<V>(walk.delta + i), delta_high = load<V>(walk.delta + i + W);
  MicroTile<Real> change;
#pragma GCC unroll 8
  for (int c = 0; c < kMR; ++c) {
    change.at[c][0] = -delta_low;
    change.at[c][1] = -delta_high;
  }
  inner_products(walk.h_node_panels + i * K, walk.state_node_panels + (j - j % NR) * K + j % NR, K, change);
  off_diagonal += panel * NR;
  V sum_low = load<V>(off_diagonal), sum_high = load<V>(off_diagonal + W);
#pragma GCC unroll 8
  for (int c = 0; c < kMR; ++c) {
    const V low = load<V>(P_ij + c * NR) * change.at[c][0], high = load<V>(P_ij + c * NR + W) * change.at[c][1];
    store(T + c * NR, low);
    store(T + c * NR + W, high);
    if (c >= nodes) continue;  // padding looks nowhere, but its logits are 0, not -inf
    sum_low += low;
    sum_high += high;
  }
  store(off_diagonal, sum_low);
  store(off_diagonal + W, sum_high);
}

// (B4, B4b) T += P_ji (h_j y_i - delta_j), and its sum over i into `off_diagonal` of the nodes j
template <typename Real, typename Factor>
DIFNET_INLINE void add_column_terms(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b, int panel, int micro,
                                    BackwardWeights<Real>& tile, Real* off_diagonal) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  const int64_t K = walk.size.classes, i = a * kTile + panel * NR, j = b * kTile + micro * kMR;
  const Real* P_ji = tile.P_ji + tile.micro_tile(panel, micro);
  Real* T = tile.T + tile.micro_tile(panel, micro);
  MicroTile<Real> change;
#pragma GCC unroll 8
  for (int c = 0; c < kMR; ++c) change.at[c][0] = change.at[c][1] = broadcast<V>(-walk.delta[j + c]);
  inner_products(walk.state_node_panels + i * K, walk.h_node_panels + (j - j % NR) * K + j % NR, K, change);
#pragma GCC unroll 8
  for (int c = 0; c < kMR; ++c) {
    const V low = load<V>(P_ji + c * NR) * change.at[c][0], high = load<V>(P_ji + c * NR + W) * change.at[c][1];
    store(T + c * NR, load<V>(T + c * NR) + low);
    store(T + c * NR + W, load<V>(T + c * NR + W) + high);
    if (a != b) off_diagonal[micro * kMR + c] += sum_lanes(low + high);
  }
}

// (B8) Adds the row sums of T to `of_a`, for the nodes i, and unless a and b are the same tile to `of_b`, for the nodes j.
template <typename Real>
DIFNET_INLINE void add_row_sums(const BackwardWeights<Real>& tile, bool same, Real* of_a, Real* of_b) {
  using V = Vec<Real>;
  constexpr int NR = kNR<Real>, W = kWidth<Real>;
  for (int micro = 0; micro < tile.kPanelsJ; ++micro) {
    V columns[kMR] = {};
    for (int panel = 0; panel < tile.kPanelsI; ++panel) {
      if (!tile.mask[panel][micro]) continue;
      const Real* T = tile.T + tile.micro_tile(panel, micro);
      V low = load<V>(of_a + panel * NR), high = load<V>(of_a + panel * NR + W);
#pragma GCC unroll 8
      for (int c = 0; c < kMR; ++c, T += NR) {
        low += load<V>(T);
        high += load<V>(T + W);
        columns[c] += load<V>(T) + load<V>(T + W);
      }
      store(of_a + panel * NR, low);
      store(of_a + panel * NR + W, high);
    }
    for (int c = 0; c < kMR && !same; ++c) of_b[micro * kMR + c] += sum_lanes(columns[c]);
  }
}

// Whether the gradient of psi is wanted. T is computed for it and for that of the bias.
template <typename Real, typename Factor>
DIFNET_INLINE bool wants_psi(const WalkBackward<Real, Factor>& walk) {
  return walk.grad_psi.data != nullptr;
}
template <typename Real, typename Factor>
DIFNET_INLINE bool wants_T(const WalkBackward<Real, Factor>& walk) {
  return wants_psi(walk) || walk.grad_bias != nullptr;
}

// P and T of the nodes i of tile a against the nodes j of tile b, from one set of logits. One product at a time passes
// over the micro-tiles, so that its operands stay in the first-level cache.
template <typename Real, typename Factor>
DIFNET_INLINE void weigh(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b, BackwardWeights<Real>& tile,
                         WalkBackwardScratch<Real>& scratch) {
  const bool with_bias = biased(walk, a, b);
  for (int panel = 0; panel < tile.kPanelsI; ++panel) {
    with_bias ? transition<true>(walk, a, b, panel, tile) : transition<false>(walk, a, b, panel, tile);
    if (!wants_T(walk)) continue;
    for (int micro = 0; micro < tile.kPanelsJ; ++micro)
      if (tile.mask[panel][micro]) add_row_terms(walk, a, b, panel, micro, tile, scratch.off_diagonal[0]);
    for (int micro = 0; micro < tile.kPanelsJ; ++micro)
      if (tile.mask[panel][micro]) add_column_terms(walk, a, b, panel, micro, tile, scratch.off_diagonal[1]);
  }
}

// Takes the diagonal out of T and of `off_diagonal`; the epilogue puts it back as minus the sum of the others.
template <typename Real>
DIFNET_INLINE void drop_diagonal(BackwardWeights<Real>& weights, Real* off_diagonal) {
  constexpr int NR = kNR<Real>;
  for (int n = 0; n < kTile; ++n) {
    if (!weights.mask[n / NR][n / kMR]) continue;
    Real& T_nn = weights.T[weights.micro_tile(n / NR, n / kMR) + n % kMR * NR + n % NR];
    off_diagonal[n] -= T_nn / 2;
    T_nn = 0;
  }
}

// The sums over the terms of both tiles so far, to be added to.
template <typename Real, typename Factor>
DIFNET_INLINE void start_terms(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b,
                               WalkBackwardScratch<Real>& scratch) {
  for (int side = 0; side < 2; ++side)
    for (int n = 0; n < kTile; ++n) {
      const int64_t node = (side == 0 ? a : b) * kTile + n;
      scratch.off_diagonal[side][n] = walk.off_diagonal[node];
      if (walk.grad_bias != nullptr) scratch.row_sums[side][n] = walk.row_sums[node];
    }
}
template <typename Real, typename Factor>
DIFNET_INLINE void commit_terms(const WalkBackward<Real, Factor>& walk, int64_t tile, int side,
                                const WalkBackwardScratch<Real>& scratch) {
  for (int n = 0; n < kTile; ++n) walk.off_diagonal[tile * kTile + n] = scratch.off_diagonal[side][n];
  for (int n = 0; n < kTile && walk.grad_bias != nullptr; ++n)
    walk.row_sums[tile * kTile + n] = scratch.row_sums[side][n];
}

// (B5, B6) for tiles a and b: the rows of a and, unless they are the same tile, the rows of b.
template <typename Real, typename Factor>
void walk_backward_multiply(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b,
                            WalkBackwardScratch<Real>& scratch) {
  constexpr int per_factor = kPerFactor<Factor>;
  if (far_apart<per_factor>(walk, a, b)) {
    scratch.written[0] = scratch.written[1] = 0;
    return;
  }
  const int64_t psi = kTile * walk.size.embed_stored / per_factor, h = kTile * walk.size.state_stored / per_factor;
  const int64_t psi_columns = walk.size.embed_columns, h_columns = walk.size.state_columns;
  const Factor *psi_a = walk.psi_channel_panels + a * psi, *psi_b = walk.psi_channel_panels + b * psi;
  const Factor *h_a = walk.h_channel_panels + a * h, *h_b = walk.h_channel_panels + b * h;
  start_terms(walk, a, b, scratch);
  BackwardWeights<Real> tile;
  weigh(walk, a, b, tile, scratch);
  if (a == b && wants_T(walk)) drop_diagonal(tile, scratch.off_diagonal[0]);
  if (walk.grad_bias != nullptr) add_row_sums(tile, a == b, scratch.row_sums[0], scratch.row_sums[1]);
  const auto sum = [&](const auto& over, const Factor* T_rows, const Factor* T_columns) __attribute__((always_inline)) {
    scratch.written[0] = over.rows();
    if (wants_psi(walk)) over.sum_rows(T_rows, psi_b, psi_columns, scratch.psi_sums[0]);  // (B5)
    over.sum_rows(over.P_ji, h_b, h_columns, scratch.state_sums[0]);                      // (B6)
    if (a == b) return;
    scratch.written[1] = over.columns();
    if (wants_psi(walk)) over.sum_columns(T_columns, psi_a, psi_columns, scratch.psi_sums[1]);  // (B5)
    over.sum_columns(over.P_ij, h_a, h_columns, scratch.state_sums[1]);                         // (B6)
  };
  if constexpr (per_factor == 1) {
    sum(tile, tile.T, tile.T);
  } else {
    const BackwardWeightFactors<Factor> factors(tile, wants_psi(walk));
    sum(factors, factors.T_rows, factors.T_columns);
  }
}

template <typename Real, typename Factor>
void walk_backward_commit(const WalkBackward<Real, Factor>& walk, int64_t a, int64_t b,
                          WalkBackwardScratch<Real>& scratch) {
  for (int side = 0; side < (a == b ? 1 : 2); ++side) {
    const int64_t tile = side == 0 ? a : b;
    const uint64_t written = scratch.written[side];
    if (written == 0) continue;
    if (wants_psi(walk))
      add_sums(scratch.psi_sums[side], written, walk.size.embed_columns,
               walk.psi_sums + tile * kTile * walk.size.embed_stored);
    add_sums(scratch.state_sums[side], written, walk.size.state_columns,
             walk.state_sums + tile * kTile * walk.size.state_stored);
    commit_terms(walk, tile, side, scratch);
  }
}

template <typename Real, typename Factor>
void walk_backward_prologue(const WalkBackward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed, first = tile * kTile;
  const int64_t embed = walk.size.embed_stored, stored = walk.size.state_stored;
  constexpr int per_factor = kPerFactor<Factor>;
  Factor *psi_channel_panels = walk.psi_channel_panels + first * embed / per_factor,
         *h_channel_panels = walk.h_channel_panels + first * stored / per_factor;
  Real *states = walk.state_node_panels + first * K,
       *grads = walk.h_node_panels + first * K;  // of which h is made in place
  Factor* psi_node_panels = walk.psi_node_panels + first * walk.size.embed_factors;
  pack_node_panels(walk.psi, D, tile, nodes, psi_node_panels);
  if (wants_psi(walk)) pack_channel_panels(walk.psi, D, tile, nodes, psi_channel_panels, embed);
  pack_node_panels(walk.state, K, tile, nodes, states);
  pack_node_panels(walk.grad_next, K, tile, nodes, grads);
  using V = Vec<Real>;
  const bool has_bias = walk.bias != nullptr;
  const BiasRange range = has_bias ? set_bias(walk, tile) : BiasRange{true, true};
  alignas(64) Real row_lse[kTile], rest[kTile];
  for (int n = 0; n < kTile; ++n) {
    walk.delta[first + n] = walk.off_diagonal[first + n] = 0;
    if (walk.grad_bias != nullptr) walk.row_sums[first + n] = 0;
    row_lse[n] = n < nodes ? walk.row_lse[first + n] : has_bias ? kInRange : 0;  // padding has no weight of any bias
  }
  V largest = {};
  for (int n = 0; n < kTile; n += kWidth<Real>) {
    const V lse = load<V>(row_lse + n), m = has_bias ? load<V>(walk.tile_bias[tile].integer + n) : V{};
    largest = larger(largest, lse);
    V factor = set_shifts_and_rest(walk.shifts[tile], n, lse, m);
    if (has_bias)
      factor *= polynomial(-load<V>(walk.tile_bias[tile].rest + n));  // which the row's logits hold (bias.h)
    store(rest + n, factor);
  }
  differentiate_gates(walk, tile, states, rest, grads);
  for (int n = 0; n < nodes && walk.grad_row_lse != nullptr; ++n)
    walk.delta[first + n] -= walk.grad_row_lse[first + n] * rest[n];  // (B4b)
  repack_as_channel_panels(grads, K, h_channel_panels, stored);
  const bool logits_finite = all_finite(psi_node_panels, kTile * walk.size.embed_factors) && all_finite(row_lse, kTile);
  walk.finite[tile] = logits_finite && range.finite && all_finite(states, kTile * K) && all_finite(grads, kTile * K) &&
                      all_finite(walk.delta + first, kTile);
  // abs(psi_i psi_j) <= the larger of the squared norms, which without a bias are no larger than row_lse
  V squares[kTile / kWidth<Real>];
  const Real bound =
      has_bias ? squared_norms(psi_node_panels, walk.size.embed_factors, squares) : largest_lane(largest);
  walk.in_range[tile] = logits_finite && range.in_range && bound <= kInRange;
  set_box(walk, tile, psi_node_panels, bound);
  for (int64_t x = 0; wants_psi(walk) && x < kTile * embed; ++x) walk.psi_sums[first * embed + x] = 0;
  for (int64_t x = 0; x < kTile * stored; ++x) walk.state_sums[first * stored + x] = 0;
}

template <typename Real, typename Factor>
void walk_backward_epilogue(const WalkBackward<Real, Factor>& walk, int64_t tile) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, D = walk.size.embed, first = tile * kTile;
  const int64_t embed = walk.size.embed_stored, stored = walk.size.state_stored;
  const Real* states = walk.state_sums + first * stored;
  const auto* psi = numbers(walk.psi_channel_panels + first * embed / kPerFactor<Factor>);
  Real* grads = walk.psi_sums + first * embed;
  for (int64_t n = 0; n < nodes; ++n)
    for (int64_t c = 0; c < K; ++c) walk.grad_state[(first + n) * K + c] += states[in_channel_panels<Real>(n, c)];
  for (int64_t n = 0; n < nodes && wants_T(walk); ++n) {
    const Real gamma = walk.grad_row_lse == nullptr ? 0 : walk.grad_row_lse[first + n];
    const Real diagonal = 2 * (gamma - walk.off_diagonal[first + n]);  // (B4b) T_nn
    if (walk.grad_bias != nullptr) walk.grad_bias[first + n] = walk.row_sums[first + n] + diagonal - gamma;  // (B8)
    for (int64_t c = 0; c < D && wants_psi(walk); ++c)
      grads[in_channel_panels<Real>(n, c)] += diagonal * widen<Real>(psi[in_channel_panels<Factor>(n, c)]);
  }
  if (!wants_psi(walk)) return;
  unpack_channel_panels(grads, D, tile, nodes, walk.grad_psi);
}

}  // namespace difnet::cpu::DIFNET_ISA
