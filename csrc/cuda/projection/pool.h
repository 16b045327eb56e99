// z = W f pooled to a tile of nodes, in one pass (Ψ1): for every node and channel the z that wins the node's window,
// and where it stands; for the statistics, each pixel once.
//
// The tile goes over the offsets inside the widest window. At each the pixels at that offset of their windows are
// projected, and one that is better than the best so far replaces it: in scan order the first of equals wins, and every
// NaN, as in torch. The sign of the slope stands in the units of W, so the largest wins in every channel.
#pragma once

#include "cuda/projection/tile.h"
#include "cuda/projection/windows.h"

namespace difnet::cuda {

// Where a flat node or pixel stands in a volume, without its image and channel.
DIFNET_DEVICE int64_t place_in(const Volume& volume, const int32_t (&axes)[3], int flat) {
  return flat / (axes[1] * axes[2]) * volume.stride[0] + flat / axes[2] % axes[1] * volume.stride[1] +
         flat % axes[2] * volume.stride[2];
}

template <int kHalves, int kEmbed, bool kPositions, bool kStatistics>
struct PooledTile {
  using Tile = ProjectionTile<kHalves, kEmbed>;
  static constexpr int kNodes = Tile::kPixels, kPairs = Tile::kPairs;

  Tile tile;
  float best[kPairs][4] = {};  // with the sign of the slope
  int32_t position[kPositions ? kPairs : 1][4] = {};
  float total[kStatistics ? kPairs : 1][2] = {}, squares[kStatistics ? kPairs : 1][2] = {};  // about shift
  int offset[3] = {};

  DIFNET_DEVICE PooledTile(const Projection& psi, typename Tile::Memory& memory) : tile(psi, memory) {}

  DIFNET_DEVICE int image() const { return tile.memory.image; }
  DIFNET_DEVICE int first_node() const { return tile.memory.first_node; }

  DIFNET_DEVICE int nodes() const {
    const auto& of = tile.psi.windows.nodes;
    return of[0] * of[1] * of[2];
  }
  DIFNET_DEVICE void set_windows(int image, int first_node) {
    const Windows& of = tile.psi.windows;
    if (thread() == 0) tile.memory.image = image, tile.memory.first_node = first_node;
    if (thread() >= kNodes) return;
    int rest = first_node + thread() < nodes() ? first_node + thread() : nodes() - 1;
#pragma unroll 1
    for (int axis = 2; axis >= 0; --axis) {
      const int n = of.pixels[axis], m = of.nodes[axis], at = rest % m;
      rest /= m;
      const int start = window_begin(at, n, m);
      tile.memory.window[axis][thread()] = {start, window_end(at, n, m) - start, window_begin(at + 1, n, m) - start};
    }
  }

