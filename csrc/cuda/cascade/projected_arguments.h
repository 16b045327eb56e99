// What a launch is asked that projects ψ itself (Ψ1), in evaluation: a cascade, and for every walk the feature map, the
// weights and the batch normalisation of its Ψ.
#pragma once

#include "cuda/cascade/launches.h"

namespace difnet::cuda {

constexpr int kMaxProjectedWalks = 12;  // of one launch, whose arguments have room for them; there is no second launch
constexpr int kRun = 16;                // nodes of a unit of Ψ, neighbours in a row of the grid

// Features (B, C, Z, Y, X) of any dtype but fp64, any strides (in elements); images and signals have leading axes of one.
struct FeatureMap {
  const void* data;
  int64_t batch_stride, channel_stride, stride[3];
  int32_t size[3], channels;
};

struct Vector {
  enum Which { kOffset, kMean, kVariance, kSlope, kShift, kCount };
};  // b, and the batch normalisation

// One Ψ: ψ = root · (slope · (pool(W f) + b − mean) / √(variance + eps) + shift), where the slope decides what pools.
struct Level {
  FeatureMap features;
  const void* weight;                  // [D, C]
  const void* vector[Vector::kCount];  // [D], or null
  float eps;
  int32_t embed;                                                 // D
  DType of_features, of_weight, of_vector[Vector::kCount], psi;  // dtypes; psi: as psi_projection returns it
};

// Units of one walk in each step, and of all; among the arguments, so that the kernel keeps none of them in a register.
struct UnitsOfWalk {
  int32_t all, runs, groups, tiles, parts;  // parts: units of a row tile in a walk
};

struct ProjectedCascade : CascadeOf<kMaxProjectedWalks> {
  static constexpr bool kProjected = true;
  int32_t grid[3];  // of the nodes
  int32_t runs;     // of one image: units of Ψ of one walk
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
  int32_t grid[3];
  float root;
};

inline DType promoted(DType a, DType b) { return a == b ? a : DType::kFloat; }

inline Instance instance_of(const ProjectedRequest& asked) {
  bool fp32 = asked.cascade.seed.dtype == DType::kFloat;
  int32_t widest = 0;
  for (int32_t t = 0; t < asked.cascade.walks; ++t) {
    fp32 = fp32 || asked.levels[t].psi == DType::kFloat;
    widest = std::max(widest, asked.levels[t].embed);
  }
  return instance(asked.cascade.high && fp32, widest, asked.cascade.classes);
}

// Few, because each is another kernel on every architecture: what is wider takes two launches.
constexpr bool is_compiled(const Instance& with) { return with.embed == 64 && with.width == 24; }

// As arguments.h: those of a cascade, and whether every run of ψ_t of an image is there [walks, B].
inline int64_t counters(const ProjectedCascade& c) {
  return counters<CascadeOf<kMaxProjectedWalks>>(c) + int64_t(c.walks) * c.images;
}
inline int64_t all_units(const ProjectedCascade& c) {
  return all_units<CascadeOf<kMaxProjectedWalks>>(c) + int64_t(c.walks) * c.images * c.runs;
}

template <typename Work>
void take_sections(ProjectedCascade& c, const Instance& with, Work& work) {
  take_sections(static_cast<CascadeOf<kMaxProjectedWalks>&>(c), with, work);
  work.take(c.projected, int64_t(c.walks) * c.images * c.nodes * with.embed);
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
  for (int axis = 0; axis < 3; ++axis) c.grid[axis] = asked.grid[axis];
  c.runs = c.grid[0] * c.grid[1] * ((c.grid[2] + kRun - 1) / kRun);
  cut(c, with.tile(), with.in_registers(), cascade.processors, cascade.forced_parts, cascade.forced_all_parts);
  if (!count_units(c, true) || all_units(c) >= int64_t(1) << 31)
    return refuse("the units of work pass 2^31; split the batch");
  c.of_walk = {int32_t(all_units(c)), c.images * c.runs, c.images * c.groups, c.images * c.row_tiles,
               c.split.all_parts ? 1 : c.split.parts};
  if (counters(c) > cascade.counters_size) return refuse("the counters do not suffice; this is a defect of the caller");
  bind(c, with);
  for (int32_t t = 0; t < c.walks; ++t) {
    const Level& level = c.level[t] = asked.levels[t];
    float* const psi = c.projected == nullptr ? nullptr : c.projected + int64_t(t) * c.images * c.nodes * with.embed;
    c.psi[t] = {psi, int64_t(c.nodes) * level.embed, 1, level.embed, level.embed, level.psi};
    set_walk(c, cascade, t);
  }
  return launch(c, with);
}

}  // namespace difnet::cuda
