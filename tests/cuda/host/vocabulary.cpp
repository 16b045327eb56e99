// Every instruction of the vocabulary against a plain model, and what a kernel may not do. The argument names a check;
// prints "right", "WRONG ...", or the sentence with which the machine ends a run.
#include <device.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace difnet::cuda {
namespace {

constexpr int kWarp = 32, kBlock = 128;
unsigned schedule = 1;

template <typename Kernel>
std::string run(int blocks, int threads, Kernel kernel, size_t shared = 4096) {
  const auto result = Machine::run({blocks, threads, shared, nullptr, schedule}, kernel);
  return result.error;
}
std::string judge(const std::string& error, bool right, const char* what) {
  return !error.empty() ? error : right ? "right" : std::string("WRONG ") + what;
}

std::vector<uint16_t> halves(size_t count, unsigned seed) {
  std::mt19937 chance(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> numbers(count);
  for (auto& number : numbers) number = float_to_half(normal(chance));
  return numbers;
}

// ---- each instruction -----------------------------------------------------------------------------------------------
std::string shuffles() {
  std::vector<float> up(kWarp), across(kWarp);
  const auto error = run(1, kWarp, [&] {
    const int mine = lane();
    up[size_t(mine)] = shuffle(float(mine), mine | 3);
    across[size_t(mine)] = shuffle_xor(float(mine), 5);
  });
  bool right = true;
  for (int l = 0; l < kWarp; ++l) right = right && up[size_t(l)] == float(l | 3) && across[size_t(l)] == float(l ^ 5);
  return judge(error, right, "shuffle");
}

template <bool kTransposed, int kMatrices>
std::string matrices() {
  const auto numbers = halves(kMatrices * 64, 3);
  std::vector<uint32_t> got(kWarp * kMatrices);
  const auto error = run(1, kWarp, [&] {
    auto& memory = shared_memory<uint16_t[4 * 64]>();
    for (int at = lane(); at < kMatrices * 64; at += kWarp) memory[at] = numbers[size_t(at)];
    barrier();
    uint32_t to[kMatrices];
    const uint16_t* row = memory + lane() % (kMatrices * 8) * 8;
    if constexpr (kMatrices == 2)
      ldmatrix2_transposed(to, row);
    else if constexpr (kTransposed)
      ldmatrix4_transposed(to, row);
    else
      ldmatrix4(to, row);
    for (int m = 0; m < kMatrices; ++m) got[size_t(lane() * kMatrices + m)] = to[m];
  });
  bool right = true;
  for (int l = 0; l < kWarp; ++l)
    for (int m = 0; m < kMatrices; ++m)
      for (int e = 0; e < 2; ++e) {
        const int r = l / 4, c = l % 4 * 2 + e;
        const uint16_t expected = numbers[size_t(m * 64 + (kTransposed ? c * 8 + r : r * 8 + c))];
        right = right && uint16_t(got[size_t(l * kMatrices + m)] >> 16 * e) == expected;
      }
  return judge(error, right, "ldmatrix");
}

// Fragments as PTX defines them, in numbers that fp32 adds exactly, so that truncation has no say.
std::string products() {
  std::mt19937 chance(5);
  float a[16][16], b[16][8], c[16][8];
  for (auto& row : a)
    for (auto& x : row) x = float(int(chance() % 17) - 8);
  for (auto& row : b)
    for (auto& x : row) x = float(int(chance() % 17) - 8) / 4;
  for (auto& row : c)
    for (auto& x : row) x = float(int(chance() % 99));
  float got[16][8];
  const auto error = run(1, kWarp, [&] {
    const int g = lane() / 4, q = lane() % 4 * 2;
    const uint32_t left[4] = {two_halves(a[g][q], a[g][q + 1]), two_halves(a[g + 8][q], a[g + 8][q + 1]),
                              two_halves(a[g][q + 8], a[g][q + 9]), two_halves(a[g + 8][q + 8], a[g + 8][q + 9])};
    float sum[4] = {c[g][q], c[g][q + 1], c[g + 8][q], c[g + 8][q + 1]};
    mma(sum, left, two_halves(b[q][g], b[q + 1][g]), two_halves(b[q + 8][g], b[q + 9][g]));
    got[g][q] = sum[0], got[g][q + 1] = sum[1], got[g + 8][q] = sum[2], got[g + 8][q + 1] = sum[3];
  });
  bool right = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float expected = c[i][j];
      for (int k = 0; k < 16; ++k) expected += a[i][k] * b[k][j];
      right = right && got[i][j] == expected;
    }
  return judge(error, right, "mma");
}

// The matrix unit's rule for one sum, number by number: eight products at a time, each and the sum cut to 24 bits below
// the largest of them.
float truncated(float sum, const float* a, const float* b) {
  for (int first = 0; first < 16; first += 8) {
    double terms[9] = {sum};
    int largest = -97;  // what is smaller is aligned to this
    for (int k = 0; k < 8; ++k) terms[1 + k] = double(a[first + k]) * double(b[first + k]);
    double plain = 0, total = 0;
    for (const double x : terms) plain += x, largest = x == 0 ? largest : std::max(largest, std::ilogb(x));
    if (!std::isfinite(plain)) {
      sum = float(plain);
      continue;
    }
    for (const double x : terms) total += std::trunc(std::ldexp(x, 23 - largest));
    const int beyond = total == 0 ? 0 : std::max(0, std::ilogb(total) - 23);
    sum = float(std::ldexp(std::trunc(std::ldexp(total, -beyond)), beyond + largest - 23));
  }
  return sum;
}

// Fragments of numbers of many sizes, so that most terms are cut; infinity and NaN in one row, zeros in another.
std::string truncation() {
  std::mt19937 chance(7);
  std::normal_distribution<float> normal;
  bool right = true;
  for (int turn = 0; turn < 40; ++turn) {
    float a[16][16], b[8][16], c[16][8], got[16][8];
    const auto number = [&](int sizes) {
      const float x = std::ldexp(normal(chance), -int(chance() % unsigned(sizes)));
      return half_to_float(float_to_half(x));
    };
    for (auto& row : a)
      for (auto& x : row) x = number(turn % 4 * 6 + 1);
    for (auto& row : b)
      for (auto& x : row) x = number(turn % 4 * 6 + 1);
    for (auto& row : c)
      for (auto& x : row) x = std::ldexp(normal(chance), turn % 5 * 5 - 10 - int(chance() % 9));
    for (int k = 0; k < 16; ++k) a[2][k] = 0.0f;
    if (turn % 8 == 0) a[3][turn / 8 * 3] = INFINITY, a[4][9] = NAN, c[5][1] = -INFINITY;
    // 1 + 16 products a little under half an ulp: rounding would give more than 1
    for (int k = 0; k < 16; ++k) a[0][k] = turn % 2 ? 0x1.8p-13f : -0x1.8p-13f, b[0][k] = 0x1p-12f;
    c[0][0] = turn % 2 ? 1.0f : -1.0f;
    const auto error = run(1, kWarp, [&] {
      const int g = lane() / 4, q = lane() % 4 * 2;
      const auto two = [q](const float* row, int k) { return two_halves(row[q + k], row[q + k + 1]); };
      float sum[4] = {c[g][q], c[g][q + 1], c[g + 8][q], c[g + 8][q + 1]};
      mma(sum, {two(a[g], 0), two(a[g + 8], 0), two(a[g], 8), two(a[g + 8], 8)}, two(b[g], 0), two(b[g], 8));
      got[g][q] = sum[0], got[g][q + 1] = sum[1], got[g + 8][q] = sum[2], got[g + 8][q + 1] = sum[3];
    });
    if (!error.empty()) return error;
    right = right && got[0][0] == c[0][0];
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        const float expected = truncated(c[i][j], a[i], b[j]);
        right = right && (got[i][j] == expected || (expected != expected && got[i][j] != got[i][j]));
      }
  }
  return judge("", right, "truncation");
}

