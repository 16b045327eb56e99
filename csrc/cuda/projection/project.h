// Ψ1 in evaluation, for a run of nodes in a row of the grid: the pixels of their windows are a box, which a block takes
// 64 at a time. z = W f of a tile never leaves the block: it is normalised, and every window keeps its largest value.
//
// f and W are split into fp16 halves, 64 channels at a time, each such chunk in units of one power of two that brings
// its largest number just below 2¹⁵; three products are summed from zero for every chunk and added in fp32. So what
// 16 bits hold is exact, and fp32 keeps 22 digits of what is not far smaller than the largest number of its chunk.
// Fewer than kNarrow channels, as of an image, are fp32 multiply-adds: the matrix units would multiply zeros.
#pragma once

#include "cuda/cascade/projected_arguments.h"
#include "cuda/projection/windows.h"
#include "cuda/walk/prepare.h"

namespace difnet::cuda {

constexpr int kPixels = 64;  // of a tile: 16 for every warp
constexpr int kChunk = 64;   // channels at a time
constexpr int kNarrow = 16;  // fewer of them, as of an image, take multiply-adds

// ψ_t of a run of nodes is written.
DIFNET_DEVICE uint32_t* projected(const ProjectedCascade& c, int t, int image) {
  return ready(c, c.walks, 0, 0) + t * c.images + image;
}
DIFNET_DEVICE uint32_t* end_of_counters(const ProjectedCascade& c) { return projected(c, c.walks, 0); }

template <int kEmbed>
struct ProjectMemory {
  alignas(128) uint16_t chunk[2][2][64 * kChunk];  // of f and of W, in halves; for f then z of the tile
  float best[kRun * (kEmbed + 1)];
  int64_t place[2][kPixels];                  // where the channels of a pixel, and of a row of W, begin
  int32_t first_node[kPixels], end[kPixels];  // the nodes of the run whose windows hold it
  float vector[Vector::kCount][kEmbed];
  float warps[4];

  // [kPixels][kEmbed] in the place of f; neighbours in a column lie in other banks
  DIFNET_DEVICE float& z(int pixel, int channel) {
    return reinterpret_cast<float*>(chunk[0])[pixel * kEmbed + (channel ^ pixel % 8 * 8)];
  }
};

DIFNET_DEVICE float number(DType dtype, const void* data, int64_t at) {
  const BatchField field{const_cast<void*>(data), 0, 0, 0, 0, dtype};
  return load(field, at);
}
DIFNET_DEVICE const void* at(const void* data, DType dtype, int64_t place) {
  return static_cast<const char*>(data) + place * (dtype == DType::kFloat ? 4 : 2);
}

// ---- chunks in fp16 halves ------------------------------------------------------------------------------------------
// What a chunk is made of: 64 rows (pixels of f, or rows of W) of 64 channels.
struct Chunk {
  const void* data;
  const int64_t* place;  // where the row r begins
  int64_t stride;        // from channel to channel
  int rows, channels;    // what is not there is zero
  DType dtype;
  bool along_rows;  // whose numbers are neighbours
};

// Pair n of this thread: act(row, channel, where it stands in the tile). Its two floats stand where its halves will.
template <typename Act>
DIFNET_DEVICE void each_pair(bool along_rows, Act act) {
#pragma unroll 4
  for (int at = anew(thread()); at < 64 * kChunk / 2; at += kThreads) {
    const int row = along_rows ? at % 64 : at / (kChunk / 2);
    const int channel = (along_rows ? at / 64 : at % (kChunk / 2)) * 2;
    act(row, channel, chunk_at<kChunk>(row, channel / 8) + channel % 8);
  }
}

// Writes the floats; the largest magnitude that is finite.
template <typename Number, typename Wide>
DIFNET_DEVICE float copy_chunk(uint16_t (&to)[2][64 * kChunk], const Chunk& chunk, const Number* numbers, Wide wide) {
  float reach = 0.0f;
  each_pair(chunk.along_rows, [&](int row, int channel, int at) {
    const Number* from = numbers + chunk.place[row] + channel * chunk.stride;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float x = row < chunk.rows && channel + e < chunk.channels ? wide(from[e * chunk.stride]) : 0.0f;
      reach = larger(reach, is_finite(x) ? magnitude(x) : 0.0f);
      *reinterpret_cast<float*>(to[e] + at) = x;
    }
  });
  return reach;
}

