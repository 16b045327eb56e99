// One walk (W1-W4) without storing P. A unit is 64 rows of one image and one part of the columns (or all parts in
// turn): each warp owns 16 rows, ψ of which stay in its registers, and the block streams the columns in tiles through
// two stages of shared memory, from its own tile on.
//
// The maximum of a row starts at its floor (prepare.h). Products are summed from zero for each tile and added in fp32:
// the matrix units truncate, and a long chain of their sums would drift. Parts are summed from zero and added in their
// order, in registers or by whichever block finishes a row tile last, so the bits do not depend on who computes what.
#pragma once

#include "cuda/walk/columns.h"
#include "cuda/walk/prepare.h"

namespace difnet::cuda {

template <typename With>
struct Stage {
  static constexpr int kTile = With::kInstance.tile(), kHalves = With::kInstance.products == 3 ? 2 : 1;
  uint16_t psi[kHalves][kTile * With::kInstance.embed];
  uint16_t y[kHalves][kTile * With::kInstance.width];
  float bias[kTile];
};

template <typename With>
struct WalkMemory {
  alignas(128) Stage<With> stage[2];
  uint32_t before;  // how many parts of the row tile came before this one
};

// The numbers of one thread, as mma leaves them: rows g and g + 8 of the warp's 16 with g = lane / 4; of every 8
// columns, 2 (lane % 4) and the next.
template <int kWidth>
struct Sums {
  float total[kWidth / 8][4];  // Σ 2^(x − peak) [y | 1], the row sum of P in the last column
  float peak[2];               // of x, less kShift
};

// More columns: `to` and the sums of `part`, both relative to the higher of the two maxima.
template <int kWidth>
DIFNET_DEVICE void add_part(Sums<kWidth>& to, const Sums<kWidth>& part) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float higher = larger(to.peak[half], part.peak[half]);
    const float a = exp2_fast(to.peak[half] - higher), b = exp2_fast(part.peak[half] - higher);
    to.peak[half] = higher;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int x = 2 * half; x < 2 * half + 2; ++x) to.total[n][x] = to.total[n][x] * a + part.total[n][x] * b;
  }
}

// Asked: Cascade, or one whose launch has Ψ in it, too.
template <typename With, typename Asked = Cascade>
struct Walk {
  static constexpr int kTile = Stage<With>::kTile, kHalves = Stage<With>::kHalves;
  static constexpr int kEmbed = With::kInstance.embed, kWidth = With::kInstance.width;

  const Asked& c;
  WalkMemory<With>& memory;
  int t, image, row_tile;  // t: of this launch

  DIFNET_DEVICE int64_t first_node() const { return int64_t(image) * c.row_tiles * kRows; }
  DIFNET_DEVICE int64_t first_psi() const { return int64_t(t) * c.images * c.row_tiles * kRows + first_node(); }
  DIFNET_DEVICE int64_t first_y(int walk) const {
    return int64_t((c.first_walk + walk) & 1) * c.images * c.row_tiles * kRows + first_node();
  }

  // ---- column tiles -------------------------------------------------------------------------------------------------
  DIFNET_DEVICE void copy_stage(int column_tile, Stage<With>& to) const {
    const int64_t psi = first_psi() + int64_t(column_tile) * kTile, y = first_y(t) + int64_t(column_tile) * kTile;
    copy_tile<kEmbed, kTile>(to.psi[0], c.psi_hi + psi * kEmbed);
    copy_tile<kWidth, kTile>(to.y[0], c.y_hi + y * kWidth);
    if constexpr (kHalves == 2) {
      copy_tile<kEmbed, kTile>(to.psi[1], c.psi_lo + psi * kEmbed);
      copy_tile<kWidth, kTile>(to.y[1], c.y_lo + y * kWidth);
    }
    if (thread() < kTile / 4) copy16(to.bias + thread() * 4, c.bias + psi + thread() * 4);
  }