std::string conversions() {
  bool right = true;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = half_to_float(uint16_t(bits));
    if (x == x) right = right && float_to_half(x) == bits;
  }
  // ties go to even, what is too large to infinity, NaN stays NaN
  right = right && float_to_half(1.0f + 0x1p-11f) == 0x3c00 && float_to_half(1.0f + 0x1.8p-10f) == 0x3c02;
  right = right && float_to_half(65520.0f) == 0x7c00 && two_halves(1.0f, 2.0f) == 0x40003c00u;
  right = right && float_to_bfloat16(1.0f + 0x1p-8f) == 0x3f80 && float_to_bfloat16(1.0f + 0x1.8p-7f) == 0x3f82;
  right = right && (float_to_bfloat16(NAN) & 0x7fff) > 0x7f80 && exp2_fast(-127.0f) == 0.0f && exp2_fast(3.0f) == 8.0f;
  return judge("", right, "conversions");
}

// What is copied is rubbish until it is waited for, in every thread.
std::string copies() {
  alignas(16) static float from[kBlock * 4];
  bool early = true, late = true;
  for (int x = 0; x < kBlock * 4; ++x) from[x] = float(x);
  const auto error = run(1, kBlock, [&] {
    auto& memory = shared_memory<float[kBlock * 4]>();
    copy16(memory + thread() * 4, from + thread() * 4);
    if (memory[thread() * 4] == from[thread() * 4]) early = false;
    wait_for_copies();
    for (int x = 0; x < 4; ++x)
      if (memory[thread() * 4 + x] != from[thread() * 4 + x]) late = false;
  });
  return judge(error, early && late, "copy16");
}

