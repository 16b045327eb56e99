// From what a caller asks of Ψ to its launches, as launches.h for a cascade.
#pragma once

#include "projection_forward.h"

namespace difnet::cuda {

// Which of the compiled kernels: fp16 products per product (16-bit features have no low half), padded D.
inline Instance projection_instance(DType features, int32_t embed) {
  return {features == DType::kFloat ? 3 : 2, padded_embed(embed), 0};
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
  const Instance with = projection_instance(asked.features.dtype, asked.embed);
  if (count_of(asked.pixels) >= int64_t(1) << 31 || count_of(asked.nodes) >= int64_t(1) << 31)
    return refuse("an image passes 2^31 pixels or nodes; cut it");
  ProjectionForward c{};
  c.psi.features = asked.features;
  c.psi.windows = windows_of(asked.pixels, asked.nodes);
  c.psi.embed = asked.embed;
  c.psi.weight = asked.weight;
  c.psi.slope = asked.slope;
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

}  // namespace difnet::cuda
