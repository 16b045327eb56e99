// What a launch is asked that projects ψ itself (Ψ1), in evaluation: a cascade, and for every walk its Ψ with a batch
// normalisation.
#pragma once

#include "cuda/cascade/launches.h"
#include "cuda/projection/arguments.h"

namespace difnet::cuda {

constexpr int kMaxProjectedWalks = 12;  // of one launch, whose arguments have room for them; there is no second launch

// One Ψ: ψ = root · (slope · (pool(W f) + offset − mean) / √(variance + eps) + shift), where the slope decides what
// pools. The caller gives the sizes of the pixels; the launch knows those of the nodes, and has a workspace.
struct Level {
  Projection psi;
  Array offset, mean, variance, shift;  // [D], or without data; the slope is that of psi
  float eps;
  DType dtype;  // of ψ, as psi_projection returns it
};

// Units of one walk in each step, and of all; among the arguments, so that the kernel keeps none of them in a register.
struct UnitsOfWalk {
  int32_t all, weights, groups, tiles, parts;  // weights: rows of W of all walks; parts: units of a row tile in a walk
};

struct ProjectedCascade : CascadeOf<kMaxProjectedWalks> {
  static constexpr bool kProjected = true;
  UnitsOfWalk of_walk;
  float root;        // √scale
  float* projected;  // workspace, [walks, B, N, D_t] in the dtype of ψ_t, with room for kEmbed floats a node
  Level level[kMaxProjectedWalks];
};
static_assert(sizeof(ProjectedCascade) <= 4096, "a kernel takes 4 KiB of arguments");

// ---- the host's part ------------------------------------------------------------------------------------------------
struct ProjectedRequest {
  Request cascade;      // without psi
  const Level* levels;  // of all walks
  int32_t grid[3];      // of the nodes
  float root;
};

inline DType promoted(DType a, DType b) { return a == b ? a : DType::kFloat; }

inline Instance instance_of(const ProjectedRequest& asked) {
  bool fp32 = asked.cascade.seed.dtype == DType::kFloat;
  int32_t widest = 0;
  for (int32_t t = 0; t < asked.cascade.walks; ++t) {
    fp32 = fp32 || asked.levels[t].dtype == DType::kFloat;
    widest = std::max(widest, asked.levels[t].psi.embed);
  }
  return instance(asked.cascade.high && fp32, widest, asked.cascade.classes);
}

// Few, because each is another kernel on every architecture: what is wider takes two launches.
constexpr bool is_compiled(const Instance& with) { return with.embed == 64; }

// Rows of W that are prepared for every walk, kWeightRows each; few channels need none, and theirs do nothing.
constexpr int32_t units_of_weight(const Instance& with) { return with.embed / kWeightRows; }

// As arguments.h: those of a cascade, how many tiles of ψ_t of an image are there [walks, B], units of W_t [walks].
inline int64_t counters(const ProjectedCascade& c) {
  return counters<CascadeOf<kMaxProjectedWalks>>(c) + int64_t(c.walks) * (c.images + 1);
}
inline int64_t all_units(const ProjectedCascade& c) {
  return all_units<CascadeOf<kMaxProjectedWalks>>(c) + c.of_walk.weights + int64_t(c.walks) * c.images * c.row_tiles;
}

template <typename Work>
void take_sections(ProjectedCascade& c, const Instance& with, Work& work) {
  take_sections(static_cast<CascadeOf<kMaxProjectedWalks>&>(c), with, work);
  work.take(c.projected, int64_t(c.walks) * c.images * c.nodes * with.embed);
  for (int32_t t = 0; t < c.walks; ++t) {
    Projection& psi = c.level[t].psi;
    work.take(psi.weight_halves, weight_halves_count(psi.features.channels, psi.embed));
    work.take(psi.weight_unit, with.embed);
  }
}

// As `run`, in one launch.
template <typename Bind, typename Launch, typename Refuse>
auto run_projected(const ProjectedRequest& asked, Bind bind, Launch launch, Refuse refuse) -> decltype(refuse("")) {
  const Request& cascade = asked.cascade;
  const Instance with = instance_of(asked);
  if (cascade.walks > kMaxProjectedWalks) return refuse("there are more walks than a launch with their Ψ has room for");
  ProjectedCascade c{};
  set_asked(c, cascade, with);
  c.walks = cascade.walks;
  c.root = asked.root;
  for (int32_t t = 0; t < c.walks; ++t) {
    c.level[t] = asked.levels[t];
    Windows& windows = c.level[t].psi.windows;
    if (count_of(windows.pixels) >= int64_t(1) << 31) return refuse("an image passes 2^31 pixels; cut it");
    windows = windows_of(windows.pixels, asked.grid);
  }
  cut(c, with.tile(), with.in_registers(), cascade.processors, cascade.forced_parts, cascade.forced_all_parts);
  c.of_walk.weights = c.walks * units_of_weight(with);
  if (!count_units(c, true) || all_units(c) >= int64_t(1) << 31)
    return refuse("the units of work pass 2^31; split the batch");
  c.of_walk = {int32_t(all_units(c)), c.of_walk.weights, c.images * c.groups, c.images * c.row_tiles,
               c.split.all_parts ? 1 : c.split.parts};
  if (counters(c) > cascade.counters_size) return refuse("the counters do not suffice; this is a defect of the caller");
  bind(c, with);
  for (int32_t t = 0; t < c.walks; ++t) {
    const Level& level = c.level[t];
    float* const psi = c.projected == nullptr ? nullptr : c.projected + int64_t(t) * c.images * c.nodes * with.embed;
    c.psi[t] = {psi, int64_t(c.nodes) * level.psi.embed, 1, level.psi.embed, level.psi.embed, level.dtype};
    set_walk(c, cascade, t);
  }
  return launch(c, with);
}

}  // namespace difnet::cuda
