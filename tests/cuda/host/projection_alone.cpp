// The twin of Ψ as a program of its own, for the sanitizers: reads runs from standard input, one a line (lines.h),
//     both images channels embed Z Y X OZ OY OX dtype statistics round_tiles workers schedule
// makes numbered inputs, runs forward and backward, and compares both with fp64. Prints one line a run.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cuda/projection/launches.h"
#include "lines.h"
#include "numbers.h"
#include "run.h"

namespace {

using namespace difnet::cuda;
using difnet::DType;

struct Sizes {
  int images, channels, embed, pixels[3], nodes[3];
  int all_pixels() const { return pixels[0] * pixels[1] * pixels[2]; }
  int all_nodes() const { return nodes[0] * nodes[1] * nodes[2]; }
};

// A tensor (B, channels, Z, Y, X), contiguous.
Volume volume(void* data, int channels, const int (&axes)[3], DType dtype) {
  const int64_t all = int64_t(axes[0]) * axes[1] * axes[2];
  return {data, channels * all, all, {int64_t(axes[1]) * axes[2], axes[2], 1}, channels, dtype};
}

struct Numbers {
  Numbers(size_t count, DType dtype, std::mt19937& chance, float size = 1.0f)
      : dtype(dtype), wide(count), narrow(count), exact(count) {
    std::normal_distribution<float> normal;
    for (size_t at = 0; at < count; ++at) {
      wide[at] = size * normal(chance);
      narrow[at] = dtype == DType::kHalf ? float_to_half(wide[at]) : float_to_bfloat16(wide[at]);
      exact[at] = dtype == DType::kFloat ? wide[at] : widened(narrow[at]);
    }
  }
  float widened(uint16_t bits) const {
    return dtype == DType::kHalf ? half_to_float(bits) : float_of(uint32_t(bits) << 16);
  }
  void* data() { return dtype == DType::kFloat ? static_cast<void*>(wide.data()) : narrow.data(); }
  // what a kernel left
  double left(size_t at) const { return dtype == DType::kFloat ? wide[at] : widened(narrow[at]); }
  void poison() {
    for (size_t at = 0; at < wide.size(); ++at) wide[at] = NAN, narrow[at] = 0xffff;
  }
  DType dtype;
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
  std::vector<double> exact;
};

struct Judge {
  double worst = 0;
  void compare(const std::vector<double>& ours, const std::vector<double>& truth, double slack = 1) {
    double error = 0, largest = 0;
    for (size_t at = 0; at < truth.size(); ++at) {
      error = std::fmax(error, ours[at] == ours[at] ? std::fabs(ours[at] - truth[at]) : INFINITY);
      largest = std::fmax(largest, std::fabs(truth[at]));
    }
    worst = std::fmax(worst, (largest > 0 ? error / largest : error) / slack);
  }
};

std::vector<double> doubles(const std::vector<float>& from) { return {from.begin(), from.end()}; }

}  // namespace

