// What both directions of a walk need around the kernels: the instruction set, tensors as fields, and workspace.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels.h"

namespace difnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Instruction sets, each with those before it; INSTRUCTION_SETS of backends/cpu.py has their names.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512BFloat16 };

// The last one that this processor has and DIFNET_KERNELS_ISA allows.
Isa isa();

// The kernels for it.
template <typename Real>
const Kernels<Real>& kernels();

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

DType dtype(const Tensor& tensor);

// Image `image` of a (B, C, N) tensor.
Field field(const Tensor& tensor, int64_t image);

template <typename Real, typename Factor>
Sizes sizes(const Tensor& state, const Tensor& psi, const WalkKernels<Real, Factor>& with) {
  const int64_t K = state.size(1), D = psi.size(1);
  return {state.size(2),
          K,
          D,
          round_up(K + 1, with.channel_unit),
          round_up(D, with.channel_unit),
          round_up(K + 1, with.panel),
          round_up(D, with.panel),
          round_up(D, with.together) / with.together};
}

// The walks on pairs of bf16 numbers, if the processor multiplies them.
const WalkKernels<float, Pair>* bfloat16_walks();

// body(kernels) with those that fit the fields: the accumulation dtype decides, and bf16 fields go in pairs.
template <typename Body>
void with_walks(const Tensor& walked, const Tensor& seed, const Tensor& psi, Body body) {
  const bool narrow = seed.scalar_type() == ScalarType::BFloat16 && psi.scalar_type() == ScalarType::BFloat16;
  if (walked.scalar_type() == ScalarType::Double)
    body(kernels<double>().walk);
  else if (const auto* pairs = narrow ? bfloat16_walks() : nullptr)
    body(*pairs);
  else
    body(kernels<float>().walk);
}

// One allocation, handed out in pieces that start on their own cache line.
template <typename Real>
class Workspace {
 public:
  int64_t reserve(int64_t count) {
    const int64_t start = size_;
    size_ += round_up(count, 64 / int64_t(sizeof(Real)));
    return start;
  }
  void allocate(const Tensor& like) {
    memory_ = torch::stable::new_empty(like, {size_}, like.scalar_type());
    base_ = static_cast<Real*>(memory_->mutable_data_ptr());
  }
  template <typename Element = Real>
  Element* at(int64_t start) const {
    static_assert(sizeof(Element) == sizeof(Real));
    return reinterpret_cast<Element*>(base_ + start);
  }

 private:
  int64_t size_ = 0;
  std::optional<Tensor> memory_;
  Real* base_ = nullptr;
};

// How many workers share `items`; each needs its own scratch memory.
inline int64_t workers(int64_t items) { return std::min<int64_t>(torch::stable::get_num_threads(), items); }

// body(worker, item) for every item, first come, first served: an item must not care who does it.
template <typename Body>
void share_out(int64_t items, Body body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers(items), 1, [&](int64_t worker, int64_t) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(worker, item);
  });
}

}  // namespace difnet
