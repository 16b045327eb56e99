// Products of 16 rows of a warp with tiles in shared memory, by mma.sync: one fp16 product, or three of high and low
// halves.
#pragma once

#include "cuda/memory.h"

namespace difnet::cuda {

struct alignas(16) Four {
  float x[4];
};
struct alignas(8) Two {
  float x[2];
};

// [16 x 8] of a product: that of the high halves, and the two with a low half, which are 2⁻¹¹ of it. Apart, because
// the matrix units truncate: only the products of high halves do so at full size.
template <int kHalves>
struct Product {
  float large[4] = {}, small[4] = {};

  DIFNET_DEVICE void add(const uint32_t (&a)[kHalves][4], const uint32_t (&b)[kHalves][2]) {
    if constexpr (kHalves == 2) {
      mma(small, a[0], b[1][0], b[1][1]);
      mma(small, a[1], b[0][0], b[0][1]);
    }
    mma(large, a[0], b[0][0], b[0][1]);
  }
  DIFNET_DEVICE float sum(int e) const { return kHalves == 2 ? large[e] + small[e] : large[e]; }
};

// Two numbers in halves, one register for every half.
template <int kHalves>
DIFNET_DEVICE void to_halves(uint32_t (&to)[kHalves], float first, float second) {
  to[0] = two_halves(first, second);
  if constexpr (kHalves == 2)
    to[1] = two_halves(first - half_to_float(uint16_t(to[0])), second - half_to_float(uint16_t(to[0] >> 16)));
}
// Writes them where two such numbers stand in memory, `at` in pairs.
template <int kHalves>
DIFNET_DEVICE void store_halves(uint16_t* hi, uint16_t* lo, int64_t at, float first, float second) {
  uint32_t halves[kHalves];
  to_halves(halves, first, second);
  reinterpret_cast<uint32_t*>(hi)[at] = halves[0];
  if constexpr (kHalves == 2) reinterpret_cast<uint32_t*>(lo)[at] = halves[1];
}

// The warp's rows as the left operand; of a width that is no multiple of 16 the last step has only its first half.
template <int kWidth, int kHalves>
struct Rows {
  static constexpr int kSteps = kWidth / 16, kRest = kWidth % 16 != 0;
  uint32_t whole[kSteps][kHalves][4];
  uint32_t rest[kHalves][2];

  // from: where the numbers of this lane begin
  DIFNET_DEVICE static void load_step(uint32_t (&to)[4], const uint16_t* from, int k) {
#pragma unroll
    for (int x = 0; x < 4; ++x)
      to[x] = *reinterpret_cast<const uint32_t*>(from + (x % 2) * 8 * kWidth + k * 16 + x / 2 * 8);
  }
  // from rows [nodes][kWidth] in global memory, of which `first` is the warp's first
  DIFNET_DEVICE void load(const uint16_t* hi, const uint16_t* lo, int64_t first) {
    const int64_t at = (first + lane() / 4) * kWidth + lane() % 4 * 2;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint16_t* from = (half == 0 ? hi : lo) + at;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_step(whole[k][half], from, k);
      if constexpr (kRest)
#pragma unroll
        for (int x = 0; x < 2; ++x)
          rest[half][x] = *reinterpret_cast<const uint32_t*>(from + x * 8 * kWidth + kSteps * 16);
    }
  }
};

// me: the lane, for callers that want the addresses computed anew.

// product[p] [16 x 8] += one step k of rows · columnsᵀ, for the nodes 16 n + 8 p and on of a tile
template <int kWidth, int kHalves, int kNumbers>
DIFNET_DEVICE void add_step(Product<kHalves> (&product)[2], const uint32_t (&left)[kHalves][4], int n, int k,
                            const uint16_t (&columns)[kHalves][kNumbers], int me = lane()) {
  const int node = n * 16 + me / 16 * 8 + me % 8;
  uint32_t first[kHalves][2], second[kHalves][2];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    uint32_t b[4];
    ldmatrix4(b, columns[half] + chunk_at<kWidth>(node, k * 2 + me / 8 % 2));
    first[half][0] = b[0], first[half][1] = b[1], second[half][0] = b[2], second[half][1] = b[3];
  }
  product[0].add(left, first);
  product[1].add(left, second);
}
// The same for the half step at the end.
template <int kWidth, int kHalves, int kNumbers>
DIFNET_DEVICE void add_rest(Product<kHalves> (&product)[2], const uint32_t (&rest)[kHalves][2], int n,
                            const uint16_t (&columns)[kHalves][kNumbers], int me = lane()) {
  const int node = n * 16 + me / 8 % 2 * 8 + me % 8;
  uint32_t left[kHalves][4], b[4];  // both halves at a time; of one half the lanes from 16 on read what others read
  ldmatrix4(b, columns[me / 16 % kHalves] + chunk_at<kWidth>(node, kWidth / 8 - 1));
#pragma unroll
  for (int half = 0; half < kHalves; ++half)
    left[half][0] = rest[half][0], left[half][1] = rest[half][1], left[half][2] = 0, left[half][3] = 0;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    uint32_t right[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) right[half][0] = b[half * 2 + part], right[half][1] = 0;
    product[part].add(left, right);
  }
}
template <int kWidth, int kHalves, int kNumbers>
DIFNET_DEVICE void add_products(Product<kHalves> (&product)[2], const Rows<kWidth, kHalves>& rows, int n,
                                const uint16_t (&columns)[kHalves][kNumbers], int me = lane()) {
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) add_step<kWidth>(product, rows.whole[k], n, k, columns, me);
  if constexpr (Rows<kWidth, kHalves>::kRest) add_rest<kWidth>(product, rows.rest, n, columns, me);
}

// product [16 x 8] += weights [16 x 16] · rows 16 k and on of a tile, numbers 8 n and on of each; kAtOnce such
template <int kAtOnce, int kWidth, int kHalves, int kNumbers>
DIFNET_DEVICE void add_weighted(Product<kHalves> (&product)[kAtOnce], int n, int k,
                                const uint32_t (&weights)[kHalves][4], const uint16_t (&rows)[kHalves][kNumbers],
                                int me = lane()) {
  const int node = k * 16 + me / 8 % 2 * 8 + me % 8;
  uint32_t right[kAtOnce][kHalves][2];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    uint32_t b[2 * kAtOnce];
    if constexpr (kAtOnce == 2)
      ldmatrix4_transposed(b, rows[half] + chunk_at<kWidth>(node, n + me / 16));
    else
      ldmatrix2_transposed(b, rows[half] + chunk_at<kWidth>(node, n));
#pragma unroll
    for (int part = 0; part < kAtOnce; ++part)
      right[part][half][0] = b[2 * part], right[part][half][1] = b[2 * part + 1];
  }
#pragma unroll
  for (int part = 0; part < kAtOnce; ++part) product[part].add(weights, right[part]);
}

}  // namespace difnet::cuda