// The chunk in halves, in units of a power of two; returns its exponent.
DIFNET_DEVICE int split_chunk(uint16_t (&to)[2][64 * kChunk], const Chunk& chunk, float (&warps)[4]) {
  const bool half = chunk.dtype == DType::kHalf;
  float reach = chunk.dtype == DType::kFloat
                    ? copy_chunk(to, chunk, static_cast<const float*>(chunk.data), [](float x) { return x; })
                    : copy_chunk(to, chunk, static_cast<const uint16_t*>(chunk.data),
                                 [=](uint16_t bits) { return half ? wide_half(bits) : wide_bf16(bits); });
  reach = largest_of_warp(reach);
  barrier();  // what the warps left before is read
  if (lane() == 0) warps[warp()] = reach;
  barrier();  // all four are there
  reach = larger(larger(warps[0], warps[1]), larger(warps[2], warps[3]));
  const int shrink = clamp(exponent_of(reach) - 14, -100, 113);
  const float scale = power_of_two(-shrink);
  each_pair(chunk.along_rows, [&](int, int, int at) {
    uint32_t both[2];
    to_halves(both, *reinterpret_cast<const float*>(to[0] + at) * scale,
              *reinterpret_cast<const float*>(to[1] + at) * scale);
    *reinterpret_cast<uint32_t*>(to[0] + at) = both[0];
    *reinterpret_cast<uint32_t*>(to[1] + at) = both[1];
  });
  return shrink;
}

// ---- a run of nodes -------------------------------------------------------------------------------------------------
template <int kEmbed>
struct Project {
  static_assert(kEmbed == 64 && kPixels == 64, "a chunk of W has as many rows as one of features");
  const ProjectedCascade& c;
  ProjectMemory<kEmbed>& memory;
  const Level& level;
  int t, image;
  int node[3];            // the first of the run
  int count;              // nodes of the run
  int begin[3], size[3];  // the box of pixels

