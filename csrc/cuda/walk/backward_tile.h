// One column tile of a walk backwards (B3–B6): the rows of a unit meet it, and their sums grow. S is symmetric, so one
// tile of logits gives P_ij and P_ji, and T_ij with both.
//
// With the spare columns y = (y | 1) and h = (h | γ − δ) the products are those of B4b whole, element by element:
//
//   A_ij = P_ij (h_i·y_j)    T_ij = A_ij + P_ji (y_i·h_j)    ∂ψ_i += T_ij ψ_j    ∂y_i += P_ji h_j
//
// T of a tile is in the smaller of the two units of h (gradient.h), times 2¹³. The node itself is left out of the sums:
// where P_ii is nearly one, h_i·y_i − δ_i is a difference of equal numbers, and A_ii = γ_i − Σ_(j≠i) A_ij is not.
#pragma once

#include "cuda/product.h"
#include "cuda/walk/backward_unit.h"

namespace difnet::cuda {

template <typename With>
struct BackwardTile : BackwardUnit<With> {
  using Base = BackwardUnit<With>;
  using Base::c, Base::memory, Base::row_tile, Base::first_psi, Base::first_field, Base::tile_of;
  using Base::kTile, Base::kHalves, Base::kEmbed, Base::kWidth, Base::kTileNumbers;
  using Base::of_psi, Base::hands_on;
  using typename Base::Memory, typename Base::Numbers, typename Base::Stage;
  static constexpr int kPsi = StreamMemory<With>::kPsi;
  static constexpr bool kFields = StreamMemory<With>::kFields;
  using Fields = Rows<kWidth, kHalves>;

  // What a unit keeps of its rows.
  struct Own {
    Rows<kEmbed, kHalves> psi;
    const uint16_t* psi_lo;  // of the widest kernel
    Fields y, h;
    float lse[2], bias[2], sigma;
  };

  // ---- column tiles -------------------------------------------------------------------------------------------------
  DIFNET_DEVICE void copy_stage(int column_tile, Stage& to) const {
    const int64_t psi = first_psi() + int64_t(column_tile) * kTile;
    const int64_t field = first_field() + int64_t(column_tile) * kTile;
    const int me = anew(thread());
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      copy_tile<kEmbed, kTile>(to.psi[half], (half == 0 ? c.psi_hi : c.psi_lo) + psi * kEmbed, me);
      copy_tile<kWidth, kTile>(to.y[half], (half == 0 ? c.y_hi : c.y_lo) + field * kWidth, me);
      copy_tile<kWidth, kTile>(to.h[half], (half == 0 ? c.h_hi : c.h_lo) + field * kWidth, me);
      copy_tile<kWidth, kTile>(to.class_h[half], (half == 0 ? c.class_h_hi : c.class_h_lo) + field * kWidth, me);
    }
    const int warp = me / 32, at = me % 32 * 4;
    if (warp == 0 && at < kTile) copy16(to.bias + at, c.bias + psi + at);
    if (warp == 1 && at < kTile) copy16(to.lse + at, c.lse + field + at);
    if (warp == 2 && at < kTile) copy16(to.drop + at, c.drop + field + at);
    if (warp == 3 && at < kTileNumbers) copy16(to.tile + at, tile_of(column_tile / (kRows / kTile)) + at);
  }

  DIFNET_DEVICE void load_own(Own& own) const {
    const int64_t psi = first_psi() + row_tile() * kRows + warp() * 16;
    const int64_t field = first_field() + row_tile() * kRows + warp() * 16;
    own.psi.load(c.psi_hi, c.psi_lo, psi);
#pragma unroll
    for (int half = 0; half < kPsi; ++half)  // with the copies of the first tile
      copy_tile<kEmbed, kRows>(memory.stream.psi[half],
                               (half == 0 ? c.psi_hi : c.psi_lo) + (first_psi() + row_tile() * kRows) * kEmbed);
    own.psi_lo = kFields ? c.psi_lo + (psi + lane() / 4) * kEmbed + lane() % 4 * 2 : nullptr;
    if constexpr (!kFields) {
      own.y.load(c.y_hi, c.y_lo, field);
      own.h.load(c.h_hi, c.h_lo, field);
    } else {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int64_t from = (first_field() + row_tile() * kRows) * kWidth;
        copy_tile<kWidth, kRows>(memory.stream.field[1][half], (half == 0 ? c.y_hi : c.y_lo) + from);
        copy_tile<kWidth, kRows>(memory.stream.field[0][half], (half == 0 ? c.h_hi : c.h_lo) + from);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      own.lse[half] = c.lse[field + lane() / 4 + half * 8];
      own.bias[half] = c.bias[psi + lane() / 4 + half * 8];
    }
    own.sigma = c.sigma[first_psi() / kRows + row_tile()];
    if (thread() < kRows) memory.own[thread()] = memory.itself[thread()] = 0.0f;
    if (thread() < 3) memory.levels[thread()] = tile_of(row_tile())[kWidth + thread()];
  }

