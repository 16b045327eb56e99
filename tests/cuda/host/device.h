// The vocabulary of csrc/cuda/device.h for a CPU: the same names, so that the same kernels compile. Each collective
// instruction gathers the operands of its 32 lanes, and the last lane computes for all. See machine.h and
// matrix_unit.h.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>

#include "machine.h"
#include "matrix_unit.h"

#define DIFNET_DEVICE inline
#define DIFNET_KERNEL(blocks)
#define DIFNET_PARAMETER

namespace difnet::cuda {

using twin::Machine;
using twin::Unseen;
using twin::Where;
#define TWIN_HERE const Where& where = Where::current()

// ---- who am I -------------------------------------------------------------------------------------------------------
DIFNET_DEVICE int block() { return Machine::block_of_thread(); }
DIFNET_DEVICE int blocks() { return Machine::number_of_blocks(); }
DIFNET_DEVICE int thread() { return Machine::thread_of_block(); }
DIFNET_DEVICE int lane() { return thread() % 32; }
DIFNET_DEVICE int warp() { return thread() / 32; }
DIFNET_DEVICE int anew(int x) { return x; }

// ---- the block: shared memory and barriers --------------------------------------------------------------------------
template <typename T>
DIFNET_DEVICE T& shared_memory() {
  Unseen unseen;
  return *reinterpret_cast<T*>(Machine::now->block().shared);
}
DIFNET_DEVICE void barrier(TWIN_HERE) { Machine::now->barrier("a barrier", where, true); }
DIFNET_DEVICE bool barrier_and(bool mine, TWIN_HERE) { return Machine::now->barrier("barrier_and", where, mine); }

// ---- the warp -------------------------------------------------------------------------------------------------------
TWIN_PLAIN DIFNET_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
TWIN_PLAIN DIFNET_DEVICE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// The operands of this lane go in, what `act` leaves for it comes out.
template <int kIn, int kOut, typename Act>
TWIN_PLAIN DIFNET_DEVICE void collective(const char* instruction, const Where& where, const uint32_t (&in)[kIn],
                                         uint32_t (&out)[kOut], Act act) {
  Unseen unseen;
  Machine& machine = *Machine::now;
  twin::Warp& warp = machine.warp();
  const int lane = machine.me().thread % twin::kLanes;
  for (int x = 0; x < kIn; ++x) warp.in[lane][x] = in[x];
  machine.meet(warp.meeting, twin::kLanes, instruction, where, false, [&]() TWIN_PLAIN { act(warp); });
  for (int x = 0; x < kOut; ++x) out[x] = warp.out[lane][x];
}

DIFNET_DEVICE float shuffle(float x, int from, TWIN_HERE) {
  uint32_t out[1];
  collective("shuffle", where, {bits_of(x), uint32_t(from)}, out, [](twin::Warp& warp) TWIN_PLAIN {
    for (int lane = 0; lane < 32; ++lane) warp.out[lane][0] = warp.in[warp.in[lane][1] % 32][0];
  });
  return float_of(out[0]);
}
DIFNET_DEVICE float shuffle_xor(float x, int mask, TWIN_HERE) { return shuffle(x, lane() ^ mask, where); }

// kMatrices 8 x 8 matrices; the lanes read their own rows, so that the race detector knows who reads.
template <int kMatrices, bool kTransposed>
DIFNET_DEVICE void ldmatrix(uint32_t (&to)[kMatrices], const void* row, const char* instruction, const Where& where) {
  uint32_t in[5] = {};
  if (lane() < kMatrices * 8) {
    Machine::now->check_shared(row, 16, where);
    for (int x = 0; x < 4; ++x) in[x] = static_cast<const uint32_t*>(row)[x];
    in[4] = Machine::now->offset_in_shared(row);
  }
  collective(instruction, where, in, to, [](twin::Warp& warp) TWIN_PLAIN {
    Machine::now->result().loaded += kMatrices * 128;
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      uint32_t banks = 0;  // one wave reads 8 rows of 4 banks; rows that share a bank need another
      for (int r = 0; r < 8; ++r) {
        const uint32_t bank = warp.in[matrix * 8 + r][4] / 4 % 32, mine = 15u << bank;
        Machine::now->result().bank_conflicts += (banks & mine) != 0;
        banks |= mine;
      }
      for (int lane = 0; lane < 32; ++lane) {
        const auto number = [&](int r, int c)
                                TWIN_PLAIN { return warp.in[matrix * 8 + r][c / 2] >> (c % 2 * 16) & 0xffffu; };
        const int r = lane / 4, c = lane % 4 * 2;
        warp.out[lane][matrix] =
            kTransposed ? number(c, r) | number(c + 1, r) << 16 : number(r, c) | number(r, c + 1) << 16;
      }
    }
  });
}
DIFNET_DEVICE void ldmatrix4(uint32_t (&to)[4], const void* row, TWIN_HERE) {
  ldmatrix<4, false>(to, row, "ldmatrix4", where);
}
DIFNET_DEVICE void ldmatrix4_transposed(uint32_t (&to)[4], const void* row, TWIN_HERE) {
  ldmatrix<4, true>(to, row, "ldmatrix4_transposed", where);
}
DIFNET_DEVICE void ldmatrix2_transposed(uint32_t (&to)[2], const void* row, TWIN_HERE) {
  ldmatrix<2, true>(to, row, "ldmatrix2_transposed", where);
}

