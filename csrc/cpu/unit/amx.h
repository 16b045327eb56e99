// Intel's Advanced Matrix Extensions. In assembler: the compiler's intrinsics tell it neither that a load reads memory,
// so that it may move the stores of an operand behind it, nor that a configuration has 64 bytes.
#pragma once

#include "cpu/simd.h"

namespace difnet::cpu::DIFNET_ISA {

struct Unit {
  // The configuration of the unit that a thread has; its first byte is 0 where it has none.
  struct Configuration {
    uint8_t bytes[64];
  };

  static DIFNET_MEMBER void begin(unsigned char* callers) {
    auto& saved = *reinterpret_cast<Configuration*>(callers);
    __asm__ volatile("sttilecfg %0" : "=m"(saved));
    __asm__ volatile("ldtilecfg %0" ::"m"(kOurs));
  }

  static DIFNET_MEMBER void end(const unsigned char* callers) {
    const auto& saved = *reinterpret_cast<const Configuration*>(callers);
    if (saved.bytes[0] == 0)
      __asm__ volatile("tilerelease" ::: "memory");
    else
      __asm__ volatile("ldtilecfg %0" ::"m"(saved));
  }

  template <int C>
  static DIFNET_MEMBER void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(C));
  }
  template <int A>
  static DIFNET_MEMBER void load_a(const uint32_t* from) {
    load<A>(from);
  }
  template <int B>
  static DIFNET_MEMBER void load_b(const uint32_t* from) {
    load<B>(from);
  }
  template <int C, int A, int B>
  static DIFNET_MEMBER void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C>
  static DIFNET_MEMBER void write_rows(const float* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * int64_t(sizeof(float))), "i"(C)
                     : "memory");
  }
  template <int C>
  static DIFNET_MEMBER void read_rows(float* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * int64_t(sizeof(float))), "i"(C)
                     : "memory");
  }

  static void counts(int64_t* to) { to[0] = to[1] = to[2] = 0; }  // the processor does not tell

 private:
  template <int T>
  static DIFNET_MEMBER void load(const uint32_t* from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(int64_t(64)), "i"(T) : "memory");
  }

  // palette 1; eight registers of 64 bytes a row and of 16 rows
  alignas(64) static constexpr Configuration kOurs = {{1,  0,  0,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0, 0,  0,  //
                                                       64, 0,  64, 0,  64, 0,  64, 0,  64, 0, 64, 0, 64, 0, 64, 0,  //
                                                       0,  0,  0,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0, 0,  0,  //
                                                       16, 16, 16, 16, 16, 16, 16, 16, 0,  0, 0,  0, 0,  0, 0,  0}};
};

}  // namespace difnet::cpu::DIFNET_ISA
