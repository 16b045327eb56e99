// From what a caller asks of Ψ to its launches, as cascade/launches.h for a cascade.
#pragma once

#include <algorithm>

#include "cuda/projection/arguments.h"

namespace difnet::cuda {

// ---- forward --------------------------------------------------------------------------------------------------------
inline int64_t all_units(const ProjectionForward& c) { return int64_t(c.weight_units) + int64_t(c.images) * c.tiles; }
inline int64_t counters(const ProjectionForward& c) { return 2 + int64_t(c.groups); }
template <typename Work>
void take_sections(ProjectionForward& c, const Instance& with, Work& work) {
  const bool statistics = c.mean != nullptr;
  work.take(c.psi.weight_halves, weight_halves_count(c.psi.features.channels, c.psi.embed));
  work.take(c.psi.weight_unit, with.embed);
  work.take(c.partial, statistics ? int64_t(c.images) * c.tiles * kMoments * with.embed : 0);
  work.take(c.merged, statistics ? int64_t(c.groups) * kMoments * with.embed : 0);
}

// Which of the compiled kernels: fp16 products per product (16-bit features have one half), padded D.
template <typename Arguments>
Instance projection_instance(DType features, int32_t embed) {
  return {features == DType::kFloat ? Arguments::kOfFloat : 2, padded_embed(embed), 0};
}

struct ProjectionRequest {
  int32_t images, embed;
  int32_t pixels[3], nodes[3];
  Volume features, peak, position;
  const float *weight, *slope;  // slope may be null
  float *mean, *variance;       // or null
  uint32_t* counters;
  int64_t counters_size;
};

template <typename Bind, typename Launch, typename Refuse>
auto run_projection(const ProjectionRequest& asked, Bind bind, Launch launch, Refuse refuse) -> decltype(refuse("")) {
  const Instance with = projection_instance<ProjectionForward>(asked.features.dtype, asked.embed);
  if (count_of(asked.pixels) >= int64_t(1) << 31 || count_of(asked.nodes) >= int64_t(1) << 31)
    return refuse("an image passes 2^31 pixels or nodes; cut it");
  ProjectionForward c{};
  c.psi.features = asked.features;
  c.psi.windows = windows_of(asked.pixels, asked.nodes);
  c.psi.embed = asked.embed;
  c.psi.weight = {asked.weight, DType::kFloat};
  c.psi.slope = {asked.slope, DType::kFloat};
  c.images = asked.images;
  c.tiles = int32_t((count_of(asked.nodes) + tile_nodes(with.embed) - 1) / tile_nodes(with.embed));
  c.weight_units = weight_units(asked.features.channels, asked.embed);
  c.peak = asked.peak, c.position = asked.position;
  c.mean = asked.mean, c.variance = asked.variance;
  c.counters = asked.counters;
  if (all_units(c) >= int64_t(1) << 31) return refuse("the units of work pass 2^31; split the batch");
  c.groups = asked.mean == nullptr ? 0 : (asked.images * c.tiles + kMergedTiles - 1) / kMergedTiles;
  if (counters(c) > asked.counters_size) return refuse("the counters do not suffice; this is a defect of the caller");
  bind(c, with);
  if (auto bad = launch(c, with)) return bad;
  return {};
}

// ---- backward -------------------------------------------------------------------------------------------------------
struct ProjectionBackwardRequest {
  int32_t images, embed;
  int32_t pixels[3], nodes[3];
  Volume features, grad_peak, position, z, grad_features;  // z and grad_features: without data if there is none
  const float *weight, *mean, *grad_mean, *grad_variance;  // all but the weight may be null
  float* grad_weight;                                      // or null
  uint32_t* counters;
  int64_t counters_size;
  int32_t forced_round_tiles;  // for the tests; 0 leaves it to the plan
};

inline int64_t all_units(const ProjectionBackward& c) {
  return c.weight_units + int64_t(c.rounds) * (c.round_tiles * (1 + int64_t(c.feature_groups)) + c.ranges * c.chunks);
}
inline int64_t counters(const ProjectionBackward& c) { return c.counters_size; }
template <typename Work>
void take_sections(ProjectionBackward& c, const Instance& with, Work& work) {
  const int64_t count = int64_t(with.embed) * kChunk, slots = c.rounds < kSlots ? c.rounds : kSlots;
  work.take(c.psi.weight_halves, int64_t(c.chunks) * 2 * count);
  work.take(c.psi.weight_unit, with.embed);
  work.take(c.pixel_gradient, slots * c.round_tiles * tile_nodes(with.embed) * with.embed);
  work.take(c.part, int64_t(c.rounds) * c.chunks * c.ranges * count);
  work.take(c.round_part, c.ranges > 0 ? int64_t(c.rounds) * c.chunks * count : 0);
}

template <typename Bind, typename Launch, typename Refuse>
auto run_projection_backward(const ProjectionBackwardRequest& asked, Bind bind, Launch launch, Refuse refuse)
    -> decltype(refuse("")) {
  const Instance with = projection_instance<ProjectionBackward>(asked.features.dtype, asked.embed);
  if (count_of(asked.pixels) >= int64_t(1) << 31 || count_of(asked.nodes) >= int64_t(1) << 31)
    return refuse("an image passes 2^31 pixels or nodes; cut it");
  ProjectionBackward c{};
  c.psi.features = asked.features;
  c.psi.windows = windows_of(asked.pixels, asked.nodes);
  c.psi.embed = asked.embed;
  c.psi.weight = {asked.weight, DType::kFloat};
  c.images = asked.images;
  const int64_t pixels = tile_nodes(with.embed), tiles = (count_of(asked.pixels) + pixels - 1) / pixels;
  const int64_t room = kSlotBytes / (pixels * with.embed * int64_t(sizeof(float))), all = asked.images * tiles;
  if (all >= int64_t(1) << 31) return refuse("the tiles of pixels pass 2^31; split the batch");
  c.tiles = int32_t(tiles);
  c.round_tiles = int32_t(std::min(all, asked.forced_round_tiles > 0 ? asked.forced_round_tiles : room));
  c.rounds = int32_t((all + c.round_tiles - 1) / c.round_tiles);
  c.chunks = chunks_of(asked.features.channels);
  c.feature_groups = asked.grad_features.data == nullptr ? 0 : (c.chunks + kFeatureChunks - 1) / kFeatureChunks;
  const int32_t wanted = std::clamp(kWeightUnits / c.chunks, 1, std::min(c.round_tiles, kMostRanges));
  c.range_tiles = (c.round_tiles + wanted - 1) / wanted;
  c.ranges = asked.grad_weight == nullptr ? 0 : (c.round_tiles + c.range_tiles - 1) / c.range_tiles;
  c.weight_units = with.embed / kWeightRows;
  c.share = float(1.0 / (double(asked.images) * double(count_of(asked.pixels))));
  c.grad_peak = asked.grad_peak, c.position = asked.position, c.z = asked.z, c.grad_features = asked.grad_features;
  c.mean = asked.mean, c.grad_mean = asked.grad_mean, c.grad_variance = asked.grad_variance;
  c.grad_weight = asked.grad_weight;
  c.counters = asked.counters;
  c.counters_size = 2 + 2 * int64_t(c.rounds) + (int64_t(c.rounds) + 1) * c.chunks;
  if (all_units(c) >= int64_t(1) << 31) return refuse("the units of work pass 2^31; split the batch");
  if (c.counters_size > asked.counters_size)
    return refuse("the counters do not suffice; this is a defect of the caller");
  bind(c, with);
  if (auto bad = launch(c, with)) return bad;
  return {};
}

}  // namespace difnet::cuda
