// What both directions of Ψ do with a tile of pixels: read its features, and multiply.
#pragma once

#include "cpu/convert.h"
#include "cpu/products.h"
#include "cpu/projection/projection.h"

namespace difnet::cpu::DIFNET_ISA {

// Pixels [from, to) along each axis, in scan order; tiles of kTile of them may begin and end inside a row.
struct Box {
  int64_t from[3], to[3];
  DIFNET_MEMBER int64_t width() const { return to[2] - from[2]; }
  DIFNET_MEMBER int64_t pixels() const { return (to[0] - from[0]) * (to[1] - from[1]) * width(); }
};

// Pixels of a tile that are neighbours in a row: (z, y, x) is the first, number `at` of the tile.
struct Run {
  int64_t z, y, x, length, at;
};

// body(run) for the runs of the `count` pixels of the box from number `first` on
template <typename Body>
DIFNET_INLINE void for_each_run(const Box& box, int64_t first, int64_t count, Body body) {
  const int64_t width = box.width(), height = box.to[1] - box.from[1];
  int64_t row = first / width, x = first % width;
  for (int64_t at = 0; at < count; ++row, x = 0) {
    const int64_t length = width - x < count - at ? width - x : count - at;
    body(Run{box.from[0] + row / height, box.from[1] + row % height, box.from[2] + x, length, at});
    at += length;
  }
}

// Whether neighbouring elements of a volume are channels (channels_last) or pixels: tiles of it keep that order, so
// that reading and writing them are straight copies.
DIFNET_INLINE bool channels_innermost(const Volume& volume) { return volume.channel_stride < volume.stride[2]; }

// The box as runs that are as long as its memory allows: rows that follow each other without a gap are one row.
DIFNET_INLINE Box in_memory(const Volume& volume, const Box& box) {
  const int64_t rows = box.to[1] - box.from[1], layers = box.to[0] - box.from[0];
  const int64_t row = box.width() * volume.stride[2];
  if ((rows > 1 || layers > 1) && volume.stride[1] != row) return box;
  if (layers > 1 && volume.stride[0] != rows * row) return box;
  const int64_t z = box.from[0], y = box.from[1], x = box.from[2];
  return {{z, y, x}, {z + 1, y + 1, x + box.pixels()}};
}

// element(in the volume, in the tile) for a tile of pixels and `channels` channels from `channel` on: [pixel][channel]
// if channels are innermost, else [channel][pixel].
template <typename Pointer, typename Element>
DIFNET_INLINE void for_each_element(const Volume& volume, Pointer data, int64_t channel, int64_t channels,
                                    const Box& box, int64_t first, int64_t count, Element element) {
  const bool innermost = channels_innermost(volume);
  const int64_t inner_stride = innermost ? volume.channel_stride : volume.stride[2];
  const int64_t outer_stride = innermost ? volume.stride[2] : volume.channel_stride;
  for_each_run(in_memory(volume, box), first, count, [&](const Run& run) __attribute__((always_inline)) {
    const int64_t inner = innermost ? channels : run.length, outer = innermost ? run.length : channels;
    Pointer from = data + channel * volume.channel_stride + run.z * volume.stride[0] + run.y * volume.stride[1] +
                   run.x * volume.stride[2];
    const int64_t to = innermost ? run.at * kTile : run.at;
    for (int64_t o = 0; o < outer; ++o, from += outer_stride)
      if (inner_stride == 1 && inner == kTile)  // the length is known to the compiler: straight copies, no remainder
        for (int64_t i = 0; i < kTile; ++i) element(from[i], to + o * kTile + i);
      else
        for (int64_t i = 0; i < inner; ++i) element(from[i * inner_stride], to + o * kTile + i);
  });
}

DIFNET_INLINE int64_t block_channels(const ProjectionSizes& size, int64_t block) {
  const int64_t left = size.channels - block * kTile;
  return left < kTile ? left : kTile;
}

DIFNET_INLINE int64_t panel_channels(const ProjectionSizes& size, int64_t panel, int64_t in_panel) {
  const int64_t left = size.embed - panel * in_panel;
  return left < in_panel ? left : in_panel;
}

// The features of `count` pixels of a tile and of one block of channels.
template <typename Real>
void read_features(const Volume& volume, const ProjectionSizes& size, int64_t block, const Box& box, int64_t first,
                   int64_t count, Real* tile) {
  with_type(volume.dtype, [&](auto* type) {
    const auto* data = static_cast<decltype(type)>(volume.data);
    for_each_element(volume, data, block * kTile, block_channels(size, block), box, first, count,
                     [&](auto value, int64_t at) { tile[at] = widen<Real>(value); });
  });
}

template <typename Real>
void write_features(const Real* tile, const ProjectionSizes& size, int64_t block, const Box& box, int64_t first,
                    int64_t count, const Volume& volume) {
  with_type(volume.dtype, [&](auto* type) {
    auto* data = static_cast<decltype(type)>(volume.data);
    for_each_element(volume, data, block * kTile, block_channels(size, block), box, first, count,
                     [&](auto& value, int64_t at) { narrow(tile[at], value); });
  });
}

// out[r] (+)= sum over `inner` of weights[r][inner] field[inner] for kMR rows r of one panel. The strides are
// compile-time constants because as variables they cost the inner loop its registers.
template <int RowStride, int InnerStride, int FieldStride, int OutStride, typename Real>
DIFNET_INLINE void multiply(const Real* weights, const Real* field, int64_t inner, bool add, Real* out) {
  using V = Vec<Real>;
  constexpr int W = kWidth<Real>;
  V sum[kMR][2] = {};
  for (int64_t k = 0; k < inner; ++k) {
    const V low = load<V>(field + k * FieldStride), high = load<V>(field + k * FieldStride + W);
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r) {
      const V weight = broadcast<V>(weights[r * RowStride + k * InnerStride]);
      sum[r][0] += weight * low;
      sum[r][1] += weight * high;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kMR; ++r) {
    Real* to = out + r * OutStride;
    store(to, add ? load<V>(to) + sum[r][0] : sum[r][0]);
    store(to + W, add ? load<V>(to + W) + sum[r][1] : sum[r][1]);
  }
}

// Memory that is read next, asked for a few rows at a time while this block is multiplied: rows of a channels_last map
// are a page or so apart, which the processor does not foresee. Maps from main memory: 13 % less time at 512 and 2048
// channels on Zen 5. Where pixels are innermost it costs 5 % and gains nothing, so nothing is asked there.
struct Prefetch {
  const char* row;
  int64_t stride, bytes, rows;
  DIFNET_MEMBER void ask(int64_t count) {
    for (; count > 0 && rows > 0; --count, --rows, row += stride)
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
};

// The block after this one, of this tile or of the next, if the pixels of the box follow each other in memory.
DIFNET_INLINE Prefetch prefetch_after(const Volume& volume, const ProjectionSizes& size, const Box& box, int64_t first,
                                      int64_t count, int64_t block) {
  const Box memory = in_memory(volume, box);
  if (volume.channel_stride != 1 || memory.pixels() != memory.width()) return {nullptr, 0, 0, 0};
  if (++block == size.blocks) {
    block = 0;
    first += count;
    count = box.pixels() - first < kTile ? box.pixels() - first : kTile;
  }
  const int64_t bytes = volume.dtype == DType::kDouble ? 8 : volume.dtype == DType::kFloat ? 4 : 2;
  const int64_t at = block * kTile + memory.from[0] * volume.stride[0] + memory.from[1] * volume.stride[1] +
                     (memory.from[2] + first) * volume.stride[2];
  return {static_cast<const char*>(volume.data) + bytes * at, bytes * volume.stride[2],
          bytes * block_channels(size, block), count};
}

// (Ψ1) z = W f of a tile, from the features of one block; the sum over a block comes before the sum over blocks.
template <typename Real>
DIFNET_INLINE void project_block(const ProjectionSizes& size, const Volume& volume, const Real* weight_panels,
                                 int64_t block, const Real* features, int64_t count, Real* z, Prefetch ahead) {
  constexpr int P = kNR<Real>;
  const int64_t depth = block_channels(size, block);
  for (int64_t panel = 0; panel < size.panels; ++panel) {
    const Real* weight = weight_panels + (panel * size.channels + block * kTile) * P;
    Real* out = z + panel * kTile * P;
    for (int64_t n = 0; n < count; n += kMR) {
      ahead.ask(kMR / 2);
      if (channels_innermost(volume))
        multiply<kTile, 1, P, P>(features + n * kTile, weight, depth, block > 0, out + n * P);
      else
        multiply<1, kTile, P, P>(features + n, weight, depth, block > 0, out + n * P);
    }
  }
}

// z of a tile, a block of feature channels after the other.
template <typename Real>
struct VectorProjection {
  const ProjectionSizes& size;
  const Volume& volume;
  const Real* weight_panels;