  // ---- one column tile ----------------------------------------------------------------------------------------------
  // (W1) x [16 x 16] = log2(e) S without what softmax ignores, for columns 16 n and on
  DIFNET_DEVICE static void logits(float (&x)[kTile / 8][4], int n, const Rows<kEmbed, kHalves>& rows, float sigma,
                                   const Stage<With>& tile) {
    Product<kHalves> product[2];
    add_products(product, rows, n, tile.psi);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const Two bias = *reinterpret_cast<const Two*>(tile.bias + (n * 2 + part) * 8 + lane() % 4 * 2);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[n * 2 + part][e] = fma(product[part].sum(e), sigma, bias.x[e % 2]);
    }
  }

  // (W2) total [16 x 8] = total · rescale + weights · y, for classes 8 n and on; two such at a time where there are two.
  // Beside a weight of one the matrix units lose those below 2⁻²³, and where w is nearly y_j, w − y_j is made of these:
  // in fp32 the high products are summed for 16 columns, not for the tile.
  template <int kAtOnce>
  DIFNET_DEVICE static void add_classes(Sums<kWidth>& sums, int n, const float (&rescale)[2],
                                        const uint32_t (&weights)[kTile / 16][kHalves][4], const Stage<With>& tile) {
    constexpr int kSteps = kTile / 16, kFirst = kHalves == 2 ? 0 : kSteps - 1;  // the first that is added
    Product<kHalves> product[kAtOnce];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      add_weighted<kAtOnce, kWidth>(product, n, k, weights[k], tile.y);
#pragma unroll
      for (int part = 0; part < kAtOnce; ++part)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float &total = sums.total[n + part][e], &large = product[part].large[e];
          if (k >= kFirst) total = k == kFirst ? fma(total, rescale[e / 2], large) : total + large, large = 0.0f;
          if (kHalves == 2 && k + 1 == kSteps) total += product[part].small[e];
        }
    }
  }

  DIFNET_DEVICE static void add_tile(Sums<kWidth>& sums, const Rows<kEmbed, kHalves>& rows, float sigma,
                                     const Stage<With>& tile) {
    float x[kTile / 8][4];
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n) logits(x, n, rows, sigma, tile);
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = x[0][2 * half];
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) most = larger(most, larger(x[n][2 * half], x[n][2 * half + 1]));
      most = larger(most, shuffle_xor(most, 1));
      most = larger(most, shuffle_xor(most, 2));
      const float higher = larger(sums.peak[half], most - kShift);
      rescale[half] = exp2_fast(sums.peak[half] - higher);
      sums.peak[half] = higher;
    }
    // P 2^(lse − peak) in halves, as the left operand: what mma leaves of two tiles is what it takes of one step
    uint32_t weights[kTile / 16][kHalves][4];
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float first = exp2_fast(x[n][2 * half] - sums.peak[half]);
        const float second = exp2_fast(x[n][2 * half + 1] - sums.peak[half]);
        uint32_t both[kHalves];
        to_halves(both, first, second);
