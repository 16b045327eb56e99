// z = W f for a tile of pixels and all D channels, in fp32 (Ψ1).
//
// A block takes kChunk channels of the features at a time through two stages of shared memory. Features may have any
// strides: a thread reads kStep channels of one pixel, splits them into fp16 halves in a unit of their own (a power of
// two that brings the largest just below 2¹⁵), and mma.sync multiplies them with the halves of W, which have a unit for
// each row. So no range of the data leaves fp16's, and what a pixel gets depends on no other pixel. 16-bit features
// have one half: two products. fp32 ones have two, of 23 digits: three products; or three, of all 24, where the
// variance of z may be a rounding error of its mean: five products. kStep channels are summed from zero and added in
// fp32, because the matrix units truncate.
//
// With fewer than kNarrow channels, as of an image, there are plain multiply-adds.
#pragma once

#include <type_traits>

#include "cuda/projection/arguments.h"
#include "cuda/walk/prepare.h"

namespace difnet::cuda {

DIFNET_DEVICE float load(const Array& of, int64_t at) {
  return load(BatchField{const_cast<void*>(of.data), 0, 0, 0, 0, of.dtype}, at);
}

struct alignas(16) Words {
  uint32_t x[4];
};

// Powers of two: the unit of numbers of which the largest is given, and its inverse. What is not finite has the largest
// unit, in which it stays what it is.
struct Scale {
  float unit, inverse;
};
DIFNET_DEVICE Scale scale_of(float largest) {
  const uint32_t exponent = uint32_t(clamp(int(bits_of(largest) >> 23 & 0xff), 15, 254));
  return {float_of((exponent - 14) << 23), float_of((268 - exponent) << 23)};
}

// As product.h has it for two: the third holds what two leave of 24 digits.
DIFNET_DEVICE void to_halves(uint32_t (&to)[3], float first, float second) {
  const auto take = [&](int half) {
    to[half] = two_halves(first, second);
    first -= half_to_float(uint16_t(to[half])), second -= half_to_float(uint16_t(to[half] >> 16));
  };
  take(0), take(1), take(2);
}

// Where 8 numbers stand in a tile [rows][kChunk]: rows have 64 bytes, two share all banks, so pairs permute.
DIFNET_DEVICE int place_of(int row, int eight) { return (row * 4 + (eight ^ (row >> 1 & 3))) * 8; }

// kStep numbers in halves, in a unit of their own, which is returned; place(0) and place(1) are where 8 of them go.
template <int kHalves, int kNumbers, typename PlaceOf>
DIFNET_DEVICE float store_step(uint16_t (&to)[kHalves][kNumbers], const float (&x)[kStep], PlaceOf place) {
  float largest = 0.0f;
#pragma unroll
  for (int c = 0; c < kStep; ++c) largest = larger(largest, magnitude(x[c]));
  const Scale scale = scale_of(largest);
#pragma unroll
  for (int eight = 0; eight < kStep / 8; ++eight) {
    Words words[kHalves];
#pragma unroll
    for (int two = 0; two < 4; ++two) {
      uint32_t halves[kHalves];
      const int c = eight * 8 + two * 2;
      to_halves(halves, x[c] * scale.inverse, x[c + 1] * scale.inverse);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) words[half].x[two] = halves[half];
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) *reinterpret_cast<Words*>(to[half] + place(eight)) = words[half];
  }
  return scale.unit;
}

// left [16 x 16] · right [16 x 8] of halves, from zero. The products with a low half are summed apart: that of what is
// not finite is NaN, and is left out, so that what remains is what fp32 would give.
template <int kLeft, int kRight>
DIFNET_DEVICE void finite_product(float (&to)[4], const uint32_t (&left)[kLeft][4], const uint32_t (&right)[kRight][4],
                                  int part) {
  float small[4] = {};
#pragma unroll
  for (int e = 0; e < 4; ++e) to[e] = 0.0f;
  const auto add = [&](float (&sum)[4], int l, int r) {
    mma(sum, left[l], right[r][2 * part], right[r][2 * part + 1]);
  };
  if constexpr (kLeft == 3) add(small, 2, 0), add(small, 1, 1);
  if constexpr (kRight == 2) add(small, 0, 1);
  if constexpr (kLeft >= 2) add(small, 1, 0);
  add(to, 0, 0);
#pragma unroll
  for (int e = 0; e < 4; ++e) to[e] += is_finite(small[e]) ? small[e] : 0.0f;
}