  // ---- one column tile ----------------------------------------------------------------------------------------------
  // What a tile and the rows have in common.
  struct Pair {
    bool one_exponential;
    float rise[2];              // 2¹³ 2^(level_i − the middle of the tile's levels)
    float of_rows, of_columns;  // turn the units of h_i and h_j into that of T, the first times 2¹³
    float back;                 // and that of T into the loss's
  };
  DIFNET_DEVICE Pair meet_tile(const Own& own, const Stage& tile) const {
    Pair pair;
    const float least = tile.tile[kWidth], largest = tile.tile[kWidth + 1];
    const float low = smaller(least, memory.levels[0]), high = larger(largest, memory.levels[1]);
    // a comparison with NaN, as of levels that are all −∞, is false
    pair.one_exponential = memory.levels[0] - memory.levels[1] <= 0.0f && least - largest <= 0.0f &&
                           high - low < kSpread && larger(magnitude(high), magnitude(low)) < kLevel;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      pair.rise[half] = exp2_fast(own.lse[half] + own.bias[half] - 0.5f * (least + largest) + float(kTransposedShift));
    const int ours = int(memory.levels[2]), theirs = int(tile.tile[kWidth + 2]), unit = ours < theirs ? ours : theirs;
    pair.of_rows = power_of_two(clamp(unit - ours + kTransposedShift, -126, 127));
    pair.of_columns = power_of_two(clamp(unit - theirs, -126, 127));
    pair.back = power_of_two(-unit - kTransposedShift);
    return pair;
  }

  // The columns 16 n and on of a tile.
  struct Step {
    const Memory& memory;
    const Stage& tile;
    const Own& own;
    const Pair& pair;
    int n, me;      // me: the thread
    bool diagonal;  // whether the warp's own nodes are among them

    DIFNET_DEVICE int lane() const { return me % 32; }
    DIFNET_DEVICE int column(int part) const { return (n * 2 + part) * 8 + lane() % 4 * 2; }
    DIFNET_DEVICE Two at_columns(const float* numbers, int part) const {
      return *reinterpret_cast<const Two*>(numbers + column(part));
    }
    DIFNET_DEVICE int row(int e) const { return lane() / 4 + e / 2 * 8; }
    DIFNET_DEVICE bool is_diagonal(int part, int e) const { return part * 8 + lane() % 4 * 2 + e % 2 == row(e); }

    // Step k of the warp's rows in a tile of the unit's own.
    template <int kNumbers>
    DIFNET_DEVICE void load_left(uint32_t (&to)[4], const uint16_t* rows, int k) const {
      ldmatrix4(to, rows + chunk_at<kNumbers>(me / 32 * 16 + lane() % 16, k * 2 + lane() / 16));
    }

