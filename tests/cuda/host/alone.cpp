// The twin as a program of its own, for the sanitizers: reads runs from standard input, one a line,
//     images classes nodes embed walks dtype precision parts together workers schedule
// makes numbered inputs, and compares what comes out with dense fp64, class by class. Prints one line a run; stops at
// the first that is wrong.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>

#include "run_on_host.h"

namespace {

using namespace difnet::cuda;
using difnet::DType;

struct Numbers {
  template <typename Size>  // size(place): of the number there
  Numbers(int images, int channels, int nodes, DType dtype, std::mt19937& chance, Size size, double offset)
      : images(images), channels(channels), nodes(nodes), dtype(dtype) {
    std::normal_distribution<double> normal;
    exact.resize(size_t(images) * channels * nodes);
    wide.resize(exact.size());
    narrow.resize(exact.size());
    for (size_t x = 0; x < exact.size(); ++x) {
      wide[x] = float(size(int(x)) * (normal(chance) + offset));
      narrow[x] = dtype == DType::kHalf ? float_to_half(wide[x]) : float_to_bfloat16(wide[x]);
      exact[x] = dtype == DType::kFloat  ? wide[x]
                 : dtype == DType::kHalf ? half_to_float(narrow[x])
                                         : float_of(uint32_t(narrow[x]) << 16);
    }
  }
  BatchField field() {
    void* data = dtype == DType::kFloat ? static_cast<void*>(wide.data()) : narrow.data();
    return {data, int64_t(channels) * nodes, nodes, 1, channels, dtype};
  }
  double at(int b, int c, int n) const { return exact[(size_t(b) * channels + c) * nodes + n]; }
  int images, channels, nodes;
  DType dtype;
  std::vector<double> exact;
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
};

// The largest error of y, relative to the largest value of its class.
double worst_error(const Request& asked, const Numbers& seed, const std::vector<Numbers>& psi, const float* walked) {
  const auto bias = [&](int t, int b, int j) {
    return asked.column_bias[t] == nullptr ? 0.0 : double(asked.column_bias[t][size_t(b) * asked.nodes + j]);
  };
  const int N = asked.nodes, K = asked.classes;
  double worst = 0;
  for (int b = 0; b < asked.images; ++b) {
    std::vector<double> y(size_t(N) * K), next(y.size()), P(N);
    for (int i = 0; i < N; ++i)
      for (int k = 0; k < K; ++k) y[size_t(i) * K + k] = seed.at(b, k, i);
    for (int t = 0; t < asked.walks; ++t) {
      std::vector<double> largest(K), error(K);
      for (int i = 0; i < N; ++i) {
        double most = -INFINITY, sum = 0;
        for (int j = 0; j < N; ++j) {
          P[j] = 0;
          for (int d = 0; d < psi[t].channels; ++d) P[j] += psi[t].at(b, d, i) * psi[t].at(b, d, j);
          P[j] += bias(t, b, j);
          most = std::fmax(most, P[j]);
        }
        for (int j = 0; j < N; ++j) sum += P[j] = std::exp(P[j] - most);
        const double off = std::fabs(asked.lse[t][size_t(b) * N + i] - (most + std::log(sum)));
        worst = std::fmax(worst, off == off ? 0.1 * off : INFINITY);
        for (int k = 0; k < K; ++k) {
          double w = 0;
          for (int j = 0; j < N; ++j) w += P[j] / sum * y[size_t(j) * K + k];
          const double ours = walked[((size_t(t) * asked.images + b) * N + i) * K + k];
          error[k] = std::fmax(error[k], ours == ours ? std::fabs(ours - w) : INFINITY);
          largest[k] = std::fmax(largest[k], std::fabs(y[size_t(i) * K + k]));
          next[size_t(i) * K + k] =
              double(asked.beta[t]) * (double(asked.mu[t]) * w + (1 - double(asked.mu[t])) * seed.at(b, k, i)) +
              (1 - double(asked.beta[t])) * y[size_t(i) * K + k];
        }
      }
      for (int k = 0; k < K; ++k) worst = std::fmax(worst, error[k] / largest[k]);
      y = next;
    }
  }
  return worst;
}

}  // namespace