// W in halves: kWeightRows rows for each unit of work, 0 to weight_units. Rows and channels of the padding are zero.
template <int kEmbed>
DIFNET_DEVICE void prepare_weight(const Projection& psi, int unit) {
  const int row = unit * kWeightRows + warp(), channels = psi.features.channels;
  const int64_t from = int64_t(row) * channels;
  const int columns = row < psi.embed ? channels : 0;
  float largest = 0.0f;
#pragma unroll 1
  for (int c = lane(); c < columns; c += 32) {
    const float x = magnitude(load(psi.weight, from + c));
    largest = larger(largest, is_finite(x) ? x : 0.0f);  // an infinite weight leaves the others their digits
  }
  const Scale scale = scale_of(largest_of_warp(largest));
  if (lane() == 0) psi.weight_unit[row] = scale.unit;
  const int end = (channels + kChunk - 1) / kChunk * kChunk;
#pragma unroll 1
  for (int c = lane(); c < end; c += 32) {
    const float x = c < columns ? load(psi.weight, from + c) * scale.inverse : 0.0f;
    const uint16_t hi = float_to_half(x);
    uint16_t* to =
        psi.weight_halves + int64_t(c / kChunk) * (2 * kEmbed * kChunk) + place_of(row, c % kChunk / 8) + c % 8;
    to[0] = hi;
    to[kEmbed * kChunk] = float_to_half(x - half_to_float(hi));
  }
}

// Pixels of one axis in a window of the pooling: from `start` on; `step` of them belong to no later window.
struct Window {
  int32_t start, wide, step;
};

template <int kHalves, int kEmbed>
struct ProjectionMemory {
  static constexpr int kPixels = tile_nodes(kEmbed);
  struct Stage {
    alignas(16) uint16_t weight[2][kEmbed * kChunk];
    alignas(16) uint16_t features[kHalves][kPixels * kChunk];
    float unit[kChunk / kStep][kPixels];
  };
  struct Narrow {
    float weight[kNarrow][kEmbed];
    float features[2][kNarrow][kPixels];
  };
  struct Rows {
    float z[kPixels * (kEmbed + 1)];
    int32_t position[kPixels * (kEmbed + 1)];
  };
  union {
    Stage stage[2];
    Narrow narrow;
    Rows rows;  // what a tile leaves
  };
  int32_t pixel[2][kPixels];  // which one stands in the stage, or kNone
  float counted[2][kPixels];  // 1 where the statistics count it
  float weight_unit[kEmbed];  // with the sign of the slope
  float cap[kEmbed];          // −∞ where the slope is zero: nothing passes the first pixel
  float sums[kPixels / 16][kEmbed];
  float shift[kEmbed];
  Window window[3][kPixels];  // of every node, axis by axis
  // of the block, here because registers are scarce
  int32_t image, first_node, unit;
  uint32_t before;
};

constexpr int kNone = -1;

// A pixel to project: where its channels begin, its flat index or kNone, whether the statistics count it.
struct Spot {
  int64_t at;
  int32_t pixel;
  bool counted;
};

template <int kHalves, int kEmbed>
struct ProjectionTile {
  using Memory = ProjectionMemory<kHalves, kEmbed>;
  static constexpr int kPixels = Memory::kPixels, kRowWarps = kPixels / 16, kPairs = 8;
  using Number = std::conditional_t<kHalves == 1, uint16_t, float>;

  const Projection& psi;
  Memory& memory;
  float z[kPairs][4] = {};  // as mma leaves them: rows row() and row() + 8, channels channel(n) and the next
  Number x[kStep];          // of the pixel that this thread reads

  DIFNET_DEVICE ProjectionTile(const Projection& psi, Memory& memory) : psi(psi), memory(memory) {}

