// Which walks a matrix unit serves, where its instruction set is in use (isa.def): the first row that fits, else the
// vector kernels, which small problems keep. Every row has its birth certificate: the processor and the day on which it
// was the faster one, or why there is none. A set whose rows have none is not `preferred` in isa.def, so that no call is
// slower than before. The first machine that has the unit is to measure `make compare` with DIFNET_KERNELS_ISA unset and
// named, to move these bounds to where the two meet, and to write that here.
#pragma once

#include <cstdint>
#include <string_view>

#include "tensors.h"

namespace difnet::cpu {

struct UnitRow {
  std::string_view set;
  ScalarType fields;  // of seed and psi alike; else of their sums
  int64_t from_nodes, from_embed;
  const char* certificate;
};

inline constexpr const char* kNotMeasured = "not measured: no machine with the unit was at hand; built on its model";
inline constexpr const char* kForTests = "none: models are slower than anything, and serve tests of every size";
inline constexpr UnitRow kUnitRows[] = {
    {"amx", ScalarType::Float, 256, 32, kNotMeasured},    {"amx", ScalarType::BFloat16, 256, 32, kNotMeasured},
    {"amx", ScalarType::Half, 256, 32, kNotMeasured},     {"amx_model", ScalarType::Float, 1, 1, kForTests},
    {"amx_model", ScalarType::BFloat16, 1, 1, kForTests}, {"amx_model", ScalarType::Half, 1, 1, kForTests},
    {"model", ScalarType::Float, 1, 1, kForTests},        {"model", ScalarType::BFloat16, 1, 1, kForTests},
    {"model", ScalarType::Half, 1, 1, kForTests},
};

inline const UnitRow* unit_row(std::string_view set, ScalarType fields, int64_t nodes, int64_t embed) {
  for (const UnitRow& row : kUnitRows)
    if (row.set == set && row.fields == fields && nodes >= row.from_nodes && embed >= row.from_embed) return &row;
  return nullptr;
}

}  // namespace difnet::cpu