  DIFNET_MEMBER VectorProjection(const ProjectionSizes& size, const Volume& volume, const Real* weight_panels, Real*,
                                 Real*)
      : size(size), volume(volume), weight_panels(weight_panels) {}
  DIFNET_MEMBER void project(int64_t block, Real* features, int64_t count, Real* z, Prefetch ahead) const {
    project_block(size, volume, weight_panels, block, features, count, z, ahead);
  }
  DIFNET_MEMBER void finish(int64_t, Real*) const {}
};

// One block of feature channels of W (D, C) as panels [panel][feature channel][channel of the panel], padding zero,
// each number through `change`.
template <typename Real, typename Change>
DIFNET_INLINE void read_weight_panels(const ProjectionSizes& size, const Real* weight, int64_t block, Real* panels,
                                      Change change) {
  constexpr int P = kNR<Real>;
  const int64_t C = size.channels, depth = block_channels(size, block);
  for (int64_t panel = 0; panel < size.panels; ++panel) {
    Real* to = panels + (panel * C + block * kTile) * P;
    for (int64_t lane = 0; lane < P; ++lane) {
      const int64_t d = panel * P + lane;
      for (int64_t c = 0; c < depth; ++c)
        to[c * P + lane] = d < size.embed ? change(weight[d * C + block * kTile + c], d) : 0;
    }
  }
}

}  // namespace difnet::cpu::DIFNET_ISA
