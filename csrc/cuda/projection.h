// One Ψ as plain data, the same for the host, the card and the tests: features, the windows of its pooling, W.
#pragma once

#include <cstdint>

#include "cascade.h"

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

struct Projection {
  Volume features;
  Windows windows;
  int32_t embed;        // D
  const float* weight;  // W [D, C]
  const float*
      slope;  // [D] or null, of the normalisation to come: below zero the least z wins, at zero the first pixel
  // workspace, where channels >= kNarrow: W as prepare_weight leaves it
  uint16_t* weight_halves;  // [chunks][2][padded D · kChunk]
  float* weight_unit;       // [padded D], powers of two
};

constexpr int kWeightRows = kThreads / 32;  // of W, that one unit of work prepares

// Nodes (or pixels) of a tile, of which a warp has 16 and 64 channels.
constexpr int tile_nodes(int embed) { return embed == 64 ? 64 : 32; }

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
    for (int64_t i = 0; i < m; ++i) {
      const int32_t width = int32_t(((i + 1) * n + m - 1) / m - i * n / m);
      if (width > windows.widest[axis]) windows.widest[axis] = width;
    }
  }
  return windows;
}

}  // namespace difnet::cuda