  // Rows and channels of a thread. me: the thread, for those who want it computed anew.
  DIFNET_DEVICE static int row(int me = thread()) { return me / 32 % kRowWarps * 16 + me % 32 / 4; }
  DIFNET_DEVICE static int channel(int n, int me = thread()) { return me / 32 / kRowWarps * 64 + n * 8 + me % 4 * 2; }
  // Which pixel and which channels of a chunk it reads; where pixels are few, half of the threads read.
  DIFNET_DEVICE static bool reads() { return thread() < kPixels * (kChunk / kStep); }
  DIFNET_DEVICE static int pixel() { return thread() % kPixels; }
  DIFNET_DEVICE static int step() { return thread() / kPixels; }
  DIFNET_DEVICE bool narrow() const { return psi.features.channels < kNarrow; }

  // W of a narrow Ψ, units and slopes; a barrier stands before it and at its end.
  DIFNET_DEVICE void begin() {
#pragma unroll 1
    for (int d = thread(); d < kEmbed; d += kThreads) {
      const float slope = psi.slope.data != nullptr && d < psi.embed ? load(psi.slope, d) : 1.0f;
      const float sign = slope < 0.0f ? -1.0f : 1.0f;
      memory.weight_unit[d] = narrow() ? sign : sign * psi.weight_unit[d];
      memory.cap[d] = slope == 0.0f ? -kInfinity : kInfinity;
    }
    if (narrow())
#pragma unroll 1
      for (int at = thread(); at < kNarrow * kEmbed; at += kThreads) {
        const int c = at / kEmbed, d = at % kEmbed;
        const bool inside = d < psi.embed && c < psi.features.channels;
        memory.narrow.weight[c][d] = inside ? load(psi.weight, d * psi.features.channels + c) : 0.0f;
      }
    barrier();
  }

  // ---- features ---------------------------------------------------------------------------------------------------
  template <bool kVectors, typename From>
  DIFNET_DEVICE void read(const From* from, int first) {
    const int left = psi.features.channels - first;
    if (kVectors && psi.features.channel_stride == 1 && left >= kStep && uint64_t(from) % 16 == 0) {
      constexpr int kWords = int(sizeof(From)) * kStep / 16;
      Words words[kWords];
#pragma unroll
      for (int n = 0; n < kWords; ++n) words[n] = reinterpret_cast<const Words*>(from)[n];
#pragma unroll
      for (int c = 0; c < kStep; ++c) {
        if constexpr (sizeof(From) == 4)
          keep(c, float_of(words[c / 4].x[c % 4]));
        else
          keep(c, uint16_t(words[c / 8].x[c % 8 / 2] >> c % 2 * 16));
      }
      return;
    }
    const int64_t stride = psi.features.channel_stride + anew(0);  // the compiler would keep all its multiples
#pragma unroll
    for (int c = 0; c < kStep; ++c) {
      keep(c, c < left ? *from : From(0));
      from += stride;
    }
  }
  DIFNET_DEVICE float wide16(uint16_t bits) const {
    return psi.features.dtype == DType::kHalf ? wide_half(bits) : wide_bf16(bits);
  }
  DIFNET_DEVICE void keep(int c, float number) { x[c] = Number(number); }
  DIFNET_DEVICE void keep(int c, uint16_t bits) {
    if constexpr (kHalves == 1)
      x[c] = bits;
    else
      x[c] = wide16(bits);
  }
  DIFNET_DEVICE float number(int c) const {
    if constexpr (kHalves == 1)
      return wide16(x[c]);
    else
      return x[c];
  }
  // The numbers of a chunk are on their way to this thread's registers, and W to shared memory.
  DIFNET_DEVICE void fetch(int64_t at, int chunk, int stage) {
    if (!narrow()) {
      const uint16_t* from = psi.weight_halves + int64_t(chunk) * (2 * kEmbed * kChunk);
      uint16_t* to = &memory.stage[stage].weight[0][0];
#pragma unroll
      for (int n = anew(thread()); n < 2 * kEmbed * kChunk / 8; n += kThreads) copy16(to + n * 8, from + n * 8);
    }
    if (!reads()) return;
    const int first = chunk * kChunk + step() * kStep;
    const int64_t begin = at + first * psi.features.channel_stride;
    if (kHalves > 1 && psi.features.dtype == DType::kFloat)
      read<true>(static_cast<const float*>(psi.features.data) + begin, first);
    else
      read<kHalves == 1>(static_cast<const uint16_t*>(psi.features.data) + begin, first);
  }
  DIFNET_DEVICE void put(const Spot& spot, int stage) {
    if (!reads()) return;
    const int me = anew(thread()), pixel = me % kPixels, step = me / kPixels;
    if (step == 0) {
      memory.pixel[stage][pixel] = spot.pixel;
      memory.counted[stage][pixel] = spot.counted ? 1.0f : 0.0f;
    }
    if (narrow()) {
      if (step > 0) return;
#pragma unroll
      for (int c = 0; c < kStep; ++c) memory.narrow.features[stage][c][pixel] = number(c);
      return;
    }
    float numbers[kStep];
#pragma unroll
    for (int c = 0; c < kStep; ++c) numbers[c] = number(c);
    auto& to = memory.stage[stage];
    to.unit[step][pixel] =
        store_step(to.features, numbers, [&](int eight) { return place_of(pixel, step * 2 + eight); });
  }