std::string barriers() {
  bool right = true;
  const auto error = run(2, kBlock, [&] {
    auto& memory = shared_memory<int[kBlock]>();
    for (int turn = 0; turn < 20; ++turn) {
      memory[thread()] = turn;
      barrier();
      if (memory[(thread() + 37) % kBlock] != turn) right = false;
      const bool all = barrier_and(turn % 2 == 0 || thread() != 5);
      if (all != (turn % 2 == 0)) right = false;
    }
  });
  return judge(error, right, "barrier");
}

// Blocks hand a number around: released by one, acquired by the next.
std::string counters_between_blocks() {
  static uint32_t flag[9];
  static int passed[9];
  memset(flag, 0, sizeof flag);
  const auto error = run(8, kWarp, [&] {
    if (thread() == 0) {
      while (block() > 0 && load_acquire(&flag[block()]) == 0) pause();
      passed[block() + 1] = passed[block()] + 1;
      if (block() % 2 == 0)
        add_release(&flag[block() + 1], 1);
      else
        (void)add_acquire_release(&flag[block() + 1], 1);
    }
  });
  return judge(error, passed[8] == 8, "counters");
}

// ---- what ends a run ------------------------------------------------------------------------------------------------
std::string dropped_arrival() {
  return run(2, kBlock, [] {
    if (block() == 1 && thread() == 3) return;
    barrier();
  });
}
std::string divergent_barrier() {
  return run(1, kBlock, [] {
    if (thread() < 64)
      barrier();
    else
      barrier();
  });
}
std::string divergent_collective() {
  return run(1, kWarp, [] {
    if (lane() < 7)
      (void)shuffle(1.0f, 0);
    else
      (void)shuffle_xor(1.0f, 1);
  });
}
std::string missing_lane() {
  return run(1, kWarp, [] {
    if (lane() != 9) (void)shuffle(1.0f, 0);
  });
}
std::string copy_that_nobody_waits_for() {
  alignas(16) static float from[4];
  return run(1, kWarp, [] {
    if (lane() == 0) copy16(&shared_memory<float[4]>(), from);
  });
}
std::string copy_out_of_bounds() {
  alignas(16) static float from[4];
  return run(1, kWarp, [] {
    copy16(&shared_memory<float[2048]>()[1024 - 4 + 4 * lane()], from);
    wait_for_copies();
  });
}
std::string copy_off_alignment() {
  alignas(16) static float from[8];
  return run(1, kWarp, [] {
    copy16(&shared_memory<float[64]>()[0], from + 1);
    wait_for_copies();
  });
}
std::string matrix_out_of_bounds() {
  return run(1, kWarp, [] {
    uint32_t to[4];
    ldmatrix4(to, &shared_memory<uint16_t[4096]>()[lane() * 72]);
  });
}
std::string counter_that_nobody_writes() {
  static uint32_t flag[1];
  return run(2, kWarp, [] {
    if (thread() == 0)
      while (load_acquire(flag) == 0) pause();
  });
}
std::string gives_up() {
  return run(1, kWarp, [] { give_up("the words of a wait", 0); });
}
std::string conflicts() {  // rows of 128 bytes from the first bank on: each matrix takes 8 waves
  const auto result = Machine::run({1, kWarp, 4096, nullptr, schedule}, [] {
    uint32_t to[4];
    ldmatrix4(to, &shared_memory<uint16_t[2048]>()[lane() * 64]);
  });
  return judge(result.error, result.bank_conflicts == 4 * 7, "the count of bank conflicts");
}

