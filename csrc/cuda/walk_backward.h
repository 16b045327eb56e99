// One walk backwards (B3–B6, B8): a unit owns 64 rows of one image, streams one part of the columns (or all parts in
// turn) and writes only its own rows. S is symmetric, so one tile of logits gives P_ij and P_ji, and T_ij with both.
//
// With the spare columns y = (y | 1) and h = (h | γ − δ) the products are those of B4b whole, element by element:
//
//   A_ij = P_ij (h_i·y_j)    T_ij = A_ij + P_ji (y_i·h_j)    ∂ψ_i += T_ij ψ_j    ∂y_i += P_ji h_j
//
// T of a tile is in the smaller of the two units of h (gradient.h), times 2¹³. The node itself is left out of the sums:
// where P_ii is nearly one, h_i·y_i − δ_i is a difference of equal numbers, and A_ii = γ_i − Σ_(j≠i) A_ij is not.
#pragma once

#include "columns.h"
#include "gradient.h"

namespace difnet::cuda {

template <typename With>
struct BackwardStage {
  static constexpr int kTile = backward_tile(With::kInstance), kHalves = With::kInstance.products == 3 ? 2 : 1;
  static constexpr int kWidth = With::kInstance.width;
  uint16_t psi[kHalves][kTile * With::kInstance.embed];
  uint16_t y[kHalves][kTile * kWidth], h[kHalves][kTile * kWidth], class_h[kHalves][kTile * kWidth];
  float bias[kTile], lse[kTile], drop[kTile];
  float tile[tile_numbers(kWidth)];
};

// What of a unit's own rows has no place in registers and is read again for every 16 columns, from shared memory: how
// many halves of ψ, the high ones first, and whether y and h. In the widest kernel the low halves of ψ come from global
// memory, for its shared memory is full.
constexpr int psi_in_shared(const Instance& k) {
  if (k.products == 3) return k.embed == 128 && k.width == 64 ? 1 : k.embed == 128 || k.width == 64 ? 2 : 0;
  return k.embed == 128;
}
constexpr bool is_widest(const Instance& k) { return k.products == 3 && k.embed == 128 && k.width == 64; }

template <typename With>
struct StreamMemory {
  static constexpr Instance k = With::kInstance;
  static constexpr int kHalves = BackwardStage<With>::kHalves, kPsi = psi_in_shared(k);
  static constexpr bool kFields = is_widest(k);
  alignas(128) BackwardStage<With> stage[2];
  uint16_t psi[kPsi ? kPsi : 1][kPsi ? kRows * k.embed : 8];
  uint16_t field[2][kHalves][kFields ? kRows * k.width : 8];  // h, y
};

// The sums of the rows, once the columns are through.
template <int kEmbed>
struct FinishMemory {
  float psi[kRows * (kEmbed + 1)];
  float against[kRows], looked[kRows], own[kRows], itself[kRows];
};

// Which unit: kept here, because the columns leave no registers for it.
struct Unit {
  int32_t number, t, image, row_tile, part;  // t: of this launch
  int64_t psi, field;  // where the nodes of the image begin in what is kept for every walk, and for t & 1
};

template <typename With>
struct BackwardMemory {
  union {
    PrepareMemory<With::kInstance.embed> psi;
    GradientMemory<With::kInstance.width> gradient;
    StreamMemory<With> stream;
    FinishMemory<With::kInstance.embed> finish;
  };
  Unit unit;
  // of the unit's rows: the two levels and the exponent of their tile; P_ii, and A_ii as the difference that it is
  float levels[3], own[kRows], itself[kRows];
  uint32_t before;  // how many parts of the row tile came before this one
};

// The numbers of one thread, for rows g and g + 8 as Sums of the forward.
template <int kEmbed, int kWidth>
struct BackwardSums {
  float psi[kEmbed / 8][4];     // Σ_(j≠i) T_ij ψ̃_j
  float moved[kWidth / 8][4];   // Σ_(j≠i) P_ji h_j
  float against[2], looked[2];  // Σ_(j≠i) A_ij, Σ_(j≠i) T_ij over this thread's columns
  float own[2], itself[2];      // P_ii and A_ii, once the columns are through

  template <typename Act>  // act(number, which of all)
  DIFNET_DEVICE void for_each_four(Act act) {
#pragma unroll
    for (int n = 0; n < kEmbed / 8; ++n) act(psi[n], n);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) act(moved[n], kEmbed / 8 + n);
    float first[4] = {against[0], against[1], looked[0], looked[1]}, second[4] = {own[0], own[1], itself[0], itself[1]};
    act(first, kEmbed / 8 + kWidth / 8);
    act(second, kEmbed / 8 + kWidth / 8 + 1);
    against[0] = first[0], against[1] = first[1], looked[0] = first[2], looked[1] = first[3];
    own[0] = second[0], own[1] = second[1], itself[0] = second[2], itself[1] = second[3];
  }
};

// Unit `number` of the walks, for the whole block.
template <typename With>
DIFNET_DEVICE void take(const CascadeBackward& c, BackwardMemory<With>& memory, int number) {
  barrier();  // the unit before is done with
  if (thread() == 0) {
    const int parts = c.split.all_parts ? 1 : c.split.parts, tile = number / parts, images = tile / c.row_tiles;
    const int t = c.walks - 1 - images / c.images, image = images % c.images;
    const int64_t nodes = int64_t(c.row_tiles) * kRows;
    memory.unit = {number,
                   t,
                   image,
                   tile % c.row_tiles,
                   number % parts,
                   (int64_t(t) * c.images + image) * nodes,
                   (((c.first_walk + t) & 1) * int64_t(c.images) + image) * nodes};
  }
  barrier();
}

