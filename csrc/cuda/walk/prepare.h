// What the walks stream, from what the caller gave: node-major fp16 rows, one fp32 bias per node, padded to whole
// tiles.
//
//     log2(e) S_ij = σ (ψ̃_i·ψ̃_j) + bias_j + (a term of row i alone, which softmax ignores),   ψ̃ = κ (ψ − c)
//
// where bias_j = log2(e) (c·(ψ_j − c) + b_j), and b_j is the caller's (W1b).
//
// κ is a power of two that brings the largest |ψ − c| just below 2¹⁴ (times √log2(e) where ψ is centred, which rounds
// anyway), σ the rest. c is the median of the means of up to 16 groups of nodes, channel by channel: one node cannot
// move it. 16-bit ψ with one product is used as it is, c = 0. Rows past N hold zeros and a bias of −∞: the walks need
// no mask. Every sum has one order, whatever the strides and whoever computes it.
#pragma once

#include "cuda/product.h"

namespace difnet::cuda {

// P leaves the softmax times 2⁷, so that small weights stay normal fp16 numbers. Not more: at huge logits the maximum
// minus the shift is rounded to a multiple of 8, 16, 32 ..., and from 7 that never reaches 16, where a weight would
// overflow.
constexpr float kShift = 7.0f;
constexpr float kLog2E = 1.4426950408889634f, kRootLog2E = 1.2011224087864498f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_inff(), kLowest = -3e38f;

DIFNET_DEVICE int exponent_of(float x) { return int(bits_of(x) >> 23 & 0xff) - 127; }
DIFNET_DEVICE float power_of_two(int exponent) { return float_of(uint32_t(exponent + 127) << 23); }  // [-126, 127]
DIFNET_DEVICE int clamp(int x, int least, int most) { return x < least ? least : x > most ? most : x; }
DIFNET_DEVICE bool is_finite(float x) { return magnitude(x) < float_of(0x7f800000u); }

DIFNET_DEVICE int group_begin(const auto& c, int group) { return int(int64_t(group) * c.nodes / c.groups); }

// Sum over the lanes of a warp, the same bits in each.
DIFNET_DEVICE float sum_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
DIFNET_DEVICE float largest_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = larger(x, shuffle_xor(x, mask));
  return x;
}

template <int kWidth>
struct PrepareMemory {
  float rows[kRows * (kWidth + 1)];
  float centre[kWidth];
  float warps[4];
};

// ---- the first state ------------------------------------------------------------------------------------------------
// max |seed|, |y⁰| of every class over one group of nodes.
template <int kWidth>
DIFNET_DEVICE void class_reach(const auto& c, PrepareMemory<kWidth>& memory, int image, int group) {
  const int end = group_begin(c, group + 1);
  float reach = 0.0f;
  for (int first = group_begin(c, group); first < end; first += kRows) {
    for (int which = 0; which < (is_same(c.state, c.seed) ? 1 : 2); ++which) {
      barrier();
      stage<kWidth>(which == 0 ? c.seed : c.state, image, first, end, memory.rows);
      barrier();
      if (thread() < kWidth)
#pragma unroll 4
        for (int row = 0; row < kRows; ++row) {
          const float x = magnitude(memory.rows[row * (kWidth + 1) + thread()]);
          reach = larger(reach, is_finite(x) ? x : 0.0f);
        }
    }
  }
  if (thread() < kWidth) c.class_reach[(int64_t(image) * c.groups + group) * kWidth + thread()] = reach;
  barrier();
  if (thread() == 0) add_release(reached(c, image), 1);
}

// The scales of the classes in memory.centre; the first row tile also leaves them for the walks. y is scaled by a power
// of two per image and class that brings |seed| and |y⁰| below one: every later state lies between them, so one scale
// serves all walks.
template <int kWidth>
DIFNET_DEVICE void class_scales(const auto& c, PrepareMemory<kWidth>& memory, int image, int row_tile) {
  if (thread() == 0)
    wait_for(reached(c, image), c.groups, "a block waits for the largest scores of its image", __LINE__);
  barrier();
  if (thread() < kWidth) {
    float reach = 0.0f;
    for (int group = 0; group < c.groups; ++group)
      reach = larger(reach, c.class_reach[(int64_t(image) * c.groups + group) * kWidth + thread()]);
    const float scale = power_of_two(-1 - clamp(exponent_of(reach), -126, 125));
    memory.centre[thread()] = scale;
    if (row_tile == 0) c.scale[image * kWidth + thread()] = scale;
  }
}