    // (B3) P_ij and 2¹³ P_ji
    DIFNET_DEVICE void transition(float (&look)[2][4], float (&back)[2][4]) const {
      Product<kHalves> product[2];
#pragma unroll
      for (int k = 0; k < kEmbed / 16; ++k) {  // (W1), bit for bit as in the forward
        uint32_t left[kHalves][4];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          if (half < kPsi)
            load_left<kEmbed>(left[half], memory.stream.psi[half < kPsi ? half : 0], k);
          else if (kFields)
            Rows<kEmbed, kHalves>::load_step(left[half], own.psi_lo, k);
          else
#pragma unroll
            for (int x = 0; x < 4; ++x) left[half][x] = own.psi.whole[k][half][x];
        }
        add_step<kEmbed>(product, left, n, k, tile.psi, lane());
      }
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const Two bias = at_columns(tile.bias, part);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          look[part][e] = exp2_fast(fma(product[part].sum(e), own.sigma, bias.x[e % 2]) - own.lse[e / 2]);
      }
      if (pair.one_exponential) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const Two drop = at_columns(tile.drop, part);
#pragma unroll
          for (int e = 0; e < 4; ++e) back[part][e] = look[part][e] * pair.rise[e / 2] * drop.x[e % 2];
        }
      } else {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const Two lse = at_columns(tile.lse, part);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float above = fma(product[part].sum(e), own.sigma, own.bias[e / 2]) - lse.x[e % 2];
            // the small products come in another order than in row j: never a weight above one; NaN stays
            back[part][e] = exp2_fast((above > 0.0f ? 0.0f : above) + float(kTransposedShift));
          }
        }
      }
    }

    // (B4) the products of the rows of h or y with the columns of the other
    DIFNET_DEVICE void multiply(Product<kHalves> (&product)[2], const Fields& rows, int which,
                                const uint16_t (&columns)[kHalves][kTile * kWidth]) const {
      if constexpr (!kFields) {
        add_products(product, rows, n, columns, lane());
      } else {
        static_assert(kWidth % 16 == 0);
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k) {
          uint32_t left[kHalves][4];
#pragma unroll
          for (int half = 0; half < kHalves; ++half) load_left<kWidth>(left[half], memory.stream.field[which][half], k);
          add_step<kWidth>(product, left, n, k, columns, lane());
        }
      }
    }

    // (B4, B4b) T, and the sums of its rows, in the units of T
    DIFNET_DEVICE void terms(float (&T)[2][4], float (&against)[2], float (&looked)[2], const float (&look)[2][4],
                             float (&back)[2][4]) const {
      {
        Product<kHalves> product[2];
        multiply(product, own.h, 0, tile.y);
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int e = 0; e < 4; ++e) T[part][e] = look[part][e] * pair.of_rows * product[part].sum(e);
      }
      if (diagonal) {
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (is_diagonal(part, e)) {
              memory_of_rows().itself[me / 32 * 16 + row(e)] = T[part][e] * pair.back;
              T[part][e] = 0.0f;
            }
      }
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int e = 0; e < 4; ++e) against[e / 2] += T[part][e];
      Product<kHalves> product[2];
      multiply(product, own.y, 1, tile.h);
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          T[part][e] = fma(back[part][e] * pair.of_columns, product[part].sum(e), T[part][e]);
          looked[e / 2] += T[part][e];
        }
    }
    // The node itself takes no part in the sums.
    DIFNET_DEVICE void take_out(const float (&look)[2][4], float (&back)[2][4]) const {
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (is_diagonal(part, e)) {
            memory_of_rows().own[me / 32 * 16 + row(e)] = look[part][e];
            back[part][e] = 0.0f;
          }
    }
    DIFNET_DEVICE Memory& memory_of_rows() const { return const_cast<Memory&>(memory); }

    // (B6) for classes 8 k and on, each in the unit that h has in this tile
    template <int kAtOnce>
    DIFNET_DEVICE void move(Numbers& sums, int k, const uint32_t (&weights)[kHalves][4]) const {
      Product<kHalves> product[kAtOnce];
      add_weighted<kAtOnce, kWidth>(product, k, n, weights, tile.class_h, lane());
#pragma unroll
      for (int part = 0; part < kAtOnce; ++part) {
        const Two unit = *reinterpret_cast<const Two*>(tile.tile + (k + part) * 8 + lane() % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums.moved[k + part][e] = fma(product[part].sum(e), unit.x[e % 2], sums.moved[k + part][e]);
      }
    }
  };

  // What mma leaves of two tiles is what it takes of one step.
  DIFNET_DEVICE static void as_left(uint32_t (&to)[kHalves][4], const float (&x)[2][4]) {
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t both[kHalves];
        to_halves(both, x[part][2 * half], x[part][2 * half + 1]);
#pragma unroll
        for (int which = 0; which < kHalves; ++which) to[which][part * 2 + half] = both[which];
      }
  }

  DIFNET_DEVICE void add_tile(Numbers& sums, const Own& own, int column_tile, const Stage& tile) const {
    const Pair pair = meet_tile(own, tile);
    const bool psi = of_psi(), moves = hands_on();
#pragma unroll 1
    for (int n = 0; n < kTile / 16; ++n) {
      const int me = anew(thread());
      const bool diagonal = column_tile * (kTile / 16) + n == row_tile() * (kRows / 16) + me / 32;
      const Step step{memory, tile, own, pair, n, me, diagonal};
      float look[2][4], back[2][4];
      step.transition(look, back);
      if (diagonal) step.take_out(look, back);
      uint32_t weights[kHalves][4];
      if (moves) {
        as_left(weights, back);
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k) step.template move<2>(sums, k * 2, weights);
        if constexpr (kWidth % 16 != 0) step.template move<1>(sums, kWidth / 8 - 1, weights);
      }
      if (psi) {
        float T[2][4], against[2] = {}, looked[2] = {};
        step.terms(T, against, looked, look, back);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sums.against[half] = fma(against[half], pair.back, sums.against[half]);
          sums.looked[half] = fma(looked[half], pair.back, sums.looked[half]);
        }
        as_left(weights, T);
#pragma unroll
        for (int d = 0; d < kEmbed / 8; d += 2) {  // (B5)
          Product<kHalves> product[2];
          // where registers are scarcest, the addresses of every step anew
          const int lane = (kHalves == 2 && kEmbed == 128 && kWidth == 24 ? anew(me) : me) % 32;
          add_weighted<2, kEmbed>(product, d, n, weights, tile.psi, lane);
#pragma unroll
          for (int part = 0; part < 2; ++part)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              sums.psi[d + part][e] = fma(product[part].sum(e), pair.back, sums.psi[d + part][e]);
        }
      }
    }
  }
};

}  // namespace difnet::cuda
