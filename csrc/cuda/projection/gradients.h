// What is made of ∂z of a tile of pixels: ∂f = Wᵀ ∂z (Ψ3) and the parts of ∂W = Σ ∂z fᵀ (Ψ4). Operands are fp16 halves
// in units of 16 numbers along the sum, as in projection/tile.h; 16 terms are summed from zero and added in fp32.
#pragma once

#include "cuda/projection/gradient.h"

namespace difnet::cuda {

// Where 8 numbers stand in a tile with rows of kWidth.
template <int kWidth>
DIFNET_DEVICE int eight_at(int row, int eight) {
  if constexpr (kWidth == kChunk)
    return place_of(row, eight);
  else
    return chunk_at<kWidth>(row, eight);
}

// ---- ∂f -------------------------------------------------------------------------------------------------------------
template <int kEmbed>
struct FeatureGradientMemory {
  static constexpr int kPixels = tile_nodes(kEmbed);
  alignas(16) uint16_t gradient[2][kPixels * kEmbed];  // ∂z times the units of W
  alignas(16) uint16_t weight[2][kEmbed * kChunk];
  float unit[kEmbed / kStep][kPixels];
  float rows[kPixels * (kChunk + 1)];  // what leaves
  int64_t place[kPixels];              // of the pixels in ∂f
};

// (Ψ3) of a tile and of kFeatureChunks chunks of channels.
template <int kEmbed>
DIFNET_DEVICE void feature_gradient(const ProjectionBackward& c, FeatureGradientMemory<kEmbed>& memory, int round,
                                    int tile, int group) {
  constexpr int kPixels = FeatureGradientMemory<kEmbed>::kPixels, kRowWarps = kPixels / 16;
  constexpr int kColumns = kChunk / (4 / kRowWarps) / 16;  // pairs of 8 columns of a warp
  const int64_t number = int64_t(round) * c.round_tiles + tile;
  if (number >= int64_t(c.images) * c.tiles) return;
  const int image = int(number / c.tiles), first = int(number % c.tiles) * kPixels;
  const int begin = group * kFeatureChunks, end = begin + kFeatureChunks < c.chunks ? begin + kFeatureChunks : c.chunks;
  const auto copy_weight = [&](int chunk) {
    const uint16_t* from = c.psi.weight_halves + int64_t(chunk) * (2 * kEmbed * kChunk);
#pragma unroll 1
    for (int n = thread(); n < 2 * kEmbed * kChunk / 8; n += kThreads)
      copy16(&memory.weight[0][0] + n * 8, from + n * 8);
  };
  copy_weight(begin);
  const float* from = gradient_of<kEmbed>(c, round, tile);
#pragma unroll 1
  for (int at = thread(); at < kPixels * (kEmbed / kStep); at += kThreads) {
    const int row = at / (kEmbed / kStep), step = at % (kEmbed / kStep);
    float x[kStep];
#pragma unroll
    for (int n = 0; n < kStep; ++n) x[n] = from[row * kEmbed + step * kStep + n] * c.psi.weight_unit[step * kStep + n];
    memory.unit[step][row] =
        store_step(memory.gradient, x, [&](int eight) { return eight_at<kEmbed>(row, step * 2 + eight); });
  }
  if (thread() < kPixels) {
    const int pixel = first + thread();
    memory.place[thread()] = pixel < pixels_of(c) ? image * c.grad_features.batch_stride +
                                                        place_in(c.grad_features, c.psi.windows.pixels, pixel)
                                                  : -1;
  }
  const int me = lane(), first_row = warp() % kRowWarps * 16, first_column = warp() / kRowWarps * (kColumns * 16);
#pragma unroll 1
  for (int chunk = begin; chunk < end; ++chunk) {
    wait_for_copies();
    barrier();
    float sum[kColumns * 2][4] = {};
#pragma unroll 1
    for (int k = 0; k < kEmbed / kStep; ++k) {
      uint32_t left[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        ldmatrix4(left[half], memory.gradient[half] + eight_at<kEmbed>(first_row + me % 16, k * 2 + me / 16));
      const float unit[2] = {memory.unit[k][first_row + me / 4], memory.unit[k][first_row + me / 4 + 8]};
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        uint32_t right[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          ldmatrix4_transposed(right[half],
                               memory.weight[half] + place_of(k * 16 + me % 16, first_column / 8 + n * 2 + me / 16));
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          float product[4];
          finite_product(product, left, right, part);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sum[n * 2 + part][e] = fma(product[e], unit[e / 2], sum[n * 2 + part][e]);  // (Ψ3)
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns * 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        memory.rows[(first_row + me / 4 + e / 2 * 8) * (kChunk + 1) + first_column + n * 8 + me % 4 * 2 + e % 2] =
            sum[n][e];
    barrier();
    if (chunk + 1 < end) copy_weight(chunk + 1);
    const bool along_channels = c.grad_features.channel_stride == 1;
#pragma unroll 1
    for (int at = thread(); at < kPixels * kChunk; at += kThreads) {
      const int row = along_channels ? at / kChunk : at % kPixels, column = along_channels ? at % kChunk : at / kPixels;
      const int channel = chunk * kChunk + column;
      if (memory.place[row] < 0 || channel >= c.psi.features.channels) continue;
      store(c.grad_features.dtype, c.grad_features.data, memory.place[row] + channel * c.grad_features.channel_stride,
            memory.rows[row * (kChunk + 1) + column]);
    }
  }
}

// ---- ∂W -------------------------------------------------------------------------------------------------------------
template <int kHalves, int kEmbed>
struct WeightGradientMemory {
  static constexpr int kPixels = tile_nodes(kEmbed), kSteps = kPixels / kStep;
  alignas(16) uint16_t gradient[2][kEmbed * kPixels];  // ∂zᵀ
  alignas(16) uint16_t features[kHalves][kChunk * kPixels];
  float gradient_unit[kSteps][kEmbed];
  float feature_unit[kSteps][kChunk];
  int64_t place[kPixels];  // of the pixels in f
  uint32_t before;
};

// Whether the block is the last of `many` at a counter; what the others wrote can then be read.
DIFNET_DEVICE bool is_last(uint32_t* counter, int many, uint32_t* before) {
  barrier();
  if (thread() == 0) *before = add_acquire_release(counter, 1);
  barrier();
  return *before == uint32_t(many - 1);
}

// to [count] = the sum of `many` rows of `from`, in their order.
DIFNET_DEVICE void add_rows(float* to, const float* from, int many, int count) {
#pragma unroll 1
  for (int at = thread(); at < count; at += kThreads) {
    float sum = 0.0f;
#pragma unroll 4
    for (int n = 0; n < many; ++n) sum += from[int64_t(n) * count + at];
    to[at] = sum;
  }
}

// (Ψ4) a range of the round's tiles and one chunk of channels.
template <int kHalves, int kEmbed>
DIFNET_DEVICE void weight_gradient(const ProjectionBackward& c, WeightGradientMemory<kHalves, kEmbed>& memory,
                                   int round, int range, int chunk) {
  using Memory = WeightGradientMemory<kHalves, kEmbed>;
  constexpr int kPixels = Memory::kPixels, kSteps = Memory::kSteps, kBlocks = kEmbed / 64;  // of 16 rows a warp
  const int all = c.images * c.tiles, me = lane();
  const int end = (range + 1) * c.range_tiles < c.round_tiles ? (range + 1) * c.range_tiles : c.round_tiles;
  float sum[kBlocks][4][4] = {};
#pragma unroll 1
  for (int tile = range * c.range_tiles; tile < end; ++tile) {
    const int64_t number = int64_t(round) * c.round_tiles + tile;
    if (number >= all) break;
    const int image = int(number / c.tiles), first = int(number % c.tiles) * kPixels;
    barrier();
    if (thread() < kPixels) {
      const int pixel = first + thread();
      const Volume& f = c.psi.features;
      memory.place[thread()] =
          pixel < pixels_of(c) ? image * f.batch_stride + place_in(f, c.psi.windows.pixels, pixel) : -1;
    }
    const float* from = gradient_of<kEmbed>(c, round, tile);
#pragma unroll 1
    for (int at = thread(); at < kEmbed * kSteps; at += kThreads) {
      const int d = at % kEmbed, step = at / kEmbed;
      float x[kStep];
#pragma unroll
      for (int n = 0; n < kStep; ++n) x[n] = from[(step * kStep + n) * kEmbed + d];
      memory.gradient_unit[step][d] =
          store_step(memory.gradient, x, [&](int eight) { return eight_at<kPixels>(d, step * 2 + eight); });
    }
    barrier();
    if (thread() < kChunk * kSteps) {
      const int column = thread() % kChunk, step = thread() / kChunk, channel = chunk * kChunk + column;
      const BatchField numbers{c.psi.features.data, 0, 0, 0, 0, c.psi.features.dtype};
      float x[kStep];
#pragma unroll
      for (int n = 0; n < kStep; ++n) {
        const int64_t place = memory.place[step * kStep + n];
        const bool inside = place >= 0 && channel < c.psi.features.channels;
        x[n] = inside ? load(numbers, place + channel * c.psi.features.channel_stride) : 0.0f;
      }
      memory.feature_unit[step][column] =
          store_step(memory.features, x, [&](int eight) { return eight_at<kPixels>(column, step * 2 + eight); });
    }
    barrier();
#pragma unroll 1
    for (int k = 0; k < kSteps; ++k) {
      uint32_t right[2][kHalves][4];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
          ldmatrix4(right[n][half],
                    memory.features[half] + eight_at<kPixels>(n * 16 + me / 16 * 8 + me % 8, k * 2 + me / 8 % 2));
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int row = (block * 4 + warp()) * 16;
        uint32_t left[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          ldmatrix4(left[half], memory.gradient[half] + eight_at<kPixels>(row + me % 16, k * 2 + me / 16));
        const float unit[2] = {memory.gradient_unit[k][row + me / 4], memory.gradient_unit[k][row + me / 4 + 8]};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float product[4];
          finite_product(product, left, right[n / 2], n % 2);
          const Two of_features = *reinterpret_cast<const Two*>(memory.feature_unit[k] + n * 8 + me % 4 * 2);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sum[block][n][e] = fma(product[e] * unit[e / 2], of_features.x[e % 2], sum[block][n][e]);  // (Ψ4)
        }
      }
    }
  }
  constexpr int kCount = kEmbed * kChunk;
  const int64_t of_round = int64_t(round) * c.chunks + chunk;
  float* to = c.part + (of_round * c.ranges + range) * kCount;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        to[((block * 4 + warp()) * 16 + me / 4 + e / 2 * 8) * kChunk + n * 8 + me % 4 * 2 + e % 2] = sum[block][n][e];
  if (!is_last(parts_made(c, round, chunk), c.ranges, &memory.before)) return;
  add_rows(c.round_part + of_round * kCount, c.part + of_round * c.ranges * kCount, c.ranges, kCount);
  if (!is_last(rounds_made(c, chunk), c.rounds, &memory.before)) return;
#pragma unroll 1
  for (int at = thread(); at < kCount; at += kThreads) {
    const int d = at / kChunk, channel = chunk * kChunk + at % kChunk;
    if (d >= c.psi.embed || channel >= c.psi.features.channels) continue;
    float total = 0.0f;
    for (int n = 0; n < c.rounds; ++n) total += c.round_part[(int64_t(n) * c.chunks + chunk) * kCount + at];
    c.grad_weight[int64_t(d) * c.psi.features.channels + channel] = total;
  }
}

}  // namespace difnet::cuda
