#pragma once

#include <thread>

#include "torch/csrc/stable/tensor.h"

namespace torch::stable {

inline Tensor new_empty(const Tensor&, std::vector<int64_t> sizes, headeronly::ScalarType type) {
  int64_t numbers = 1;
  for (int64_t size : sizes) numbers *= size;
  return Tensor(type, sizes, {1}, numbers);
}

inline uint32_t get_num_threads() { return 2; }

template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t, Body body) {
  std::vector<std::thread> threads;
  for (int64_t x = begin; x < end; ++x) threads.emplace_back([=] { body(x, x + 1); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace torch::stable
