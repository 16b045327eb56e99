#include "driver.h"

#include <cstdlib>
#include <cstring>

namespace difnet {

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512bf16"};

Isa allowed() {
  int last = int(Isa::kAvx512BFloat16);
  if (const char* asked = std::getenv("DIFNET_KERNELS_ISA"))
    while (last > 0 && std::strcmp(kNames[last], asked) != 0) --last;
  return Isa(last);
}

Isa detect() {
#if defined(DIFNET_HAS_AVX2)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  return avx512bf16 ? Isa::kAvx512BFloat16 : avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kBaseline;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa isa() {
  static const Isa chosen = std::min(detect(), allowed());
  return chosen;
}

// x86 has all of them or none (CMakeLists.txt)
#if defined(DIFNET_HAS_AVX2)
#define DIFNET_CHOOSE(TABLE)                       \
  if (isa() >= Isa::kAvx512) return avx512::TABLE; \
  if (isa() == Isa::kAvx2) return avx2::TABLE;     \
  return baseline::TABLE;
#else
#define DIFNET_CHOOSE(TABLE) return baseline::TABLE;
#endif

template <>
const Kernels<float>& kernels<float>() {
  DIFNET_CHOOSE(kFloat32)
}

template <>
const Kernels<double>& kernels<double>() {
  DIFNET_CHOOSE(kFloat64)
}

const WalkKernels<float, Pair>* bfloat16_walks() {
#if defined(DIFNET_HAS_AVX512BF16)
  if (isa() == Isa::kAvx512BFloat16) return &avx512bf16::kBFloat16;
#endif
  return nullptr;
}

DType dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, "a field must be float16, bfloat16, float32 or float64");
  }
}

Field field(const Tensor& tensor, int64_t image) {
  char* data = static_cast<char*>(tensor.data_ptr());
  return {data + image * tensor.stride(0) * int64_t(tensor.element_size()), tensor.stride(1), tensor.stride(2),
          dtype(tensor)};
}

}  // namespace difnet
