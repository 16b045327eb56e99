// The end of a row tile in a walk backwards: ∂ψ and ∂b (B5, B8), and g of the walk before (B1, B6).
//
// The sums leave the registers for shared memory, where the stages were, and are finished row by row: thread() is a row
// and every other channel or class of it, so that neighbours in memory are written by neighbours.
#pragma once

#include "cuda/walk/backward_unit.h"

namespace difnet::cuda {

template <typename With>
struct BackwardFinish : BackwardUnit<With> {
  using Base = BackwardUnit<With>;
  using Base::c, Base::memory, Base::t, Base::image, Base::row_tile, Base::first_psi, Base::tile_of_all;
  using Base::kHalves, Base::kEmbed, Base::kWidth;
  using Base::of_psi, Base::hands_on;
  using typename Base::Numbers;

  DIFNET_DEVICE void finish(Numbers& sums) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) {
        sums.against[half] += shuffle_xor(sums.against[half], mask);
        sums.looked[half] += shuffle_xor(sums.looked[half], mask);
      }
    if (of_psi()) {
      barrier();  // the stages are done with
      leave_rows<kEmbed>(sums.psi, memory.finish.psi);
      if (lane() % 4 == 0)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp() * 16 + lane() / 4 + half * 8;
          memory.finish.against[row] = sums.against[half], memory.finish.looked[row] = sums.looked[half];
          memory.finish.own[row] = sums.own[half], memory.finish.itself[row] = sums.itself[half];
        }
      barrier();
      finish_psi(anew(thread()));
    }
    if (!hands_on()) return;
    barrier();
    leave_rows<kWidth>(sums.moved, memory.gradient.tile.rows);
    if (lane() % 4 == 0)
#pragma unroll
      for (int half = 0; half < 2; ++half) memory.gradient.sum[0][warp() * 16 + lane() / 4 + half * 8] = sums.own[half];
    if (thread() < kWidth) memory.gradient.tile.centre[thread()] = c.scale[image() * kWidth + thread()];
    barrier();
    finish_moved(anew(thread()));
    barrier();
    if (t() > 0)
      Gradient<kWidth, kHalves>{c, memory.gradient, t() - 1, image(), row_tile()}.prepare();
    else
      Gradient<kWidth, kHalves>{c, memory.gradient, t(), image(), row_tile()}.end();
  }

  template <int kNumbers>
  DIFNET_DEVICE static void leave_rows(const float (&sums)[kNumbers / 8][4], float* rows) {
#pragma unroll
    for (int n = 0; n < kNumbers / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        rows[(warp() * 16 + lane() / 4 + e / 2 * 8) * (kNumbers + 1) + n * 8 + lane() % 4 * 2 + e % 2] = sums[n][e];
  }

  // (B5, B8)
  DIFNET_DEVICE void finish_psi(int me) const {
    const int row = me % kRows, in_image = row_tile() * kRows + row;
    if (in_image >= c.nodes) return;
    const int64_t at = int64_t(image()) * c.nodes + in_image;
    const float lse_grad = c.grad_lse[t()] != nullptr ? c.grad_lse[t()][at] : 0.0f;
    // where P_ii is small the difference is the better of the two
    const float itself =
        memory.finish.own[row] > 0.5f ? lse_grad - memory.finish.against[row] : memory.finish.itself[row];
    const float looked = memory.finish.looked[row] + 2.0f * itself;
    if (c.grad_bias[t()] != nullptr && me < kRows) c.grad_bias[t()][at] = looked - lse_grad;  // (B8)
    const BatchField& to = c.grad_psi[t()];
    if (to.data == nullptr) return;
    const float unit = c.back_to_psi[first_psi() / kRows + row_tile()];
    const float* centre = c.centre + (int64_t(t()) * c.images + image()) * kEmbed;
    const int64_t from = (first_psi() + in_image) * kEmbed;
#pragma unroll 4
    for (int channel = me / kRows; channel < to.channels; channel += 2) {
      float psi = half_to_float(c.psi_hi[from + channel]);
      if constexpr (kHalves == 2) psi += half_to_float(c.psi_lo[from + channel]);
      const float sum = memory.finish.psi[row * (kEmbed + 1) + channel];
      const float grad = (sum + 2.0f * itself * psi) * unit + looked * centre[channel];
      store(to.dtype, to.data, place(to, image(), channel, in_image), grad);
    }
  }

  // (B1, B6) g of the walk before
  DIFNET_DEVICE void finish_moved(int me) const {
    const int row = me % kRows, in_image = row_tile() * kRows + row, walk = c.first_walk + t();
    const float beta = c.beta[walk], own = memory.gradient.sum[0][row] * c.mu[walk] * beta;
    const bool given = t() > 0 && c.grad_step[t() > 0 ? t() - 1 : 0].data != nullptr;
#pragma unroll 2
    for (int k = me / kRows; k < kWidth; k += 2) {
      float grad = 0.0f;
      if (k < c.classes && in_image < c.nodes) {
        const float g = c.g[(tile_of_all() * kRows + row) * kWidth + k];
        grad = (1.0f - beta) * g + (memory.gradient.tile.rows[row * (kWidth + 1) + k] + own * g);  // (B1, B6)
        if (given) grad += load(c.grad_step[t() - 1], place(c.grad_step[t() - 1], image(), k, in_image));
      }
      memory.gradient.tile.rows[row * (kWidth + 1) + k] = grad;
    }
  }
};

}  // namespace difnet::cuda