int main() {
  int images, classes, nodes, embed, walks, dtype, high, parts, together, workers;
  unsigned schedule;
  while (scanf("%d %d %d %d %d %d %d %d %d %d %u", &images, &classes, &nodes, &embed, &walks, &dtype, &high, &parts,
               &together, &workers, &schedule) == 11) {
    std::mt19937 chance(unsigned(nodes + 7 * classes + 13 * embed));
    // every class and image has its own unit; norms grow along the nodes, so that maxima rise and sums are rescaled
    const auto unit = [&](int at) { return std::exp2(-(at / nodes % 8)); };
    const auto ramp = [&](int at) { return (0.2 + 1.3 * (at % nodes) / nodes) / std::pow(embed, 0.25); };
    Numbers seed(images, classes, nodes, DType(dtype), chance, unit, 0.0), states = seed;
    std::vector<Numbers> psi;
    std::vector<BatchField> fields;
    for (int t = 0; t < walks; ++t) psi.emplace_back(images, embed, nodes, DType(dtype), chance, ramp, 1.0);
    for (Numbers& one : psi) fields.push_back(one.field());
    std::vector<float> mu(walks, 0.75f), beta(walks, 0.5f);
    std::vector<float> walked(size_t(walks) * images * nodes * classes, NAN), row_lse(size_t(walks) * images * nodes);
    Request asked{};
    asked.images = images, asked.nodes = nodes, asked.classes = classes, asked.walks = walks, asked.wanted = 1;
    asked.high = high, asked.seed = asked.state = seed.field(), asked.states = states.field();
    // the last walk has a bias; in the last image a whole tile of columns is out of every row
    std::vector<float> bias(size_t(images) * nodes), lse(size_t(walks) * images * nodes, NAN);
    std::normal_distribution<float> normal;
    for (float& one : bias) one = normal(chance);
    for (int node = nodes > 128 ? 64 : nodes; node < nodes && node < 128; ++node)
      bias[size_t(images - 1) * nodes + node] = -INFINITY;
    std::vector<const float*> biases(walks);
    biases.back() = bias.data();
    std::vector<float*> lses;
    for (int t = 0; t < walks; ++t) lses.push_back(&lse[size_t(t) * images * nodes]);
    void* const last = asked.states.data;
    asked.steps = &last, asked.column_bias = biases.data(), asked.lse = lses.data();
    asked.psi = fields.data(), asked.mu = mu.data(), asked.beta = beta.data();
    asked.walked = walked.data(), asked.row_lse = row_lse.data();
    asked.processors = 132, asked.forced_parts = parts, asked.forced_all_parts = together;
    std::vector<uint32_t> counters(size_t(1 + images * (1 + walks) * (1 + (nodes + kRows - 1) / kRows)));
    asked.counters = counters.data(), asked.counters_size = int64_t(counters.size());
    const twin::Report report = twin::run_on_host(asked, {workers, schedule});
    if (report.error[0] != 0) {
      printf("FAILED %s\n", report.error);
      return 1;
    }
    const double error = worst_error(asked, seed, psi, walked.data());
    const double allowed = walks * (dtype == 0 && high ? 2e-5 : dtype == 3 ? 8e-3 : 4e-3);
    uint64_t bits = 0;
    for (const std::vector<float>* numbers : {&walked, &row_lse, &lse})
      for (const float x : *numbers) bits = bits * 1099511628211u + bits_of(x);
    printf("%s error %.1e, allowed %.1e, %d parts of %d tiles, %lld bank conflicts, bits %016llx\n",
           error <= allowed ? "right" : "WRONG", error, allowed, report.parts, report.part_tiles,
           static_cast<long long>(report.bank_conflicts), static_cast<unsigned long long>(bits));
    fflush(stdout);
    if (!(error <= allowed)) return 1;
  }
  return 0;
}
