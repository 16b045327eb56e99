// The operators of library.cpp on a CPU.

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/projection/backward.h"
#include "cpu/projection/forward.h"
#include "cpu/walk/backward.h"
#include "cpu/walk/forward.h"

namespace difnet::cpu {
namespace {

std::string instruction_set() { return isa_name(); }

std::vector<std::string> instruction_sets(bool runnable) { return isa_names(runnable); }

}  // namespace
}  // namespace difnet::cpu

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&difnet::cpu::instruction_set));
  m.impl("instruction_sets", TORCH_BOX(&difnet::cpu::instruction_sets));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CPU, m) {
  m.impl("walk_forward", TORCH_BOX(&difnet::cpu::walk_forward));
  m.impl("walk_backward", TORCH_BOX(&difnet::cpu::walk_backward));
  m.impl("project_pool_forward", TORCH_BOX(&difnet::cpu::projection_forward));
  m.impl("project_pool_backward", TORCH_BOX(&difnet::cpu::projection_backward));
}
