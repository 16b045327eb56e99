// What the gates do to the numbers of a tile, node by node: W3 and W4, and their derivative.
#pragma once

#include "cpu/convert.h"
#include "cpu/walk/walk.h"

namespace difnet::cpu::DIFNET_ISA {

template <typename Real>
DIFNET_INLINE Real mix(Real walked, Real seed, Real mu) {
  return mu * walked + (1 - mu) * seed;  // (W3)
}

// (W3, W4) y⁺ in `rows`, channel panels, from what has walked.
template <typename Real, typename Factor>
DIFNET_INLINE void apply_gates(const WalkForward<Real, Factor>& walk, int64_t tile, Real* rows) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, first = tile * kTile;
  const Real mu = walk.mu, beta = walk.beta;
  for_each_number<Real>(walk.seed, K, tile, nodes, [&](int64_t c, int n, Real s) {
    rows[in_channel_panels<Real>(n, c)] = mix(walk.walked[(first + n) * K + c], s, mu);  // (W3)
  });
  for_each_number<Real>(walk.state, K, tile, nodes, [&](int64_t c, int n, Real y) {
    const Real mixed = rows[in_channel_panels<Real>(n, c)];
    rows[in_channel_panels<Real>(n, c)] = beta * mixed + (1 - beta) * y;  // (W4)
  });
}

// (B1, B2, B7) `grads`, node panels, holds g and takes h, a factor of which is `rest` [kTile]; delta is added to.
template <typename Real, typename Factor>
DIFNET_INLINE void differentiate_gates(const WalkBackward<Real, Factor>& walk, int64_t tile, const Real* states,
                                       const Real* rest, Real* grads) {
  const int nodes = tile_nodes(walk.size.nodes, tile);
  const int64_t K = walk.size.classes, first = tile * kTile;
  const Real mu = walk.mu, beta = walk.beta;
  double grad_mu = 0, grad_beta = 0;
  with_type(walk.seed.dtype, [&](auto* type) {
    const auto* seed = static_cast<decltype(type)>(walk.seed.data) + first * walk.seed.node_stride;
    for (int n = 0; n < nodes; ++n)
      for (int64_t c = 0; c < K; ++c) {  // in this order whatever the strides: the sums have one value
        const int64_t at = in_node_panels<Real>(K, n, c);
        const Real grad = grads[at], y = states[at], w = walk.walked[(first + n) * K + c];
        const Real s = widen<Real>(seed[c * walk.seed.channel_stride + n * walk.seed.node_stride]);
        const Real mixed = mix(w, s, mu);                               // (W3)
        grad_mu += double((w - s) * grad);                              // (B7)
        grad_beta += double((mixed - y) * grad);                        // (B7)
        walk.grad_seed[(first + n) * K + c] += beta * (1 - mu) * grad;  // (B1)
        walk.grad_state[(first + n) * K + c] = (1 - beta) * grad;       // (B1)
        grads[at] = beta * mu * grad * rest[n];                         // (B1)
        walk.delta[first + n] += grads[at] * w;                         // (B2)
      }
  });
  walk.grad_gates[2 * tile] = double(beta) * grad_mu;
  walk.grad_gates[2 * tile + 1] = grad_beta;
}

}  // namespace difnet::cpu::DIFNET_ISA
