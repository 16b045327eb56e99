// What surrounds a walk backwards, row tile by row tile: B1, B2, B7, the state made again, and h in the form that the
// walk streams.
//
// g has no bound that is known before it is there, because columns of P do not sum to one. So every row tile has its own
// powers of two (block floating point), and nobody waits for an image to find them:
//
//   h_ik / scale_k · 2^e    where e brings Σ_k |h_ik| / scale_k + |γ_i| below one. It meets y_jk · scale_k (B4).
//   h_ik · u_k              where u_k brings |h_ik| below one, class by class, for B6: rare classes stay exact.
#pragma once

#include "cuda/backward_arguments.h"
#include "cuda/walk/prepare.h"

namespace difnet::cuda {

// P_ji = P_ij 2^(level_i − level_j), level = lse + bias, is used while the levels of a pair of tiles lie within kSpread
// (what underflowed in P_ij is then below 2⁻⁴⁶ in P_ji) and below kLevel, whose own rounding enters the exponent.
constexpr float kSpread = 80.0f, kLevel = 65536.0f;
constexpr int kTransposedShift = 13;  // P_ji and T enter their products times 2¹³, so that small ones stay normal
constexpr int kLargestExponent = 100;

template <int kWidth>
struct GradientMemory {
  PrepareMemory<kWidth> tile;  // rows: g = ∂L/∂yᵗ⁺¹; centre: the scales of the classes
  float sum[2][kRows];         // of a row, over every other class
  float reach[kThreads], unit[kWidth];
  float warps[5][4];  // of each warp: parts of ∂μ and ∂β; the largest row, the least and the largest level
};

// h of walk t for a row tile whose g stands in memory, and all else that the walk reads of it.
template <int kWidth, int kHalves>
struct Gradient {
  static constexpr int kTileNumbers = tile_numbers(kWidth);
  const CascadeBackward& c;
  GradientMemory<kWidth>& memory;
  int t, image, row_tile;  // t: of this launch
  int me = anew(thread());

  DIFNET_DEVICE int row() const { return me % kRows; }
  DIFNET_DEVICE int node() const { return row_tile * kRows + row(); }
  DIFNET_DEVICE int64_t tile_of_all() const { return int64_t(image) * c.row_tiles + row_tile; }
  DIFNET_DEVICE int64_t in_walk() const {  // the row in what is kept for the walks t & 1
    return (((c.first_walk + t) & 1) * int64_t(c.images) * c.row_tiles + tile_of_all()) * kRows + row();
  }
  DIFNET_DEVICE float walked(int walk, int k) const {
    return c.walked[((int64_t(walk) * c.images + image) * c.nodes + node()) * c.classes + k];
  }
  DIFNET_DEVICE static void store_half(uint16_t* hi, uint16_t* lo, int64_t at, float x) {
    hi[at] = float_to_half(x);
    if constexpr (kHalves == 2) lo[at] = float_to_half(x - half_to_float(hi[at]));
  }

  // yᵗ again (W3, W4), the parts of ∂μ and ∂β (B7), Σ ∂L/∂s (B1), and Σ |h| of every row
  DIFNET_DEVICE void state_and_gates() const {
    const int walk = c.first_walk + t;
    const float mu = c.mu[walk], beta = c.beta[walk];
    const int64_t own = (tile_of_all() * kRows + row()) * kWidth, to = in_walk() * kWidth;
    float of_mu = 0.0f, of_beta = 0.0f, reach = 0.0f;
#pragma unroll 1
    for (int k = me / kRows; k < kWidth; k += 2) {
      float state = k == kWidth - 1 && node() < c.nodes ? 1.0f : 0.0f;
      if (k < c.classes && node() < c.nodes) {
        const float g = memory.tile.rows[row() * (kWidth + 1) + k], scale = memory.tile.centre[k];
        const float s = load(c.seed, place(c.seed, image, k, node()));
        float y = load(c.state, place(c.state, image, k, node()));
#pragma unroll 4
        for (int earlier = 0; earlier < walk; ++earlier) {
          const float mixed = c.mu[earlier] * walked(earlier, k) + (1.0f - c.mu[earlier]) * s;  // (W3)
          y = c.beta[earlier] * mixed + (1.0f - c.beta[earlier]) * y;                           // (W4)
        }
        const float w = walked(walk, k), mixed = mu * w + (1.0f - mu) * s;  // (W3)
        of_mu += (w - s) * g;
        of_beta += (mixed - y) * g;
        const float before = walk == c.all_walks - 1 ? 0.0f : c.seed_sum[own + k];
        c.seed_sum[own + k] = before + beta * (1.0f - mu) * g;  // (B1)
        c.g[own + k] = g;
        reach += magnitude(mu * beta * g) * power_of_two(-exponent_of(scale));
        state = y * scale;
      }
      store_half(c.y_hi, c.y_lo, to + k, state);
    }
    memory.sum[me / kRows][row()] = reach;
    of_mu = sum_of_warp(of_mu);
    of_beta = sum_of_warp(of_beta);
    if ((me % 32) == 0) {
      memory.warps[0][(me / 32)] = beta * of_mu;
      memory.warps[1][(me / 32)] = of_beta;
    }
  }

