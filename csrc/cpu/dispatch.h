// What a matrix unit serves, where its instruction set is in use (isa.def): what fits a row, else the vector kernels, which
// small problems keep. Every row has its birth certificate: the processor and the day on which it was the faster one, or
// why there is none. A set whose rows have none is not `preferred` in isa.def, so that no call is slower than before.
// `python -m benchmarks.matrix_unit` measures every row on a machine that has the unit, and prints the lines to put here.
//
// A row of walks is of both directions, because they have to form S by the same instruction.
#pragma once

#include <cstdint>
#include <string_view>

#include "tensors.h"

namespace difnet::cpu {

struct UnitWalk {
  std::string_view set;
  ScalarType fields;  // of seed and psi alike; else of their sums
  int64_t from_nodes, from_classes, from_embed;
  const char* certificate;
};
struct UnitProjection {
  std::string_view set;
  ScalarType features;
  int64_t from_channels;  // of the features
  const char* certificate;
};

inline constexpr const char* kNotMeasured = "not measured: no machine with the unit was at hand; built on its model";
// with more than one part the vectors' multiply-adds are the faster ones, so it has bf16 fields alone
inline constexpr const char* kNoArm = "not measured: no processor with BFMMLA was at hand; run in an emulator";
inline constexpr const char* kForTests = "none: models are slower than anything, and serve tests of every size";

inline constexpr UnitWalk kUnitWalks[] = {
    {"amx", ScalarType::Float, 256, 1, 32, kNotMeasured},    {"amx", ScalarType::BFloat16, 256, 1, 32, kNotMeasured},
    {"amx", ScalarType::Half, 256, 1, 32, kNotMeasured},     {"amx_model", ScalarType::Float, 1, 1, 1, kForTests},
    {"amx_model", ScalarType::BFloat16, 1, 1, 1, kForTests}, {"amx_model", ScalarType::Half, 1, 1, 1, kForTests},
    {"model", ScalarType::Float, 1, 1, 1, kForTests},        {"model", ScalarType::BFloat16, 1, 1, 1, kForTests},
    {"model", ScalarType::Half, 1, 1, 1, kForTests},         {"bfmmla", ScalarType::BFloat16, 1, 1, 1, kNoArm},
};
inline constexpr UnitProjection kUnitProjections[] = {
    {"amx", ScalarType::Float, 256, kNotMeasured},     {"amx", ScalarType::BFloat16, 256, kNotMeasured},
    {"amx", ScalarType::Half, 256, kNotMeasured},      {"amx_model", ScalarType::Float, 1, kForTests},
    {"amx_model", ScalarType::BFloat16, 1, kForTests}, {"amx_model", ScalarType::Half, 1, kForTests},
    {"model", ScalarType::Float, 1, kForTests},        {"model", ScalarType::BFloat16, 1, kForTests},
    {"model", ScalarType::Half, 1, kForTests},         {"bfmmla", ScalarType::BFloat16, 1, kNoArm},
};

inline bool unit_walks(std::string_view set, ScalarType fields, int64_t nodes, int64_t classes, int64_t embed) {
  for (const UnitWalk& row : kUnitWalks)
    if (row.set == set && row.fields == fields)
      return nodes >= row.from_nodes && classes >= row.from_classes && embed >= row.from_embed;
  return false;
}
inline bool unit_projects(std::string_view set, ScalarType features, int64_t channels) {
  for (const UnitProjection& row : kUnitProjections)
    if (row.set == set && row.features == features) return channels >= row.from_channels;
  return false;
}

}  // namespace difnet::cpu
