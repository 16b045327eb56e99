// The floating-point environment of a parallel task: to nearest, denormal numbers are zero, nothing traps. Threads of a
// pool keep whatever mode somebody left there, and results must not depend on that. Kernels keep denormal numbers out
// of their products; this is for what is that small already when it comes.
#pragma once

#include <cstdint>

namespace difnet::cpu {

#if defined(__x86_64__) || defined(__i386__)

class FloatMode {
 public:
  FloatMode() { __builtin_ia32_ldmxcsr((caller_ & kFlags) | kMasks | kFlushToZero | kDenormalsAreZero); }
  // what happened (the flags) is told to the caller, who gets its mode back
  ~FloatMode() { __builtin_ia32_ldmxcsr((caller_ & ~kFlags) | (__builtin_ia32_stmxcsr() & kFlags)); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  static constexpr uint32_t kFlags = 0x3f, kDenormalsAreZero = 0x40, kMasks = 0x1f80, kFlushToZero = 0x8000;
  const uint32_t caller_ = __builtin_ia32_stmxcsr();
};

#elif defined(__aarch64__)

class FloatMode {
 public:
  FloatMode() { set(kFlushToZero); }
  ~FloatMode() { set(caller_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  static constexpr uint64_t kFlushToZero = 1 << 24;
  static uint64_t get() {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode)); }
  const uint64_t caller_ = get();
};

#else

class FloatMode {};

#endif

}  // namespace difnet::cpu