  // The pixel at this offset of the window of node pixel(); past the end of the window its first again, as kNone.
  DIFNET_DEVICE Spot spot() const {
    const Projection& psi = tile.psi;
    Spot to{image() * psi.features.batch_stride, 0, first_node() + Tile::pixel() < nodes()};
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) inside = inside && offset[axis] < tile.memory.window[axis][Tile::pixel()].wide;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const Window window = tile.memory.window[axis][Tile::pixel()];
      const int at = window.start + (inside ? offset[axis] : 0);
      to.at += at * psi.features.stride[axis];
      to.pixel = to.pixel * psi.windows.pixels[axis] + at;
      to.counted = to.counted && inside && offset[axis] < window.step;  // of several windows it belongs to the last
    }
    if (!inside) to.pixel = kNone;
    return to;
  }
  DIFNET_DEVICE void advance() {
    const auto& widest = tile.psi.windows.widest;
    offset[2] += 1;
    if (offset[2] == widest[2]) offset[2] = 0, offset[1] += 1;
    if (offset[1] == widest[1]) offset[1] = 0, offset[0] += 1;
  }

  // The nodes from first_node on.
  DIFNET_DEVICE void run(int image, int first_node, bool statistics) {
    const auto& widest = tile.psi.windows.widest;
    barrier();
    set_windows(image, first_node);
    tile.run(
        widest[0] * widest[1] * widest[2],
        [&](int n) {
          if (n > 0) advance();
          return spot();
        },
        [&](int n, int stage) {
          take(n == 0, stage);
          if constexpr (kStatistics)
            if (statistics) count(n == 0, stage);
          tile.clear();
        });
  }

  DIFNET_DEVICE void take(bool first, int stage) {
    auto& memory = tile.memory;
    const int me = anew(thread());
    const int32_t* pixel = memory.pixel[stage] + Tile::row(me);
    const int32_t own[2] = {pixel[0], pixel[8]};
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const Two unit = *reinterpret_cast<const Two*>(memory.weight_unit + Tile::channel(n, me));
      const Two cap = *reinterpret_cast<const Two*>(memory.cap + Tile::channel(n, me));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = tile.z[n][e] * unit.x[e % 2];
        tile.z[n][e] = value;
        // no branches: they would cost registers
        const bool better = (smaller(value, cap.x[e % 2]) > best[n][e]) | (value != value);
        const bool wins = first | (better & (own[e / 2] != kNone));
        best[n][e] = wins ? value : best[n][e];
        if constexpr (kPositions) position[n][e] = wins ? own[e / 2] : position[n][e];
      }
    }
  }
  // The statistics see z once for each pixel.
  DIFNET_DEVICE void count(bool first, int stage) {
    const int me = anew(thread());
    const float* counted = tile.memory.counted[stage] + Tile::row(me);
    const float own[2] = {counted[0], counted[8]};
    if (first) {  // about a value of the tile's own size: what is squared is the spread, not the mean
      float sums[kPairs][2];
#pragma unroll
      for (int n = 0; n < kPairs; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[n][e] = tile.z[n][e] + tile.z[n][e + 2];
      add_up(sums);
      if (thread() < kEmbed) tile.memory.shift[thread()] = sum(thread()) * (1.0f / kNodes);
      barrier();
    }
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const Two shift = *reinterpret_cast<const Two*>(tile.memory.shift + Tile::channel(n, me));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float about = shift.x[e];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const float apart = own[row] != 0.0f ? tile.z[n][e + row * 2] - about : 0.0f;
          total[n][e] += apart;
          squares[n][e] = fma(apart, apart, squares[n][e]);
        }
      }
    }
  }
  // memory.sums: the sum over the rows of each warp.
  DIFNET_DEVICE void add_up(float (&sums)[kPairs][2]) {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) sums[n][e] += shuffle_xor(sums[n][e], mask);
        if (lane() < 4) tile.memory.sums[warp() % Tile::kRowWarps][Tile::channel(n) + e] = sums[n][e];
      }
    barrier();
  }
  DIFNET_DEVICE float sum(int d) const {
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < Tile::kRowWarps; ++w) all += tile.memory.sums[w][d];
    return all;
  }
  // Pixels that the statistics count.
  DIFNET_DEVICE float counted() const {
    float all = 0.0f;
#pragma unroll 1
    for (int node = 0; node < kNodes && first_node() + node < nodes(); ++node)
      all += float(tile.memory.window[0][node].step) * float(tile.memory.window[1][node].step) *
             float(tile.memory.window[2][node].step);
    return all;
  }

  // z of the winners and, if kept, their positions as rows [node][kEmbed + 1], where memory.rows or the caller has
  // room; nodes past the last repeat it. The caller's barrier follows, and one comes before if `rows` are memory.rows.
  DIFNET_DEVICE void leave_rows(float* rows, int32_t* positions) const {
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int d = Tile::channel(n) + e % 2, at = (Tile::row() + e / 2 * 8) * (kEmbed + 1) + d;
        rows[at] = tile.memory.weight_unit[d] < 0.0f ? -best[n][e] : best[n][e];
        if constexpr (kPositions) positions[at] = position[n][e];
      }
  }
};

}  // namespace difnet::cuda