int run(const std::string&, const char* line) {
  Sizes of;
  int dtype, statistics, round_tiles, workers;
  unsigned schedule;
  if (sscanf(line, "%d %d %d %d %d %d %d %d %d %d %d %d %d %u", &of.images, &of.channels, &of.embed, &of.pixels[0],
             &of.pixels[1], &of.pixels[2], &of.nodes[0], &of.nodes[1], &of.nodes[2], &dtype, &statistics, &round_tiles,
             &workers, &schedule) == 14) {
    const int B = of.images, C = of.channels, D = of.embed, P = of.all_pixels(), N = of.all_nodes();
    std::mt19937 chance(unsigned(P + 7 * C + 13 * D));
    Numbers f(size_t(B) * C * P, DType(dtype), chance), w(size_t(D) * C, DType::kFloat, chance);
    Numbers slope(D, DType::kFloat, chance), grad_mean(D, DType::kFloat, chance),
        grad_variance(D, DType::kFloat, chance), grad_peak(size_t(B) * D * N, DType::kFloat, chance);
    // rows of W and channels of f have units of their own
    for (int d = 0; d < D; ++d)
      for (int c = 0; c < C; ++c)
        w.exact[size_t(d) * C + c] = w.wide[size_t(d) * C + c] = std::ldexp(w.wide[size_t(d) * C + c], d % 5);
    if (D > 2) slope.wide[2] = 0.0f;
    std::vector<uint32_t> counters(4096);
    std::vector<float> peak(size_t(B) * D * N, NAN), mean(D, NAN), variance(D, NAN);
    std::vector<int32_t> position(peak.size(), -7);

    // the truth: all of z
    std::vector<double> z(size_t(B) * D * P), true_mean(D), true_variance(D);
    for (int b = 0; b < B; ++b)
      for (int d = 0; d < D; ++d)
        for (int p = 0; p < P; ++p) {
          double sum = 0;
          for (int c = 0; c < C; ++c) sum += w.exact[size_t(d) * C + c] * f.exact[(size_t(b) * C + c) * P + p];
          z[(size_t(b) * D + d) * P + p] = sum;
          true_mean[d] += sum / (double(B) * P);
        }
    for (int b = 0; b < B; ++b)
      for (int d = 0; d < D; ++d)
        for (int p = 0; p < P; ++p)
          true_variance[d] += std::pow(z[(size_t(b) * D + d) * P + p] - true_mean[d], 2) / (double(B) * P);
    const auto begin = [&](int axis, int i) { return int(int64_t(i) * of.pixels[axis] / of.nodes[axis]); };
    const auto end = [&](int axis, int i) {
      return int((int64_t(i + 1) * of.pixels[axis] + of.nodes[axis] - 1) / of.nodes[axis]);
    };
    std::vector<double> true_peak(peak.size()), grad_z(z.size());

    ProjectionRequest asked{};
    asked.images = B, asked.embed = D, asked.weight = w.wide.data(), asked.slope = slope.wide.data();
    for (int axis = 0; axis < 3; ++axis) asked.pixels[axis] = of.pixels[axis], asked.nodes[axis] = of.nodes[axis];
    asked.features = volume(f.data(), C, of.pixels, DType(dtype));
    asked.peak = volume(peak.data(), D, of.nodes, DType::kFloat);
    asked.position = volume(position.data(), D, of.nodes, DType::kFloat);
    if (statistics) asked.mean = mean.data(), asked.variance = variance.data();
    asked.counters = counters.data(), asked.counters_size = int64_t(counters.size());
    twin::Report report = twin::run_on_host(asked, {workers, schedule});
    if (report.error[0] != 0) {
      printf("FAILED %s\n", report.error);
      return 1;
    }
    int64_t conflicts = report.bank_conflicts;
    Judge judge;
    for (int b = 0; b < B; ++b)
      for (int d = 0; d < D; ++d)
        for (int n = 0; n < N; ++n) {
          const int at[3] = {n / (of.nodes[1] * of.nodes[2]), n / of.nodes[2] % of.nodes[1], n % of.nodes[2]};
          const double sign = slope.wide[d] < 0 ? -1 : slope.wide[d] > 0 ? 1 : 0;
          double best = -INFINITY, value = NAN;
          for (int i = begin(0, at[0]); i < end(0, at[0]); ++i)
            for (int j = begin(1, at[1]); j < end(1, at[1]); ++j)
              for (int k = begin(2, at[2]); k < end(2, at[2]); ++k) {
                const double one = z[(size_t(b) * D + d) * P + (i * of.pixels[1] + j) * of.pixels[2] + k];
                if (best == -INFINITY || sign * one > best) best = sign * one, value = one;
              }
          const size_t place = (size_t(b) * D + d) * N + n;
          true_peak[place] = value;
          // the pixel that was named has the value that was told, so the gradient below is that of the same winners
          const int named = position[place];
          const bool inside = named >= 0 && named < P;
          judge.worst = std::fmax(
              judge.worst,
              inside ? std::fabs(z[(size_t(b) * D + d) * P + named] - value) / (1 + std::fabs(value)) : INFINITY);
          if (inside) grad_z[(size_t(b) * D + d) * P + named] += grad_peak.exact[place];
        }
    judge.compare(doubles(peak), true_peak);
    if (statistics) judge.compare(doubles(mean), true_mean, 4), judge.compare(doubles(variance), true_variance);

    Numbers grad_features = f;
    grad_features.poison();
    std::vector<float> grad_weight(w.wide.size(), NAN);
    ProjectionBackwardRequest back{};
    back.images = B, back.embed = D, back.weight = w.wide.data(), back.features = asked.features;
    for (int axis = 0; axis < 3; ++axis) back.pixels[axis] = of.pixels[axis], back.nodes[axis] = of.nodes[axis];
    back.grad_peak = volume(grad_peak.data(), D, of.nodes, DType::kFloat), back.position = asked.position;
    back.grad_features = volume(grad_features.data(), C, of.pixels, DType(dtype));
    if (statistics) back.mean = mean.data();
    if (statistics) back.grad_mean = grad_mean.wide.data(), back.grad_variance = grad_variance.wide.data();
    back.grad_weight = grad_weight.data();
    back.counters = counters.data(), back.counters_size = int64_t(counters.size());
    back.forced_round_tiles = round_tiles;
    report = twin::run_on_host(back, {workers, schedule});
    if (report.error[0] != 0) {
      printf("FAILED %s\n", report.error);
      return 1;
    }
    conflicts += report.bank_conflicts;
    std::vector<double> true_f(f.exact.size()), true_w(w.exact.size()), ours_f(f.exact.size());
    for (int b = 0; b < B; ++b)
      for (int d = 0; d < D; ++d)
        for (int p = 0; p < P; ++p) {
          const size_t at = (size_t(b) * D + d) * P + p;
          if (statistics)  // (Ψ2)
            grad_z[at] += (grad_mean.exact[d] + 2 * (z[at] - true_mean[d]) * grad_variance.exact[d]) / (double(B) * P);
          for (int c = 0; c < C; ++c) {
            true_f[(size_t(b) * C + c) * P + p] += w.exact[size_t(d) * C + c] * grad_z[at];  // (Ψ3)
            true_w[size_t(d) * C + c] += grad_z[at] * f.exact[(size_t(b) * C + c) * P + p];  // (Ψ4)
          }
        }
    for (size_t at = 0; at < ours_f.size(); ++at) ours_f[at] = grad_features.left(at);
    judge.compare(ours_f, true_f, dtype == 0 ? 1 : dtype == 3 ? 2000 : 250);
    judge.compare(doubles(grad_weight), true_w);
    uint64_t bits = 0;
    for (const auto* one : {&peak, &mean, &variance, &grad_features.wide, &grad_weight})
      for (const float x : *one) bits = bits * 1099511628211u + bits_of(x);
    constexpr double kAllowed = 2e-6;
    printf("%s error %.1e, allowed %.1e, %lld bank conflicts, bits %016llx\n",
           judge.worst <= kAllowed ? "right" : "WRONG", judge.worst, kAllowed, static_cast<long long>(conflicts),
           static_cast<unsigned long long>(bits));
    fflush(stdout);
    return judge.worst <= kAllowed ? 0 : 1;
  }
  return printf("FAILED to read %s\n", line), 2;
}

int main(int count, char** words) { return twin::run_lines(count, words, run); }
