#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace difnet::cpu {

namespace {

#if defined(__x86_64__)
// f16c has no name in __builtin_cpu_supports before GCC 11 and clang 15; every processor with AVX2 has it
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool has_avx512bf16() { return __builtin_cpu_supports("avx512bf16"); }
// A dot of pairs of bf16 numbers does twice the work of a fp32 multiply-add. AMD starts as many (Zen 4: a walk on bf16
// fields takes 0.6 of the time of the fp32 kernels), Intel a quarter as many: half the rate.
[[maybe_unused]] bool bf16_is_fast() { return __builtin_cpu_is("amd"); }

// Tiles of bf16 numbers, saved by the operating system, and permitted by it: until a process has asked, the first
// instruction kills it. Whatever refuses (no AMX, an old kernel, a sandbox, valgrind, a signal stack that is too small)
// is a processor without it.
bool asked_for_amx() {
#if defined(__linux__)
  constexpr unsigned int kBf16 = 1u << 22, kTiles = 1u << 24, kSavesExtended = 1u << 27, kStates = 3u << 17;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned int a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kSavesExtended) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTiles) == 0) return false;
  unsigned int low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kStates) == kStates && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
[[maybe_unused]] bool has_amx() {
  static const bool permitted = asked_for_amx();
  return permitted;
}
#endif

#if defined(__aarch64__)
// BFMMLA, as the system tells it: the register that has it is not for programs to read.
[[maybe_unused]] bool has_bfmmla() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

constexpr const char* kNames[] = {
#define DIFNET_ISA(NAME, EXTENDS, RUNS, PREFERRED) #NAME,
#include "isa_built.def"
};

constexpr Isa kExtends[] = {
#define DIFNET_ISA(NAME, EXTENDS, RUNS, PREFERRED) Isa::k_##EXTENDS,
#include "isa_built.def"
};

uint32_t runnable() {
  uint32_t sets = 0;
#define DIFNET_ISA(NAME, EXTENDS, RUNS, PREFERRED) \
  if (RUNS) sets |= 1u << int(Isa::k_##NAME);
#include "isa_built.def"
  return sets;
}

uint32_t preferred() {
  uint32_t sets = 0;
#define DIFNET_ISA(NAME, EXTENDS, RUNS, PREFERRED) \
  if (PREFERRED) sets |= 1u << int(Isa::k_##NAME);
#include "isa_built.def"
  return sets;
}

std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

uint32_t choose() {
  const char* asked = std::getenv("DIFNET_KERNELS_ISA");
  if (asked == nullptr || *asked == '\0') return runnable() & preferred();
  for (int isa = 0; isa < int(Isa::kCount); ++isa) {
    if (std::string(asked) != kNames[isa]) continue;
    if ((runnable() >> isa & 1) == 0)
      throw std::runtime_error("DIFNET_KERNELS_ISA=" + std::string(asked) +
                               " does not run on this processor, which runs " + joined(isa_names(true)) +
                               "; name one of these, or unset it.");
    uint32_t sets = 1u << isa;
    for (int base = int(kExtends[isa]); (sets >> base & 1) == 0; base = int(kExtends[base])) sets |= 1u << base;
    return sets;
  }
  throw std::runtime_error("DIFNET_KERNELS_ISA must be one of " + joined(isa_names(false)) + "; got " + asked +
                           ". Name one of these, or unset it.");
}

}  // namespace

uint32_t isas_in_use() {
  static const uint32_t sets = choose();
  return sets;
}

std::string isa_name() {
  int last = int(Isa::kCount) - 1;
  while ((isas_in_use() >> last & 1) == 0) --last;
  return kNames[last];
}

std::vector<std::string> isa_names(bool only_runnable) {
  std::vector<std::string> names;
  for (int isa = 0; isa < int(Isa::kCount); ++isa)
    if (!only_runnable || (runnable() >> isa & 1) != 0) names.push_back(kNames[isa]);
  return names;
}

}  // namespace difnet::cpu
