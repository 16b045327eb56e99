// Scratch memory of a call, and how its items are shared out among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "cpu/float_mode.h"
#include "tensors.h"

namespace difnet::cpu {

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

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
  // as Elements, which consist of Reals or are as large
  template <typename Element = Real>
  Element* at(int64_t start) const {
    static_assert(sizeof(Element) % sizeof(Real) == 0);
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
    const FloatMode mode;
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(worker, item);
  });
}

}  // namespace difnet::cpu
