// ψ of a row tile in the launch of a cascade: z = W f is pooled as in Ψ's own kernels, and normalised here, because the
// launch waits for nobody else's statistics. What stands here is what the launch adds: its counters, the order of the
// normalisation, the mask, and ψ where the walks look for it.
#pragma once

#include "cuda/cascade/projected_arguments.h"
#include "cuda/projection/pool.h"

namespace difnet::cuda {

// Row tiles of ψ_t of an image that are there; units of W_t that are.
DIFNET_DEVICE uint32_t* projected(const ProjectedCascade& c, int t, int image) {
  return ready(c, c.walks, 0, 0) + t * c.images + image;
}
DIFNET_DEVICE uint32_t* prepared(const ProjectedCascade& c, int t) { return projected(c, c.walks, 0) + t; }
DIFNET_DEVICE uint32_t* end_of_counters(const ProjectedCascade& c) { return prepared(c, c.walks); }

template <int kEmbed>
struct Project {
  static_assert(tile_nodes(kEmbed) == kRows, "a tile of Ψ's nodes is a row tile");
  using Memory = ProjectionMemory<2, kEmbed>;  // two halves take features of every dtype
  static constexpr uint32_t kWeightUnits = kEmbed / kWeightRows;

  const ProjectedCascade& c;
  Memory& memory;
  const Level& level;
  int t;

  DIFNET_DEVICE Project(const ProjectedCascade& c, Memory& memory, int t)
      : c(c), memory(memory), level(c.level[t]), t(t) {}

  DIFNET_DEVICE bool has_halves() const { return level.psi.features.channels >= kNarrow; }

  // Rows of W_t in halves.
  DIFNET_DEVICE void weight(int unit) const {
    if (has_halves()) prepare_weight<kEmbed>(level.psi, unit);
    barrier();  // the rows are there
    if (has_halves() && thread() == 0) add_release(prepared(c, t), 1);
  }

  // As batch_norm.normalise, of the z that won its window: it would have won after it, too. The offset moves the mean
  // and not the map.
  DIFNET_DEVICE void normalise() const {
    const auto of = [](const Array& given, int d, float otherwise) {
      return given.data == nullptr ? otherwise : load(given, d);
    };
    const int me = anew(thread()), d = me % kEmbed;
    if (d >= level.psi.embed) return;
    const float centre = of(level.mean, d, 0.0f) - of(level.offset, d, 0.0f), shift = of(level.shift, d, 0.0f);
    float scale = of(level.psi.slope, d, 1.0f);
    if (level.variance.data != nullptr) scale = inverse_root(load(level.variance, d) + level.eps) * scale;
#pragma unroll 1
    for (int row = me / kEmbed; row < kRows && memory.first_node + row < c.nodes; row += kThreads / kEmbed) {
      const int64_t node = int64_t(memory.image) * c.nodes + memory.first_node + row;
      // a column that no row sees belongs to a node that does not exist
      const bool exists = c.column_bias[t] == nullptr || c.column_bias[t][node] > -kInfinity;
      const float z = memory.rows.z[row * (kEmbed + 1) + d];
      store(level.dtype, c.psi[t].data, node * level.psi.embed + d,
            exists ? ((z - centre) * scale + shift) * c.root : 0.0f);
    }
  }

  DIFNET_DEVICE void run(int image, int row_tile) const {
    if (thread() == 0)
      wait_for(prepared(c, t), has_halves() ? kWeightUnits : 0, "a block waits for W of its walk", __LINE__);
    PooledTile<2, kEmbed, false, false> pooled(level.psi, memory);
    pooled.run(image, row_tile * kRows, false);
    barrier();  // the last chunk is read
    pooled.leave_rows(memory.rows.z, nullptr);
    barrier();  // z is there
    normalise();
    barrier();  // ψ is there
    if (thread() == 0) add_release(projected(c, t, memory.image), 1);
  }
};

// Before psi_statistics, whose first barrier gives the block what one thread saw.
DIFNET_DEVICE void wait_for_psi(const ProjectedCascade& c, int t, int image) {
  if (thread() == 0) wait_for(projected(c, t, image), c.row_tiles, "a block waits for psi of its image", __LINE__);
}

}  // namespace difnet::cuda
