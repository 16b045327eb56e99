// As much of torch's stable ABI as the kernels' drivers use, so that they run where there is no torch.
#pragma once

#include <cstdint>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace torch::headeronly {

enum class ScalarType { Float, Double, Half, BFloat16, Int };

}  // namespace torch::headeronly

namespace torch::stable {

class Tensor {
 public:
  using ScalarType = headeronly::ScalarType;

  Tensor(ScalarType type, std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t numbers)
      : type_(type), sizes_(sizes), strides_(strides), bytes_(new char[numbers * element_size() + 64]) {}

  ScalarType scalar_type() const { return type_; }
  int64_t element_size() const {
    return type_ == ScalarType::Double ? 8 : type_ == ScalarType::Half || type_ == ScalarType::BFloat16 ? 2 : 4;
  }
  bool is_cpu() const { return true; }
  bool is_contiguous() const {
    int64_t step = 1;
    for (size_t axis = sizes_.size(); axis-- > 0; step *= sizes_[axis])
      if (sizes_[axis] != 1 && strides_[axis] != step) return false;
    return true;
  }
  int64_t dim() const { return int64_t(sizes_.size()); }
  int64_t size(int64_t axis) const { return sizes_[axis]; }
  int64_t stride(int64_t axis) const { return strides_[axis]; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  void* data_ptr() const {  // on a cache line of its own, as torch's memory is
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes_.get()) + 63) / 64 * 64);
  }
  void* mutable_data_ptr() const { return data_ptr(); }
  const void* const_data_ptr() const { return data_ptr(); }

 private:
  ScalarType type_;
  std::vector<int64_t> sizes_, strides_;
  std::shared_ptr<char[]> bytes_;
};

}  // namespace torch::stable

#define STD_TORCH_CHECK(holds, ...) \
  if (!(holds)) throw std::runtime_error("a demand does not hold")
