#include "driver.h"

#include <cstdlib>
#include <cstring>

namespace difnet {

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa detect() {
  const char* limit = std::getenv("DIFNET_KERNELS_ISA");
  const auto allowed = [&](const char* name) {
    return limit == nullptr || std::strcmp(limit, name) == 0 ||
           (std::strcmp(name, "avx2") == 0 && std::strcmp(limit, "avx512") == 0);
  };
#if defined(DIFNET_HAS_AVX512)
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
#endif
#if defined(DIFNET_HAS_AVX2)
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  static_cast<void>(allowed);
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa found = detect();
  return found;
}

#if defined(DIFNET_HAS_AVX512)
#define DIFNET_AVX512(TABLE) \
  if (isa() == Isa::kAvx512) return avx512::TABLE;
#else
#define DIFNET_AVX512(TABLE)
#endif
#if defined(DIFNET_HAS_AVX2)
#define DIFNET_AVX2(TABLE) \
  if (isa() == Isa::kAvx2) return avx2::TABLE;
#else
#define DIFNET_AVX2(TABLE)
#endif

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  DIFNET_AVX512(kFloat32)
  DIFNET_AVX2(kFloat32)
  return baseline::kFloat32;
}

template <>
const Kernels<double>& kernels<double>() {
  DIFNET_AVX512(kFloat64)
  DIFNET_AVX2(kFloat64)
  return baseline::kFloat64;
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

Sizes sizes(const Tensor& state, const Tensor& psi, int64_t channel_unit, int64_t panel) {
  const int64_t K = state.size(1), D = psi.size(1);
  return {state.size(2),     K, D, round_up(K + 1, channel_unit), round_up(D, channel_unit), round_up(K + 1, panel),
          round_up(D, panel)};
}

}  // namespace difnet