template <typename With>
struct WalkBackward {
  using Stage = BackwardStage<With>;
  using Memory = BackwardMemory<With>;
  static constexpr int kTile = Stage::kTile, kHalves = Stage::kHalves;
  static constexpr int kEmbed = With::kInstance.embed, kWidth = With::kInstance.width;
  static constexpr int kTileNumbers = tile_numbers(kWidth), kFours = part_fours(With::kInstance);
  static constexpr int kPsi = StreamMemory<With>::kPsi;
  static constexpr bool kFields = StreamMemory<With>::kFields;
  using Numbers = BackwardSums<kEmbed, kWidth>;
  using Fields = Rows<kWidth, kHalves>;

  const CascadeBackward& c;
  Memory& memory;

  // What a unit keeps of its rows.
  struct Own {
    Rows<kEmbed, kHalves> psi;
    const uint16_t* psi_lo;  // of the widest kernel
    Fields y, h;
    float lse[2], bias[2], sigma;
  };

  DIFNET_DEVICE int t() const { return memory.unit.t; }
  DIFNET_DEVICE int image() const { return memory.unit.image; }
  DIFNET_DEVICE int row_tile() const { return memory.unit.row_tile; }
  DIFNET_DEVICE int64_t first_psi() const { return memory.unit.psi; }
  DIFNET_DEVICE int64_t first_field() const { return memory.unit.field; }
  DIFNET_DEVICE int64_t tile_of_all() const { return int64_t(image()) * c.row_tiles + row_tile(); }
  DIFNET_DEVICE bool of_psi() const { return c.grad_psi[t()].data != nullptr || c.grad_bias[t()] != nullptr; }
  DIFNET_DEVICE bool hands_on() const { return t() > 0 || c.first_hands_on != 0; }
  DIFNET_DEVICE const float* tile_of(int tile) const { return c.tile + (first_field() / kRows + tile) * kTileNumbers; }

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

  // ---- one part of the columns --------------------------------------------------------------------------------------
  DIFNET_DEVICE void sum_part(Numbers& sums) const {
    Own own;
    const auto copy = [&](int tile, int stage) { copy_stage(tile, memory.stream.stage[stage]); };
    const auto start = [&] {
      load_own(own);
      sums.for_each_four([](float (&x)[4], int) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = 0.0f;
      });
    };
    const auto add = [&](int tile, int stage) { add_tile(sums, own, tile, memory.stream.stage[stage]); };
    const auto part = [&] { return memory.unit.part; };
    const auto counter = [&](int tile) { return ready(c, t(), image(), tile); };
    stream_columns<kTile>(c, row_tile(), part, counter, copy, start, add);
    barrier();  // P_ii and A_ii are there
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums.own[half] = memory.own[warp() * 16 + lane() / 4 + half * 8];
      sums.itself[half] = memory.itself[warp() * 16 + lane() / 4 + half * 8];
    }
  }

  // ---- the end of a row tile ----------------------------------------------------------------------------------------
  // The sums leave the registers for shared memory, where the stages were, and are finished row by row: thread() is a row
  // and every other channel or class of it, so that neighbours in memory are written by neighbours.
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

  // ---- parts --------------------------------------------------------------------------------------------------------
  DIFNET_DEVICE Four* place_of(int64_t part) const {
    return reinterpret_cast<Four*>(c.part) + part * kFours * kThreads + thread();
  }
  DIFNET_DEVICE static void leave_sums(Numbers& sums, Four* at) {
    sums.for_each_four([&](float (&x)[4], int n) { at[n * kThreads] = {x[0], x[1], x[2], x[3]}; });
  }

  // Leaves the sums of one part; true for the block that comes last, which then has those of all parts, in their order.
  DIFNET_DEVICE bool meet(Numbers& sums) const {
    const int64_t first = tile_of_all() * c.split.parts;
    leave_sums(sums, place_of(first + memory.unit.part));
    barrier();
    if (thread() == 0) memory.before = add_acquire_release(arrived(c, image(), row_tile()), 1);
    barrier();
    if (memory.before != uint32_t(c.split.parts - 1)) return false;
    if (thread() == 0) *arrived(c, image(), row_tile()) = 0;  // for the next walk
    sums.for_each_four([&](float (&x)[4], int n) {
      const Four* from = place_of(first) + n * kThreads;
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = from->x[e];
#pragma unroll 1
      for (int other = 1; other < c.split.parts; ++other) {
        from += kFours * kThreads;
        const Four more = *from;
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] += more.x[e];
      }
    });
    return true;
  }

  // All parts in turn, or one of them. In turn the sums so far lie in memory, which only this thread reads.
  DIFNET_DEVICE void run() const {
    Numbers sums;
    while (true) {
      sum_part(sums);
      if (!c.split.all_parts || c.split.parts == 1) break;
      Four* so_far = place_of(tile_of_all());
      if (memory.unit.part > 0)
        sums.for_each_four([&](float (&x)[4], int n) {
          const Four before = so_far[n * kThreads];
#pragma unroll
          for (int e = 0; e < 4; ++e) x[e] = before.x[e] + x[e];
        });
      if (memory.unit.part + 1 == c.split.parts) break;
      leave_sums(sums, so_far);
      barrier();
      if (thread() == 0) ++memory.unit.part;
      barrier();
    }
    if (c.split.all_parts || meet(sums)) finish(sums);
  }
};

}  // namespace difnet::cuda
