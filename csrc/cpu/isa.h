// Which instruction sets (isa.def) the library was compiled for, which this processor runs, and which are in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace difnet::cpu {

// The compiled sets, by their place in isa.def.
enum class Isa {
#define DIFNET_ISA(NAME, EXTENDS, RUNS, PREFERRED) k_##NAME,
#include "isa_built.def"
  kCount
};

// Those in use, one bit each: what DIFNET_KERNELS_ISA names with what it extends, else all that this processor runs and
// that are preferred. Throws if the variable names a set that does not exist or cannot run.
uint32_t isas_in_use();

// The name of the last one in use.
std::string isa_name();

// The names of all, or of those that this processor runs.
std::vector<std::string> isa_names(bool runnable);

// The last of `tables` (one place per set, null where a set does not bring it) whose set is in use; null if there is
// none.
template <typename Table>
const Table* in_use(const Table* const (&tables)[int(Isa::kCount)]) {
  const uint32_t used = isas_in_use();
  for (int isa = int(Isa::kCount) - 1; isa >= 0; --isa)
    if (tables[isa] != nullptr && (used >> isa & 1) != 0) return tables[isa];
  return nullptr;
}

}  // namespace difnet::cpu