#pragma unroll
        for (int part = 0; part < kHalves; ++part) weights[n / 2][part][n % 2 * 2 + half] = both[part];
      }
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) add_classes<2>(sums, n * 2, rescale, weights, tile);
    if constexpr (kWidth % 16 != 0) add_classes<1>(sums, kWidth / 8 - 1, rescale, weights, tile);
  }

  // ---- one part of the columns --------------------------------------------------------------------------------------
  DIFNET_DEVICE void sum_part(Sums<kWidth>& sums, int part) {
    Rows<kEmbed, kHalves> rows;
    float sigma = 0.0f;
    const auto copy = [&](int tile, int stage) { copy_stage(tile, memory.stage[stage]); };
    const auto start = [&] {
      const int64_t node = first_psi() + row_tile * kRows + warp() * 16;
      rows.load(c.psi_hi, c.psi_lo, node);
      sums.peak[0] = c.floor[node + lane() / 4];
      sums.peak[1] = c.floor[node + lane() / 4 + 8];
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums.total[n][e] = 0.0f;
      sigma = c.sigma[(int64_t(t) * c.images + image) * c.row_tiles + row_tile];
    };
    const auto add = [&](int, int stage) { add_tile(sums, rows, sigma, memory.stage[stage]); };
    const auto counter = [&](int tile) { return ready(c, t, image, tile); };
    stream_columns<kTile>(c, row_tile, [&] { return part; }, counter, copy, start, add);
  }

  // ---- the end of a row tile ----------------------------------------------------------------------------------------
  DIFNET_DEVICE void finish(Sums<kWidth>& sums) const {
    const int channel_of_thread = lane() % 4 * 2, walk = c.first_walk + t;
    const float mu = c.mu[walk], beta = c.beta[walk];
    const int64_t next_y = first_y(t + 1);
#pragma unroll 1  // the rows g, then the rows g + 8, whose numbers have moved down meanwhile: half the code
    for (int half = 0; half < 2; ++half) {
      const int in_image = row_tile * kRows + warp() * 16 + lane() / 4 + half * 8;
      const bool inside = in_image < c.nodes;
      const float sum = shuffle(sums.total[kWidth / 8 - 1][1], lane() | 3);  // the column of ones
      const float inverse = 1.0f / sum;
      if (inside && lane() % 4 == 0) {
        // the shift leaves before the logarithm: log2 is exact at 1, where a one-hot row is
        const float lse = (sums.peak[0] + kShift) + log2_exact(sum * (1.0f / 128.0f));
        const int64_t at = int64_t(image) * c.nodes + in_image;
        if (c.row_lse != nullptr) c.row_lse[int64_t(walk) * c.images * c.nodes + at] = lse;
        if (c.lse[t] != nullptr) c.lse[t][at] = fma(lse, kLn2, c.row_term[first_psi() + in_image]);
      }
      const int64_t node = first_node() + in_image;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        float next[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int k = n * 8 + channel_of_thread + e;
          next[e] = k == kWidth - 1 && inside ? 1.0f : 0.0f;
          if (k < c.classes && inside) {
            const float scale = c.scale[image * kWidth + k];
            const float walked = sums.total[n][e] * inverse * power_of_two(-exponent_of(scale));  // (W2)
            if (c.walked != nullptr)
              c.walked[((int64_t(walk) * c.images + image) * c.nodes + in_image) * c.classes + k] = walked;
            const float seed = load(c.seed, place(c.seed, image, k, in_image));
            const float y = walk == 0 ? load(c.state, place(c.state, image, k, in_image)) : c.y[node * kWidth + k];
            const float mixed = mu * walked + (1.0f - mu) * seed;  // (W3)
            const float after = beta * mixed + (1.0f - beta) * y;  // (W4)
            c.y[node * kWidth + k] = after;
            if (c.steps[t] != nullptr) store(c.states.dtype, c.steps[t], place(c.states, image, k, in_image), after);
            next[e] = after * scale;
          }
        }
        const int64_t at = ((next_y + in_image) * kWidth + n * 8 + channel_of_thread) / 2;
        store_halves<kHalves>(c.y_hi, c.y_lo, at, next[0], next[1]);
        sums.total[n][0] = sums.total[n][2];
        sums.total[n][1] = sums.total[n][3];
      }
      sums.peak[0] = sums.peak[1];
    }
    barrier();
    if (t + 1 < c.walks && thread() == 0) add_release(ready(c, t + 1, image, row_tile), 1);
  }

  // Leaves the sums of one part; true for the block that comes last, which then has those of all parts, in their order.
  DIFNET_DEVICE bool meet(Sums<kWidth>& sums, int part) {
    const int64_t first = (int64_t(image) * c.row_tiles + row_tile) * c.split.parts;
    Four* totals = reinterpret_cast<Four*>(c.part) + thread();
    Two* peaks = reinterpret_cast<Two*>(c.part_peak) + thread();
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const float (&x)[4] = sums.total[n];
      totals[((first + part) * (kWidth / 8) + n) * kThreads] = {x[0], x[1], x[2], x[3]};
    }
    peaks[(first + part) * kThreads] = {sums.peak[0], sums.peak[1]};
    barrier();
    if (thread() == 0) memory.before = add_acquire_release(arrived(c, image, row_tile), 1);
    barrier();
    if (memory.before != uint32_t(c.split.parts - 1)) return false;
    if (thread() == 0) *arrived(c, image, row_tile) = 0;  // for the next walk
#pragma unroll 1
    for (int other = 0; other < c.split.parts; ++other) {
      Sums<kWidth> more;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const Four x = totals[((first + other) * (kWidth / 8) + n) * kThreads];
#pragma unroll
        for (int e = 0; e < 4; ++e) more.total[n][e] = x.x[e];
      }
      const Two peak = peaks[(first + other) * kThreads];
      more.peak[0] = peak.x[0];
      more.peak[1] = peak.x[1];
      if (other == 0)
        sums = more;
      else
        add_part(sums, more);
    }
    return true;
  }

  // All parts in turn (first_part 0), or one of them.
  DIFNET_DEVICE void run(int first_part) {
    Sums<kWidth> sums;
    if constexpr (With::kInRegisters) {
#pragma unroll 1
      for (int part = first_part; part == first_part || (c.split.all_parts && part < c.split.parts); ++part) {
        Sums<kWidth> more;
        sum_part(more, part);
        if (part == first_part)
          sums = more;
        else
          add_part(sums, more);
      }
    } else {
      sum_part(sums, first_part);
    }
    if (c.split.all_parts || meet(sums, first_part)) finish(sums);
  }
};

}  // namespace difnet::cuda