// ---- races, which only the race detector sees -----------------------------------------------------------------------
std::string race_without_barrier() {
  static volatile int sink[kBlock];
  return judge(run(1, kBlock,
                   [] {
                     auto& memory = shared_memory<int[kBlock]>();
                     memory[thread()] = thread();
                     (void)shuffle(1.0f, 0);  // orders nothing
                     sink[thread()] = memory[(thread() + 1) % kBlock];
                   }),
               true, "");
}
std::string race_of_a_copy() {  // waited for, but only by the thread that issued it
  alignas(16) static float from[kBlock * 4];
  static volatile float sink[kBlock];
  return judge(run(1, kBlock,
                   [] {
                     auto& memory = shared_memory<float[kBlock * 4]>();
                     copy16(memory + thread() * 4, from + thread() * 4);
                     wait_for_copies();
                     sink[thread()] = memory[(thread() * 4 + 4) % (kBlock * 4)];
                   }),
               true, "");
}
std::string race_of_matrices() {
  return judge(run(1, kBlock,
                   [] {
                     auto& memory = shared_memory<uint16_t[kBlock * 8]>();
                     memory[thread() * 8] = 1;
                     uint32_t to[4];
                     ldmatrix4(to, memory + (thread() + 32) % kBlock * 8);
                   }),
               true, "");
}
std::string race_of_an_early_flag() {
  static uint32_t flag[1];
  static int number;
  return judge(run(2, kWarp,
                   [] {
                     if (thread() != 0) return;
                     if (block() == 0) {
                       add_release(flag, 1);
                       number = 1;
                     } else {
                       while (load_acquire(flag) == 0) pause();
                       number += 1;
                     }
                   }),
               true, "");
}
std::string race_of_a_relaxed_flag() {
  static uint32_t flag[1];
  static int number;
  return judge(run(2, kWarp,
                   [] {
                     if (thread() != 0) return;
                     if (block() == 0) {
                       number = 1;
                       __atomic_fetch_add(flag, 1, __ATOMIC_RELAXED);
                       Machine::now->wrote_a_counter();
                     } else {
                       while (load_acquire(flag) == 0) pause();
                       number += 1;
                     }
                   }),
               true, "");
}

}  // namespace
}  // namespace difnet::cuda

int main(int count, char** arguments) {
  using namespace difnet::cuda;
  const std::pair<const char*, std::string (*)()> checks[] = {
      {"shuffles", shuffles},
      {"ldmatrix4", matrices<false, 4>},
      {"ldmatrix4_transposed", matrices<true, 4>},
      {"ldmatrix2_transposed", matrices<true, 2>},
      {"mma", products},
      {"truncation", truncation},
      {"conversions", conversions},
      {"copies", copies},
      {"barriers", barriers},
      {"counters", counters_between_blocks},
      {"conflicts", conflicts},
      {"dropped_arrival", dropped_arrival},
      {"divergent_barrier", divergent_barrier},
      {"divergent_collective", divergent_collective},
      {"missing_lane", missing_lane},
      {"copy_that_nobody_waits_for", copy_that_nobody_waits_for},
      {"copy_out_of_bounds", copy_out_of_bounds},
      {"copy_off_alignment", copy_off_alignment},
      {"matrix_out_of_bounds", matrix_out_of_bounds},
      {"counter_that_nobody_writes", counter_that_nobody_writes},
      {"gives_up", gives_up},
      {"race_without_barrier", race_without_barrier},
      {"race_of_a_copy", race_of_a_copy},
      {"race_of_matrices", race_of_matrices},
      {"race_of_an_early_flag", race_of_an_early_flag},
      {"race_of_a_relaxed_flag", race_of_a_relaxed_flag},
  };
  if (count == 3) schedule = unsigned(std::stoul(arguments[2]));
  for (const auto& [name, check] : checks)
    if (count >= 2 && std::string(name) == arguments[1]) {
      puts(check().c_str());
      return 0;
    }
  puts("no such check");
  return 2;
}