// y⁰ of a row tile in halves.
template <int kWidth, int kHalves>
DIFNET_DEVICE void prepare_state(const auto& c, PrepareMemory<kWidth>& memory, int image, int row_tile) {
  if (c.first_walk == 0) {
    class_scales(c, memory, image, row_tile);
    stage<kWidth>(c.state, image, row_tile * kRows, c.nodes, memory.rows);
    barrier();
    const int64_t to = (int64_t(image) * c.row_tiles + row_tile) * kRows * kWidth;
    for (int at = thread(); at < kRows * kWidth / 2; at += kThreads) {
      const int row = at / (kWidth / 2), channel = at % (kWidth / 2) * 2;
      const float* from = memory.rows + row * (kWidth + 1) + channel;
      const bool inside = row_tile * kRows + row < c.nodes;
      const float first = from[0] * memory.centre[channel];
      // the last column is ones: it leaves the row sums of P
      const float second = channel + 2 < kWidth ? from[1] * memory.centre[channel + 1] : inside ? 1.0f : 0.0f;
      store_halves<kHalves>(c.y_hi + to, c.y_lo + to, at, first, second);
    }
    barrier();
  }
  if (thread() == 0) add_release(ready(c, 0, image, row_tile), 1);
}

// ---- ψ --------------------------------------------------------------------------------------------------------------
// Sum, least and largest value of every channel over one group of nodes; what is not finite does not count.
template <int kEmbed>
DIFNET_DEVICE void psi_statistics(const auto& c, PrepareMemory<kEmbed>& memory, int t, int image, int group) {
  constexpr int kParts = kThreads / kEmbed, kPartRows = kRows / kParts;
  const int end = group_begin(c, group + 1), channel = thread() % kEmbed, part = thread() / kEmbed;
  const float infinity = float_of(0x7f800000u);
  float sum = 0.0f, least = infinity, most = -infinity;
  for (int first = group_begin(c, group); first < end; first += kRows) {
    barrier();
    stage<kEmbed>(c.psi[t], image, first, end, memory.rows);
    barrier();
    for (int row = part * kPartRows; row < (part + 1) * kPartRows; ++row) {
      const float x = memory.rows[row * (kEmbed + 1) + channel];
      if (first + row < end && is_finite(x)) {
        sum += x;
        least = smaller(least, x);
        most = larger(most, x);
      }
    }
  }
  barrier();  // the parts of the block meet in memory.rows
  memory.rows[thread()] = sum;
  memory.rows[kThreads + thread()] = least;
  memory.rows[2 * kThreads + thread()] = most;
  barrier();
  if (thread() < kEmbed) {
    for (int other = 1; other < kParts; ++other) {
      sum += memory.rows[other * kEmbed + channel];
      least = smaller(least, memory.rows[kThreads + other * kEmbed + channel]);
      most = larger(most, memory.rows[2 * kThreads + other * kEmbed + channel]);
    }
    float* to = c.psi_statistics + ((int64_t(t) * c.images + image) * c.groups + group) * 3 * kEmbed + channel;
    to[0] = sum / float(end - group_begin(c, group));
    to[kEmbed] = least;
    to[2 * kEmbed] = most;
  }
  barrier();
  if (thread() == 0) add_release(measured(c, t, image), 1);
}

// The lower median of the groups' means, NaN where a group is not there. Every mean in turn comes to the front, so that
// one piece of code counts those below it.
DIFNET_DEVICE float median(float (&mean)[kGroups], int groups) {
  float middle = 0.0f;
#pragma unroll 1
  for (int a = 0; a < kGroups; ++a) {
    const float one = mean[0];
    int below = 0;
#pragma unroll
    for (int b = 1; b < kGroups; ++b) below += mean[b] < one || (mean[b] == one && a + b >= kGroups);
    if (a < groups && below == (groups - 1) / 2) middle = one;
#pragma unroll
    for (int b = 1; b < kGroups; ++b) mean[b - 1] = mean[b];
    mean[kGroups - 1] = one;
  }
  return middle;
}

// (W1b) of a node, in the units of the logits. What is finite stays so: a row of such columns alone is their mean.
DIFNET_DEVICE float column_bias(const auto& c, int t, int image, int node) {
  if (c.column_bias[t] == nullptr) return 0.0f;
  const float bias = c.column_bias[t][int64_t(image) * c.nodes + node];
  return bias > -kInfinity ? larger(bias * kLog2E, kLowest * 0.5f) : bias;
}