  // The largest |g| of every class, the largest Σ |h| + |γ|, and the levels of the rows.
  DIFNET_DEVICE void find_reach(float lse_grad, float level) const {
    constexpr int kLanes = kWidth <= 32 ? 32 : 64, kPartRows = kRows / (kThreads / kLanes);
    const int k = me % kLanes, first = me / kLanes * kPartRows;
    float reach = 0.0f;
    if (k < kWidth)
      for (int row = first; row < first + kPartRows; ++row)
        reach = larger(reach, magnitude(memory.tile.rows[row * (kWidth + 1) + k]));
    memory.reach[me] = reach;
    // both halves of the block find the same
    const float row_reach = largest_of_warp(memory.sum[0][row()] + memory.sum[1][row()] + magnitude(lse_grad));
    const float least = -largest_of_warp(-level), largest = largest_of_warp(level);
    if ((me % 32) == 0) {
      memory.warps[2][(me / 32)] = row_reach;
      memory.warps[3][(me / 32)] = least;
      memory.warps[4][(me / 32)] = largest;
    }
    if (me == 0) {
      float* gate = c.gates + (int64_t(c.first_walk + t) * c.images * c.row_tiles + tile_of_all()) * 2;
      const float (&part)[5][4] = memory.warps;
      gate[0] = (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
      gate[1] = (part[1][0] + part[1][1]) + (part[1][2] + part[1][3]);
    }
  }

  // (B1) h in both units, and the classes of δ (B2), from the halves of h and w as the walk multiplies h and y: where P
  // is nearly one-hot, w = y and h·y − δ has to vanish, so both are rounded alike.
  DIFNET_DEVICE void split_h(float unit) const {
    const int walk = c.first_walk + t;
    const float factor = c.mu[walk] * c.beta[walk];
    const int64_t to = in_walk() * kWidth;
    float delta = 0.0f;
#pragma unroll 1
    for (int k = me / kRows; k < kWidth; k += 2) {
      const bool inside = k < c.classes && node() < c.nodes;
      const float h = inside ? factor * memory.tile.rows[row() * (kWidth + 1) + k] : 0.0f;
      store_half(c.class_h_hi, c.class_h_lo, to + k, inside ? h * memory.unit[k] : 0.0f);
      if (k == kWidth - 1) continue;  // of γ − δ
      const float scale = memory.tile.centre[k];
      const float in_image = inside ? h * power_of_two(-exponent_of(scale)) * unit : 0.0f;
      store_half(c.h_hi, c.h_lo, to + k, in_image);
      if (inside) {
        const float w = walked(walk, k) * scale;
        const float h_hi = half_to_float(float_to_half(in_image)), w_hi = half_to_float(float_to_half(w));
        delta += h_hi * w_hi;
        if constexpr (kHalves == 2) {
          const float h_lo = half_to_float(float_to_half(in_image - h_hi));
          delta += h_hi * half_to_float(float_to_half(w - w_hi)) + h_lo * w_hi;
        }
      }
    }
    memory.sum[me / kRows][row()] = delta;
  }

  DIFNET_DEVICE void prepare() const {
    // ψ of the walk is there; g of this launch's first walk comes without
    if (me == 0) wait_for(ready(c, t, image, row_tile), 1, "a block waits for psi of its own rows", __LINE__);
    barrier();
    state_and_gates();
    const int near = node() < c.nodes ? row() : c.nodes - 1 - row_tile * kRows;  // rows past N repeat the last
    const int64_t in_image = int64_t(image) * c.nodes + row_tile * kRows + near;
    const float lse = c.row_lse[int64_t(c.first_walk + t) * c.images * c.nodes + in_image];
    const float bias = c.bias[(int64_t(t) * c.images * c.row_tiles + tile_of_all()) * kRows + near];
    const bool inside = node() < c.nodes;
    const float lse_grad = inside && c.grad_lse[t] != nullptr ? c.grad_lse[t][in_image] : 0.0f;
    barrier();
    find_reach(lse_grad, lse + bias);
    barrier();
    const auto both = [&](int which) { return larger(memory.warps[which][0], memory.warps[which][1]); };
    const float least = smaller(memory.warps[3][0], memory.warps[3][1]), largest = both(4);
    const int exponent = clamp(-1 - exponent_of(both(2)), -kLargestExponent, kLargestExponent);
    float* tile = c.tile + in_walk() / kRows * kTileNumbers;
    if (me < kWidth) {
      constexpr int kLanes = kWidth <= 32 ? 32 : 64;
      float reach = memory.reach[me];
      for (int part = 1; part < kThreads / kLanes; ++part) reach = larger(reach, memory.reach[part * kLanes + me]);
      const int walk = c.first_walk + t;
      const int up = clamp(-1 - exponent_of(magnitude(c.mu[walk] * c.beta[walk]) * reach), -110, 110);
      memory.unit[me] = power_of_two(up);
      tile[me] = power_of_two(-up - kTransposedShift);
    }
    if (me == 0) {
      tile[kWidth] = least;
      tile[kWidth + 1] = largest;
      tile[kWidth + 2] = float(exponent);
      tile[kWidth + 3] = 0.0f;
    }
    barrier();
    split_h(power_of_two(exponent));
    barrier();
    if (me < kRows) {
      const float delta = memory.sum[0][row()] + memory.sum[1][row()];
      store_half(c.h_hi, c.h_lo, in_walk() * kWidth + kWidth - 1, lse_grad * power_of_two(exponent) - delta);
      c.lse[in_walk()] = inside ? lse : kInfinity;
      // clipped to stay finite: where the levels lie that far apart nobody uses it
      const float down = 0.5f * (least + largest) - (lse + bias);
      c.drop[in_walk()] = exp2_fast(smaller(larger(down, -kSpread), kSpread));
    }
    hand_over(c, t, image, row_tile);
  }

  // The last walk of a launch, which comes first: g is what the caller gives, and what a launch before has left.
  DIFNET_DEVICE void begin() const {
    const bool first = c.first_walk + c.walks == c.all_walks;
    if (first) {
      class_scales(c, memory.tile, image, row_tile);
    } else if (me < kWidth) {
      memory.tile.centre[me] = c.scale[image * kWidth + me];
    }
    const BatchField& given = c.grad_step[t];
    if (given.data != nullptr) stage<kWidth>(given, image, row_tile * kRows, c.nodes, memory.tile.rows);
    barrier();
    if (!first || given.data == nullptr)
      for (int k = me / kRows; k < kWidth; k += 2) {
        float& g = memory.tile.rows[row() * (kWidth + 1) + k];
        const bool inside = k < c.classes && node() < c.nodes;
        g = (given.data == nullptr ? 0.0f : g) +
            (first || !inside ? 0.0f : c.g[(tile_of_all() * kRows + row()) * kWidth + k]);
      }
    prepare();
  }

  // Behind the first walk of a launch: ∂L/∂y⁰ and ∂L/∂s (W5), or g for the next launch. Once in rows, once in columns.
  DIFNET_DEVICE void end() const {
    for (int k = me / kRows; k < c.classes; k += 2) {
      if (node() >= c.nodes) continue;
      const int64_t own = (tile_of_all() * kRows + row()) * kWidth + k;
      const float g = memory.tile.rows[row() * (kWidth + 1) + k];
      if (c.first_walk > 0) {
        c.g[own] = g;
        continue;
      }
      if (c.grad_seed.data != nullptr)
        store(c.grad_seed.dtype, c.grad_seed.data, place(c.grad_seed, image, k, node()),
              c.seed_sum[own] + (c.has_state ? 0.0f : g));
      if (c.grad_state.data != nullptr)
        store(c.grad_state.dtype, c.grad_state.data, place(c.grad_state, image, k, node()), g);
    }
  }
};

// (B7) of one walk: the parts of its row tiles in their order, by one warp.
DIFNET_DEVICE void add_gates(const CascadeBackward& c, int walk) {
  const int64_t tiles = int64_t(c.images) * c.row_tiles;
  float sum[2] = {};
#pragma unroll 1
  for (int64_t at = lane(); at < tiles; at += 32)
#pragma unroll
    for (int which = 0; which < 2; ++which) sum[which] += c.gates[(walk * tiles + at) * 2 + which];
  sum[0] = sum_of_warp(sum[0]);
  sum[1] = sum_of_warp(sum[1]);
  if (lane() == 0) {
    if (c.grad_mu != nullptr) c.grad_mu[walk] = sum[0];
    if (c.grad_beta != nullptr) c.grad_beta[walk] = sum[1];
  }
}

}  // namespace difnet::cuda
