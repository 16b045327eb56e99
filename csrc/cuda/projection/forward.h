// The forward of Ψ in one launch: W in halves, then tiles of nodes, then the statistics of training.
//
//   rows of W | (image, tile of nodes) ...
//
// Block b takes units b, b + blocks, ... A tile waits for W alone, whose units come first. For the statistics each tile
// leaves the count, the mean and the sum of squared deviations of its pixels; who finishes the last tile of a group
// adds the group, the last block to leave adds the groups, both in their order.
#pragma once

#include "cuda/projection/pool.h"

namespace difnet::cuda {

// Of one channel: the count, the mean, as a number near it and the rest, and the squared deviations. Where the mean is
// large, one number would round it to a share of the deviation.
struct Moments {
  float count, about, mean, squares;
};
template <int kEmbed>
DIFNET_DEVICE void leave_moments(const Moments& made, float* to) {
  to[0] = made.count, to[kEmbed] = made.about, to[2 * kEmbed] = made.mean, to[3 * kEmbed] = made.squares;
}
// From those of `many` tiles: the mean about the first tile's, then the deviations of the tiles' means from it (Chan et
// al.).
template <int kEmbed>
DIFNET_DEVICE Moments merge(const float* from, int64_t many) {
  const float about = from[kEmbed];
  const auto apart = [=](const float* one) { return one[kEmbed] - about + one[2 * kEmbed]; };
  float count = 0.0f, total = 0.0f, squares = 0.0f;
#pragma unroll 1
  for (int64_t n = 0; n < many; ++n) {
    const float* one = from + n * kMoments * kEmbed;
    count += one[0];
    total += one[0] * apart(one);
  }
  const float mean = total / larger(count, 1.0f);
#pragma unroll 1
  for (int64_t n = 0; n < many; ++n) {
    const float* one = from + n * kMoments * kEmbed;
    const float deviation = one[0] > 0.0f ? apart(one) - mean : 0.0f;
    squares += one[3 * kEmbed] + one[0] * (deviation * deviation);
  }
  return {count, about, mean, squares};
}

template <int kHalves, int kEmbed>
using ForwardTile = PooledTile<kHalves, kEmbed, true, true>;

// The statistics of a tile, and of its group if it is the last.
template <int kHalves, int kEmbed>
DIFNET_DEVICE void leave_statistics(const ProjectionForward& c, ForwardTile<kHalves, kEmbed>& pooled) {
  auto& memory = pooled.tile.memory;
  const int64_t number = int64_t(memory.image) * c.tiles + memory.first_node / ForwardTile<kHalves, kEmbed>::kNodes;
  const int d = thread();
  pooled.add_up(pooled.total);
  const float total = d < kEmbed ? pooled.sum(d) : 0.0f;
  barrier();
  pooled.add_up(pooled.squares);
  if (d < kEmbed) {
    const float count = pooled.counted(), mean = total / larger(count, 1.0f);
    const float sign = memory.weight_unit[d] < 0.0f ? -1.0f : 1.0f;
    leave_moments<kEmbed>({count, memory.shift[d] * sign, mean * sign, larger(pooled.sum(d) - total * mean, 0.0f)},
                          c.partial + number * kMoments * kEmbed + d);
  }
  const int64_t all = int64_t(c.images) * c.tiles, group = number / kMergedTiles, begin = group * kMergedTiles;
  const int64_t many = all - begin < kMergedTiles ? all - begin : kMergedTiles;
  barrier();
  if (thread() == 0) memory.before = add_acquire_release(c.counters + 2 + group, 1);
  barrier();
  if (memory.before == uint32_t(many - 1) && d < kEmbed)
    leave_moments<kEmbed>(merge<kEmbed>(c.partial + begin * kMoments * kEmbed + d, many),
                          c.merged + group * kMoments * kEmbed + d);
}

template <int kHalves, int kEmbed>
DIFNET_DEVICE void pool_tile(const ProjectionForward& c, ProjectionMemory<kHalves, kEmbed>& memory, int image,
                             int tile) {
  constexpr int kNodes = ProjectionMemory<kHalves, kEmbed>::kPixels;
  ForwardTile<kHalves, kEmbed> pooled(c.psi, memory);
  pooled.run(image, tile * kNodes, c.mean != nullptr);
  barrier();
  pooled.leave_rows(memory.rows.z, memory.rows.position);
  barrier();
#pragma unroll 1
  for (int at = thread(); at < kNodes * kEmbed; at += kThreads) {
    const int row = at / kEmbed, d = at % kEmbed, node = memory.first_node + row;
    if (node >= pooled.nodes() || d >= c.psi.embed) continue;
    const auto place = [&](const Volume& to) {
      return memory.image * to.batch_stride + d * to.channel_stride + place_in(to, c.psi.windows.nodes, node);
    };
    static_cast<float*>(c.peak.data)[place(c.peak)] = memory.rows.z[row * (kEmbed + 1) + d];
    static_cast<int32_t*>(c.position.data)[place(c.position)] = memory.rows.position[row * (kEmbed + 1) + d];
  }
  if (c.mean != nullptr) leave_statistics<kHalves, kEmbed>(c, pooled);
}

template <typename With>
DIFNET_KERNEL(2)
void projection_forward(const DIFNET_PARAMETER ProjectionForward c) {
  constexpr int kEmbed = With::kInstance.embed, kHalves = kHalvesOf<With>;
  auto& memory = shared_memory<ProjectionMemory<kHalves, kEmbed>>();
  for (int unit = block();; unit = memory.unit + blocks()) {
    if (unit >= c.weight_units + c.images * c.tiles) break;
    barrier();
    if (thread() == 0) memory.unit = unit;
    if (unit < c.weight_units) {
      prepare_weight<kEmbed>(c.psi, unit);
      barrier();
      if (thread() == 0) add_release(c.counters + 1, 1);
      continue;
    }
    if (thread() == 0) wait_for(c.counters + 1, c.weight_units, "a block waits for W", __LINE__);
    const int tile = unit - c.weight_units;
    pool_tile<kHalves, kEmbed>(c, memory, tile / c.tiles, tile % c.tiles);
  }
  if (!leave(c.counters, 2 + int64_t(c.groups), &memory.before) || c.mean == nullptr) return;
  for (int d = thread(); d < c.psi.embed; d += kThreads) {
    const Moments made = merge<kEmbed>(c.merged + d, c.groups);
    c.mean[d] = made.about + made.mean;
    c.variance[d] = made.squares / made.count;
  }
}

}  // namespace difnet::cuda