DIFNET_DEVICE void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, TWIN_HERE) {
  uint32_t out[4];
  collective("mma", where,
             {a[0], a[1], a[2], a[3], b0, b1, bits_of(sum[0]), bits_of(sum[1]), bits_of(sum[2]), bits_of(sum[3])}, out,
             [](twin::Warp& warp) TWIN_PLAIN {
               float left[16][16], right[16][8], total[16][8];
               const auto half = [](uint32_t two, int which)
                                     TWIN_PLAIN { return twin::half_to_float(uint16_t(two >> which * 16)); };
               for (int lane = 0; lane < 32; ++lane) {
                 const uint32_t* in = warp.in[lane];
                 const int g = lane / 4, q = lane % 4 * 2;
                 for (int which = 0; which < 2; ++which) {
                   for (int x = 0; x < 4; ++x) left[g + x % 2 * 8][q + x / 2 * 8 + which] = half(in[x], which);
                   for (int x = 0; x < 2; ++x) right[q + x * 8 + which][g] = half(in[4 + x], which);
                   for (int x = 0; x < 2; ++x) total[g + x * 8][q + which] = float_of(in[6 + x * 2 + which]);
                 }
               }
               twin::truncating_mma(total, left, right);
               for (int lane = 0; lane < 32; ++lane)
                 for (int x = 0; x < 4; ++x)
                   warp.out[lane][x] = bits_of(total[lane / 4 + x / 2 * 8][lane % 4 * 2 + x % 2]);
             });
  for (int x = 0; x < 4; ++x) sum[x] = float_of(out[x]);
}

// ---- asynchronous copies: rubbish when they are issued, the data when they are waited for ---------------------------
DIFNET_DEVICE void write16(void* to, const uint64_t (&words)[2]) {  // two plain stores, which the detectors see
  static_cast<volatile uint64_t*>(to)[0] = words[0];
  static_cast<volatile uint64_t*>(to)[1] = words[1];
}
DIFNET_DEVICE void copy16(void* shared, const void* global, TWIN_HERE) {
  Machine::now->check_shared(shared, 16, where);
  Machine::now->check_global(global, 16, where);
  const volatile uint64_t* from = static_cast<const volatile uint64_t*>(global);
  const uint64_t kept[2] = {from[0], from[1]};
  write16(shared, {0xfff7fff7fff7fff7u, 0xfff7fff7fff7fff7u});
  Unseen unseen;
  Machine::now->result().copied += 16;
  Machine::now->me().copies.push_back({shared, global, {kept[0], kept[1]}, where});
}
DIFNET_DEVICE void wait_for_copies() {
  std::vector<twin::Copy> copies;
  bool late;  // the copy reads when it is issued, or as late as it can
  {
    Unseen unseen;
    copies.swap(Machine::now->me().copies);
    late = Machine::now->chance() % 2 != 0;
  }
  for (const twin::Copy& copy : copies) {
    const volatile uint64_t* from = static_cast<const volatile uint64_t*>(copy.from);
    const uint64_t now[2] = {from[0], from[1]};
    write16(copy.to, {late ? now[0] : copy.kept[0], late ? now[1] : copy.kept[1]});
  }
}

// ---- between blocks -------------------------------------------------------------------------------------------------
DIFNET_DEVICE uint32_t load_acquire(const uint32_t* counter) {
  Machine::now->yield_at_random();
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}
DIFNET_DEVICE void add_release(uint32_t* counter, uint32_t value) {
  Machine::now->yield_at_random();
  __atomic_fetch_add(counter, value, __ATOMIC_RELEASE);
  Machine::now->wrote_a_counter();
}
DIFNET_DEVICE uint32_t add_acquire_release(uint32_t* counter, uint32_t value) {
  Machine::now->yield_at_random();
  const uint32_t before = __atomic_fetch_add(counter, value, __ATOMIC_ACQ_REL);
  Machine::now->wrote_a_counter();
  return before;
}
DIFNET_DEVICE void pause(TWIN_HERE) { Machine::now->wait_for_a_write(where); }
constexpr uint32_t kPatience = 1u << 26;
[[noreturn]] DIFNET_DEVICE void give_up(const char* words, const char*, int, TWIN_HERE) {
  Machine::now->fail(where, "%s", words);
}

// ---- numbers --------------------------------------------------------------------------------------------------------
DIFNET_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
DIFNET_DEVICE float larger(float a, float b) { return std::fmax(a, b); }
DIFNET_DEVICE float smaller(float a, float b) { return std::fmin(a, b); }
DIFNET_DEVICE float magnitude(float x) { return std::fabs(x); }
DIFNET_DEVICE float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
DIFNET_DEVICE float log2_exact(float x) { return std::log2(x); }
DIFNET_DEVICE float inverse_root(float x) { return float(1.0 / std::sqrt(double(x))); }
DIFNET_DEVICE float half_to_float(uint16_t bits) { return twin::half_to_float(bits); }
DIFNET_DEVICE uint16_t float_to_half(float x) { return twin::float_to_half(x); }
DIFNET_DEVICE uint32_t two_halves(float first, float second) {
  return float_to_half(first) | uint32_t(float_to_half(second)) << 16;
}
DIFNET_DEVICE uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace difnet::cuda