  DIFNET_DEVICE Project(const ProjectedCascade& c, ProjectMemory<kEmbed>& memory, int t, int image, int run)
      : c(c), memory(memory), level(c.level[t]), t(t), image(image) {
    const int runs = (c.grid[2] + kRun - 1) / kRun;
    node[2] = run % runs * kRun, node[1] = run / runs % c.grid[1], node[0] = run / runs / c.grid[1];
    count = c.grid[2] - node[2] < kRun ? c.grid[2] - node[2] : kRun;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int last = node[axis] + (axis == 2 ? count - 1 : 0);
      begin[axis] = window_begin(node[axis], level.features.size[axis], c.grid[axis]);
      size[axis] = window_end(last, level.features.size[axis], c.grid[axis]) - begin[axis];
    }
  }

  // Pixels of the tile from `first` on: where they lie, and whose they are.
  DIFNET_DEVICE void place_pixels(int first, int pixels) const {
    const int me = anew(thread());
    if (me >= kPixels) return;
    const FeatureMap& map = level.features;
    const int pixel = first + me < pixels ? first + me : pixels - 1;
    const int x = begin[2] + pixel % size[2], y = begin[1] + pixel / size[2] % size[1];
    const int z = begin[0] + pixel / size[2] / size[1];
    memory.place[0][me] = z * map.stride[0] + y * map.stride[1] + x * map.stride[2];
    // window n holds x where n S / G < x + 1 and (n + 1) S / G > x
    const int from = int(int64_t(x) * c.grid[2] / map.size[2]) - node[2];
    const int after = int((int64_t(x + 1) * c.grid[2] + map.size[2] - 1) / map.size[2]) - node[2];
    memory.first_node[me] = from < 0 ? 0 : from;
    memory.end[me] = first + me < pixels ? (after < count ? after : count) : 0;
  }

  // (Ψ1) z = W f of the pixels of a tile, in memory.z. again: W is there from the tile before.
  DIFNET_DEVICE void multiply(int& shrink_of_weight, bool again) const {
    const FeatureMap& map = level.features;
    if (map.channels < kNarrow) return multiply_narrow(again);
    const int me = anew(lane()), first_row = anew(warp()) * 16;  // no address is kept from run to run
    float total[kEmbed / 8][4] = {};
#pragma unroll 1
    for (int channel = 0; channel < map.channels; channel += kChunk) {
      const int left = map.channels - channel;
      int shrink = 0;
#pragma unroll 1  // one code for both
      for (int which = 0; which < (again ? 1 : 2); ++which) {
        Chunk chunk;
        if (which == 0) {
          const int64_t first = image * map.batch_stride + channel * map.channel_stride;
          chunk = {at(map.data, level.of_features, first),
                   memory.place[0],
                   map.channel_stride,
                   kPixels,
                   left,
                   level.of_features,
                   map.stride[2] <= map.channel_stride};
        } else {
          chunk = {at(level.weight, level.of_weight, channel),
                   memory.place[1],
                   1,
                   level.embed,
                   left,
                   level.of_weight,
                   false};
        }
        const int found = split_chunk(memory.chunk[which], chunk, memory.warps);
        if (which == 0)
          shrink = found;
        else
          shrink_of_weight = found;
      }
      barrier();  // both are there
      Product<2> product[kEmbed / 16][2];
      const int steps = left < kChunk ? (left + 15) / 16 : kChunk / 16;
#pragma unroll 1
      for (int k = 0; k < steps; ++k) {
        uint32_t rows[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int x = 0; x < 4; ++x) {
            const int row = first_row + me / 4 + x % 2 * 8;
            const uint16_t* from = memory.chunk[0][half] + chunk_at<kChunk>(row, k * 2 + x / 2) + me % 4 * 2;
            rows[half][x] = *reinterpret_cast<const uint32_t*>(from);
          }
#pragma unroll
        for (int n = 0; n < kEmbed / 16; ++n) add_step<kChunk>(product[n], rows, n, k, memory.chunk[1], me);
      }
      const float of_features = power_of_two(shrink), of_weight = power_of_two(shrink_of_weight);
#pragma unroll
      for (int n = 0; n < kEmbed / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[n][e] += product[n / 2][n % 2].sum(e) * of_features * of_weight;
      barrier();  // both are read
    }
#pragma unroll
    for (int n = 0; n < kEmbed / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) memory.z(first_row + me / 4 + e / 2 * 8, n * 8 + me % 4 * 2 + e % 2) = total[n][e];
    barrier();  // z is there
  }

  // The same for few channels: a thread has one row of W, and half of the pixels.
  DIFNET_DEVICE void multiply_narrow(bool again) const {
    const FeatureMap& map = level.features;
    const int me = anew(thread());
    float* f = reinterpret_cast<float*>(memory.chunk[1]);  // [channel][pixel]
    float* w = f + kNarrow * kPixels;                      // [channel][row]
    const int64_t first = image * map.batch_stride;
#pragma unroll 1
    for (int at = me; at < map.channels * kPixels; at += kThreads)
      f[at] = number(level.of_features, map.data,
                     first + at / kPixels * map.channel_stride + memory.place[0][at % kPixels]);
#pragma unroll 1
    for (int at = me; at < (again ? 0 : map.channels * kEmbed); at += kThreads) {
      const int row = at % kEmbed, channel = at / kEmbed;
      w[at] = row < level.embed ? number(level.of_weight, level.weight, memory.place[1][row] + channel) : 0.0f;
    }
    barrier();  // f and W are there
#pragma unroll 1
    for (int pixel = me / kEmbed; pixel < kPixels; pixel += kThreads / kEmbed) {
      float sum = 0.0f;
#pragma unroll 1
      for (int k = 0; k < map.channels; ++k) sum += w[k * kEmbed + me % kEmbed] * f[k * kPixels + pixel];
      memory.z(pixel, me % kEmbed) = sum;
    }
    barrier();  // the narrow z is there
  }

  // The vectors of the normalisation, and where rows of W begin.
  DIFNET_DEVICE void begin_run() const {
    const int me = anew(thread());
    if (me >= kEmbed) return;
    const bool real = me < level.embed;
#pragma unroll 1
    for (int which = 0; which < Vector::kCount; ++which) {
      const bool given = level.vector[which] != nullptr && real;
      memory.vector[which][me] = given ? number(level.of_vector[which], level.vector[which], me) : 0.0f;
    }
    memory.place[1][me] = real ? int64_t(me) * level.features.channels : 0;
  }

  DIFNET_DEVICE void run() const {
    constexpr int kShares = kThreads / kEmbed, kNodes = kRun / kShares;  // threads of a channel, nodes of a thread
    const int me = anew(thread()), channel = me % kEmbed, own = me / kEmbed * kNodes;
    begin_run();
    barrier();  // the vectors are there
    // as batch_norm.normalise; the bias moves the mean and not the map
    const float centre = memory.vector[Vector::kMean][channel] - memory.vector[Vector::kOffset][channel];
    const float shift = memory.vector[Vector::kShift][channel];
    float scale = level.vector[Vector::kSlope] == nullptr ? 1.0f : memory.vector[Vector::kSlope][channel];
    if (level.vector[Vector::kVariance] != nullptr)
      scale = inverse_root(memory.vector[Vector::kVariance][channel] + level.eps) * scale;
    for (int n = own; n < own + kNodes; ++n) memory.best[n * (kEmbed + 1) + channel] = -kInfinity;
    int shrink_of_weight = 0;
    const int pixels = size[0] * size[1] * size[2];
#pragma unroll 1
    for (int first = 0; first < pixels; first += kPixels) {
      barrier();  // the tile before is pooled
      place_pixels(first, pixels);
      barrier();  // the places of the next one are there
      multiply(shrink_of_weight, first > 0 && level.features.channels <= kChunk);
#pragma unroll 1
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const int from = memory.first_node[pixel], end = memory.end[pixel];
        const float x = (memory.z(pixel, channel) - centre) * scale + shift;
        for (int n = from < own ? own : from; n < end && n < own + kNodes; ++n) {
          float& best = memory.best[n * (kEmbed + 1) + channel];
          if (x > best || x != x) best = x;  // NaN wins, and stays
        }
      }
    }
    const int64_t in_image = (int64_t(node[0]) * c.grid[1] + node[1]) * c.grid[2] + node[2];
    for (int n = own; n < own + kNodes && n < count; ++n) {
      const int64_t at = int64_t(image) * c.nodes + in_image + n;
      // a column that no row sees belongs to a node that does not exist
      const bool exists = c.column_bias[t] == nullptr || c.column_bias[t][at] > -kInfinity;
      const float x = exists ? memory.best[n * (kEmbed + 1) + channel] * c.root : 0.0f;
      if (channel < level.embed) store(level.psi, c.psi[t].data, at * level.embed + channel, x);
    }
    barrier();
    if (thread() == 0) add_release(projected(c, t, image), 1);
  }
};

// psi_statistics, once ψ_t of the image is there.
template <int kEmbed>
DIFNET_DEVICE void wait_for_psi(const ProjectedCascade& c, int t, int image) {
  if (thread() == 0) wait_for(projected(c, t, image), uint32_t(c.runs), "a block waits for psi of its image", __LINE__);
  barrier();
}

}  // namespace difnet::cuda
