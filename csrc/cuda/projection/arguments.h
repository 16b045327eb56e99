// What a launch of Ψ is asked: plain data, the same for the host, the card and the tests.
#pragma once

#include <cstdint>
#include <numeric>

#include "cuda/arguments.h"

namespace difnet::cuda {

constexpr int kChunk = 32;   // channels of the features at a time
constexpr int kStep = 16;    // channels of one mma, which share a unit of the features
constexpr int kNarrow = 16;  // channels from which the matrix units multiply; below, multiply-adds

// A tensor (B, C, Z, Y, X) of any strides, in elements; features are fp32, fp16 or bf16.
struct Volume {
  void* data;
  int64_t batch_stride, channel_stride, stride[3];
  int32_t channels;
  DType dtype;
};

// Adaptive pooling along three axes (Z, Y, X); axes that a signal or an image does not have are 1.
struct Windows {
  int32_t pixels[3], nodes[3];
  int32_t widest[3];  // pixels of the widest window of each axis
};

// Contiguous numbers of any dtype but fp64; without data where there are none.
struct Array {
  const void* data;
  DType dtype;
};

struct Projection {
  Volume features;
  Windows windows;
  int32_t embed;  // D
  Array weight;   // W [D, C]
  Array slope;    // [D], of the normalisation to come: below zero the least z wins, at zero the first pixel
  // workspace, where channels >= kNarrow: W as prepare_weight leaves it
  uint16_t* weight_halves;  // [chunks][2][padded D · kChunk]
  float* weight_unit;       // [padded D], powers of two
};

constexpr int kWeightRows = kThreads / 32;  // of W, that one unit of work prepares

// Nodes (or pixels) of a tile, of which a warp has 16 and 64 channels.
constexpr int tile_nodes(int embed) { return embed == 64 ? 64 : 32; }

// fp16 numbers of a feature, of which W has two: one, two or three where there are 2, 3 or 5 products.
template <typename With>
constexpr int kHalvesOf = (With::kInstance.products + 1) / 2;

constexpr int kMoments = 4;       // numbers of the statistics of a tile and a channel
constexpr int kMergedTiles = 32;  // tiles of nodes of a group of the statistics

struct ProjectionForward {
  static constexpr bool kBackward = false;
  static constexpr int kOfFloat = 5;  // products for fp32 features: the variance needs all their digits
  Projection psi;
  int32_t images, tiles, groups, weight_units;  // tiles of an image; groups of tiles; units that prepare W
  Volume peak, position;                        // (B, D, *grid), fp32 and int32
  float *mean, *variance;                       // [D], or null
  float* partial;                               // [images · tiles, kMoments, padded D], as forward.h has them
  float* merged;                                // [groups, kMoments, padded D], the same
  uint32_t* counters;  // finished blocks, units of W, tiles of every group; zero before and after
};

constexpr int kSlots = 2;                // rounds whose ∂z has room
constexpr int64_t kSlotBytes = 8 << 20;  // of one round
constexpr int kFeatureChunks = 8;        // of ∂f, that one unit makes of one ∂z
constexpr int kWeightUnits = 256;        // of ∂W in a round, about
constexpr int kMostRanges = 64;          // of a round, that one block adds

struct ProjectionBackward {
  static constexpr bool kBackward = true;
  static constexpr int kOfFloat = 3;
  Projection psi;                               // without a slope: z has its own sign
  int32_t images, tiles;                        // tiles of pixels of an image
  int32_t rounds, round_tiles, feature_groups;  // groups: of chunks, 0 if ∂f is not wanted
  int32_t chunks, ranges, range_tiles;          // ranges of tiles in a round, 0 if ∂W is not wanted
  int32_t weight_units;
  float share;                                    // 1 / pixels of the batch
  Volume grad_peak, position, z, grad_features;   // z: without data where it has to be made again
  const float *mean, *grad_mean, *grad_variance;  // [D], or null
  float* grad_weight;                             // [D, C]
  // workspace
  float* pixel_gradient;  // [slots, round_tiles, pixels of a tile, padded D]
  float* part;            // [rounds, chunks, ranges, padded D · kChunk]
  float* round_part;      // [rounds, chunks, padded D · kChunk]
  uint32_t* counters;     // zero before and after
  int64_t counters_size;  // of those that are used
};

// ---- the host's part ------------------------------------------------------------------------------------------------
inline int32_t padded_embed(int32_t embed) { return embed <= 64 ? 64 : 128; }
inline int32_t chunks_of(int32_t channels) { return (channels + kChunk - 1) / kChunk; }
inline int64_t weight_halves_count(int32_t channels, int32_t embed) {
  return channels < kNarrow ? 0 : int64_t(chunks_of(channels)) * 2 * padded_embed(embed) * kChunk;
}
inline int32_t weight_units(int32_t channels, int32_t embed) {
  return channels < kNarrow ? 0 : padded_embed(embed) / kWeightRows;
}
inline int64_t count_of(const int32_t (&axes)[3]) { return int64_t(axes[0]) * axes[1] * axes[2]; }
inline Windows windows_of(const int32_t (&pixels)[3], const int32_t (&nodes)[3]) {
  Windows windows{};
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t n = pixels[axis], m = nodes[axis];
    windows.pixels[axis] = pixels[axis], windows.nodes[axis] = nodes[axis];
    // window i begins i n mod m before i n / m, a multiple of the divisor that both share: m less it at most
    windows.widest[axis] = int32_t((n + m - std::gcd(n, m) + m - 1) / m);
  }
  return windows;
}

}  // namespace difnet::cuda