// ψ_t of a row tile: its halves, bias, and floor. floor_i is just below row i's own logit (minus the shift), so a walk
// starts with the maximum that its diagonal tile would find, in whichever part of the columns it works.
template <int kEmbed, int kHalves, typename Asked>
DIFNET_DEVICE void prepare_psi(const Asked& c, PrepareMemory<kEmbed>& memory, int t, int image, int row_tile) {
  const BatchField& psi = c.psi[t];
  const bool centred = c.centred != 0 || psi.dtype == DType::kFloat;
  if (thread() == 0) wait_for(measured(c, t, image), c.groups, "a block waits for the centre of its image", __LINE__);
  barrier();
  float reach = 0.0f;
  if (thread() < kEmbed) {
    const float* from = c.psi_statistics + (int64_t(t) * c.images + image) * c.groups * 3 * kEmbed + thread();
    float mean[kGroups], least = 0.0f, most = 0.0f;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const bool inside = group < c.groups;
      mean[group] = inside ? from[group * 3 * kEmbed] : float_of(0x7fc00000u);
      if (inside) {
        least = group == 0 ? from[kEmbed] : smaller(least, from[group * 3 * kEmbed + kEmbed]);
        most = group == 0 ? from[2 * kEmbed] : larger(most, from[group * 3 * kEmbed + 2 * kEmbed]);
      }
    }
    const float middle = median(mean, c.groups), centre = centred && is_finite(middle) ? middle : 0.0f;
    memory.centre[thread()] = centre;
    reach = least <= most ? larger(most - centre, centre - least) : 0.0f;
  }
  reach = largest_of_warp(reach);
  if (lane() == 0) memory.warps[warp()] = reach;
  stage<kEmbed>(psi, image, row_tile * kRows, c.nodes, memory.rows);
  barrier();
  reach = larger(larger(memory.warps[0], memory.warps[1]), larger(memory.warps[2], memory.warps[3]));
  const int shrink = reach == 0.0f ? 0 : clamp(exponent_of(reach) + (centred ? 1 : 0) - 13, -100, 114);
  const float kappa = power_of_two(-shrink), root = centred ? kRootLog2E : 1.0f;
  // 2⁶⁰ at most: beyond it the softmax is one-hot anyway, and an infinite logit would be a NaN
  const float sigma = 2 * shrink < -126 ? 0.0f : power_of_two(clamp(2 * shrink, -126, 60)) * (centred ? 1.0f : kLog2E);
  const int64_t tile = (int64_t(t) * c.images + image) * c.row_tiles + row_tile;
  if (thread() == 0) c.sigma[tile] = sigma;
  if constexpr (Asked::kBackward) {
    if (thread() == 0) c.back_to_psi[tile] = power_of_two(shrink) * (centred ? 1.0f / kRootLog2E : 1.0f);
    if (row_tile == 0 && thread() < kEmbed)
      c.centre[(int64_t(t) * c.images + image) * kEmbed + thread()] = memory.centre[thread()];
  }
#pragma unroll 1
  for (int row = warp() * 16; row < warp() * 16 + 16; ++row) {
    const int node = row_tile * kRows + row;
    const int64_t to = (int64_t(t) * c.images + image) * c.row_tiles * kRows + node;
    float own = 0.0f, shift = 0.0f, squares = 0.0f;
    for (int channel = lane(); channel < kEmbed; channel += 32) {
      const float centre = memory.centre[channel];
      const float x = memory.rows[row * (kEmbed + 1) + channel];
      const float scaled = node < c.nodes ? (x * kappa - centre * kappa) * root : 0.0f;  // x - centre may overflow
      const uint16_t hi = float_to_half(scaled);
      c.psi_hi[to * kEmbed + channel] = hi;
      if constexpr (kHalves == 2) c.psi_lo[to * kEmbed + channel] = float_to_half(scaled - half_to_float(hi));
      // the logit of what is multiplied: a floor above the row's maximum would leave no weight that fp16 can hold
      const float used = kHalves == 2 ? scaled : half_to_float(hi);
      own += used * used;
      shift += scaled * smaller(larger(centre * kappa * root, -power_of_two(40)), power_of_two(40));
      squares += centre * centre;
    }
    own = sigma * sum_of_warp(own);
    const float of_centre = sigma * sum_of_warp(shift);
    bool wants_lse = false;
    if constexpr (!Asked::kBackward) wants_lse = c.wants_lse != 0;
    if (wants_lse) squares = sum_of_warp(squares);
    if (lane() == 0) {
      const float bias = node < c.nodes ? of_centre + column_bias(c, t, image, node) : -kInfinity;
      c.bias[to] = bias;
      if constexpr (!Asked::kBackward) {
        const float floor = own + bias - (own + magnitude(bias)) * 0x1p-13f - 1.0f - kShift;
        // a column that no row sees, its own row neither, says nothing about the row: a floor below all finite logits
        c.floor[to] = node >= c.nodes ? 0.0f : bias == -kInfinity ? kLowest : floor;
        if (wants_lse) c.row_term[to] = fma(of_centre, kLn2, squares);
      }
    }
  }
  hand_over(c, t, image, row_tile);
}

}  // namespace difnet::cuda