  // ---- products ---------------------------------------------------------------------------------------------------
  DIFNET_DEVICE void multiply(int stage) {
    if (narrow()) return multiply_narrow(stage);
    const auto& from = memory.stage[stage];
    const int mine = anew(thread()), me = mine % 32;  // or their addresses would cost the registers of others
    const int first_row = mine / 32 % kRowWarps * 16, first_channel = mine / 32 / kRowWarps * 64;
#pragma unroll 1
    for (int k = 0; k < kChunk / kStep; ++k) {
      uint32_t left[kHalves][4];
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
        ldmatrix4(left[half], from.features[half] + place_of(first_row + me % 16, k * 2 + me / 16));
      const float unit[2] = {from.unit[k][row(mine)], from.unit[k][row(mine) + 8]};
#pragma unroll
      for (int n = 0; n < kPairs / 2; ++n) {
        uint32_t right[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          ldmatrix4(right[half],
                    from.weight[half] + place_of(first_channel + n * 16 + me / 16 * 8 + me % 8, k * 2 + me / 8 % 2));
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          float product[4];
          finite_product(product, left, right, part);
#pragma unroll
          for (int e = 0; e < 4; ++e) z[n * 2 + part][e] = fma(product[e], unit[e / 2], z[n * 2 + part][e]);  // (Ψ1)
        }
      }
    }
  }
  DIFNET_DEVICE void multiply_narrow(int stage) {
    const int me = anew(thread());
#pragma unroll 1
    for (int c = 0; c < psi.features.channels; ++c) {
      const float* f = memory.narrow.features[stage][c] + row(me);
      const float first = f[0], second = f[8];
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        const Two w = *reinterpret_cast<const Two*>(memory.narrow.weight[c] + channel(n, me));
#pragma unroll
        for (int e = 0; e < 4; ++e) z[n][e] = fma(w.x[e % 2], e < 2 ? first : second, z[n][e]);  // (Ψ1)
      }
    }
  }

  // z with the units of W, as rows [pixel][kEmbed + 1].
  DIFNET_DEVICE void leave_rows(float* rows) const {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int d = channel(n) + e % 2;
        rows[(row() + e / 2 * 8) * (kEmbed + 1) + d] = z[n][e] * memory.weight_unit[d];
      }
  }
  DIFNET_DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) z[n][e] = 0.0f;
  }

  // z of `count` tiles of pixels, one after the other: where(n) is the Spot of this thread's pixel() in the n-th, asked
  // in order; take(n, stage) finds z without the units of W, and clears it. A barrier
  // stands before the call.
  template <typename Where, typename Take>
  DIFNET_DEVICE void run(int count, Where where, Take take) {
    begin();
    const int chunks = (psi.features.channels + kChunk - 1) / kChunk;
    Spot spot{};
    // what is on its way, a turn ahead of the products, so that the code which reads stands here once
    int tile = 0, chunk = 0;
#pragma unroll 1
    for (int stage = 1, now = -1; now < count; stage ^= 1) {
      const bool complete = chunk == 0;  // of the tile before
      if (now >= 0) put(spot, stage);
      if (complete && tile < count) spot = where(tile);
      wait_for_copies();
      barrier();
      if (tile < count) fetch(spot.at, chunk, stage ^ 1);
      if (now >= 0) {
        multiply(stage);
        if (complete) take(now, stage);
      }
      now = tile;
      if (++chunk == chunks) chunk = 0, ++tile;
    }
  }
};

}  // namespace difnet::cuda
