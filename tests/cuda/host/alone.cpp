// The twin as a program of its own, for the sanitizers: reads runs from standard input, one a line (lines.h),
//     way images classes nodes embed walks dtype precision parts together workers schedule
// makes numbered inputs, and compares what comes out with dense fp64, class by class. The way `forward` is that alone;
// with `backward` the gradients follow and are compared, too; with `launches` every walk has a launch of its own, and
// every step a gradient, whose classes are neighbours in memory; `projected` is another kind of run
// (alone_projected.h). Prints one line a run.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/cascade/projected_arguments.h"
#include "lines.h"
#include "numbers.h"
#include "run.h"

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

// Gradients of ⟨grad, yᵀ⟩ (or of that of every step) + Σ_t ⟨grad_lse, lse_t⟩ with respect to everything.
struct Gradients {
  explicit Gradients(const Request& asked, const std::vector<Numbers>& fields)
      : seed(size_t(asked.images) * asked.classes * asked.nodes, NAN),
        bias(size_t(asked.images) * asked.nodes, NAN),
        mu(asked.walks, NAN),
        beta(asked.walks, NAN) {
    for (const Numbers& one : fields) psi.emplace_back(one.wide.size(), NAN);
  }
  std::vector<float> seed, bias, mu, beta;  // bias: of the last walk
  std::vector<std::vector<float>> psi;
};

// The largest error of each, relative to the largest number of its class, or of all.
double worst_error(const Request& asked, const Numbers& seed, const std::vector<Numbers>& psi, const Numbers& grad,
                   bool every_step, const std::vector<float>& grad_lse, const Gradients& ours) {
  const int N = asked.nodes, K = asked.classes, T = asked.walks, B = asked.images;
  const auto at = [&](const std::vector<double>& x, int i, int k) { return x[size_t(i) * K + k]; };
  std::vector<double> of_mu(T), of_beta(T), size_mu(T), size_beta(T);
  double worst = 0;
  const auto compare = [&](double mine, double truth, double& error, double& largest) {
    error = std::fmax(error, mine == mine ? std::fabs(mine - truth) : INFINITY);
    largest = std::fmax(largest, std::fabs(truth));
  };
  const auto judge = [&](double error, double largest) {
    worst = std::fmax(worst, largest > 0 ? error / largest : error);
  };
  for (int b = 0; b < B; ++b) {
    std::vector<std::vector<double>> y(1, std::vector<double>(size_t(N) * K)), w(T, y[0]), P(T);
    const auto s = [&](int i, int k) { return seed.at(b, k, i); };
    for (int i = 0; i < N; ++i)
      for (int k = 0; k < K; ++k) y[0][size_t(i) * K + k] = s(i, k);
    for (int t = 0; t < T; ++t) {
      P[t].resize(size_t(N) * N);
      for (int i = 0; i < N; ++i) {
        double most = -INFINITY, sum = 0;
        double* row = &P[t][size_t(i) * N];
        for (int j = 0; j < N; ++j) {
          row[j] = asked.column_bias[t] == nullptr ? 0.0 : double(asked.column_bias[t][size_t(b) * N + j]);
          for (int d = 0; d < psi[t].channels; ++d) row[j] += psi[t].at(b, d, i) * psi[t].at(b, d, j);
          most = std::fmax(most, row[j]);
        }
        for (int j = 0; j < N; ++j) sum += row[j] = std::exp(row[j] - most);
        for (int j = 0; j < N; ++j) row[j] /= sum;
        for (int j = 0; j < N; ++j)
          for (int k = 0; k < K; ++k) w[t][size_t(i) * K + k] += row[j] * at(y[t], j, k);
      }
      y.push_back(y[t]);
      for (int i = 0; i < N; ++i)
        for (int k = 0; k < K; ++k)
          y[t + 1][size_t(i) * K + k] =
              double(asked.beta[t]) * (asked.mu[t] * at(w[t], i, k) + (1 - double(asked.mu[t])) * s(i, k)) +
              (1 - double(asked.beta[t])) * at(y[t], i, k);
    }
    std::vector<double> g(size_t(N) * K), total(size_t(N) * K);
    for (int i = 0; i < N; ++i)
      for (int k = 0; k < K; ++k) g[size_t(i) * K + k] = grad.at(b, k, i);
    for (int t = T - 1; t >= 0; --t) {
      const double mu = asked.mu[t], beta = asked.beta[t];
      std::vector<double> A(size_t(N) * N), next(g.size());
      for (int i = 0; i < N; ++i) {
        double delta = -double(grad_lse[size_t(b) * N + i]);
        for (int k = 0; k < K; ++k) delta += mu * beta * at(g, i, k) * at(w[t], i, k);  // (B2)
        for (int j = 0; j < N; ++j) {
          double term = -delta;
          for (int k = 0; k < K; ++k) {
            const double h = mu * beta * at(g, i, k);
            term += h * at(y[t], j, k);
            next[size_t(j) * K + k] += P[t][size_t(i) * N + j] * h;  // (B6)
          }
          A[size_t(i) * N + j] = P[t][size_t(i) * N + j] * term;  // (B4b)
        }
        for (int k = 0; k < K; ++k) {
          const double of_s = at(w[t], i, k) - s(i, k), mixed = mu * at(w[t], i, k) + (1 - mu) * s(i, k);
          of_mu[t] += beta * of_s * at(g, i, k);  // (B7)
          size_mu[t] += std::fabs(beta * of_s * at(g, i, k));
          of_beta[t] += (mixed - at(y[t], i, k)) * at(g, i, k);
          size_beta[t] += std::fabs((mixed - at(y[t], i, k)) * at(g, i, k));
          next[size_t(i) * K + k] += (1 - beta) * at(g, i, k);  // (B1)
          total[size_t(i) * K + k] += beta * (1 - mu) * at(g, i, k);
          if (every_step && t > 0) next[size_t(i) * K + k] += grad.at(b, k, i);
        }
      }
      g = next;
      double error = 0, largest = 0;
      for (int d = 0; d < psi[t].channels; ++d)
        for (int i = 0; i < N; ++i) {
          double sum = 0;  // (B5)
          for (int j = 0; j < N; ++j) sum += (A[size_t(i) * N + j] + A[size_t(j) * N + i]) * psi[t].at(b, d, j);
          const size_t place = (size_t(b) * psi[t].channels + d) * N + i;
          const float mine =
              psi[t].dtype == DType::kFloat ? ours.psi[t][place]
              : psi[t].dtype == DType::kHalf
                  ? half_to_float(reinterpret_cast<const uint16_t*>(ours.psi[t].data())[place])
                  : float_of(uint32_t(reinterpret_cast<const uint16_t*>(ours.psi[t].data())[place]) << 16);
          compare(mine, sum, error, largest);
        }
      judge(error, largest);
      if (t < T - 1) continue;
      error = largest = 0;
      for (int j = 0; j < N; ++j) {
        double sum = 0;  // (B8)
        for (int i = 0; i < N; ++i) sum += A[size_t(i) * N + j];
        compare(ours.bias[size_t(b) * N + j], sum, error, largest);
      }
      judge(error, largest);
    }
    for (int k = 0; k < K; ++k) {
      double error = 0, largest = 0;
      for (int i = 0; i < N; ++i) {
        const size_t place = (size_t(b) * K + k) * N + i;
        const float mine = seed.dtype == DType::kFloat ? ours.seed[place]
                           : seed.dtype == DType::kHalf
                               ? half_to_float(reinterpret_cast<const uint16_t*>(ours.seed.data())[place])
                               : float_of(uint32_t(reinterpret_cast<const uint16_t*>(ours.seed.data())[place]) << 16);
        compare(mine, at(g, i, k) + at(total, i, k), error, largest);
      }
      judge(error, largest);
    }
  }
  for (int t = 0; t < T; ++t) {
    const auto off = [](float mine, double truth) { return mine == mine ? std::fabs(mine - truth) : INFINITY; };
    judge(off(ours.mu[t], of_mu[t]), size_mu[t]);
    judge(off(ours.beta[t], of_beta[t]), size_beta[t]);
  }
  return worst;
}

}  // namespace

#include "alone_projected.h"

int run(const std::string& way, const char* line) {
  if (way == "projected") return run_projected(line);
  const bool launches = way == "launches", backward = launches || way == "backward";
  int images, classes, nodes, embed, walks, dtype, high, parts, together, workers;
  unsigned schedule;
  if (sscanf(line, "%d %d %d %d %d %d %d %d %d %d %u", &images, &classes, &nodes, &embed, &walks, &dtype, &high, &parts,
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
    double error = worst_error(asked, seed, psi, walked.data());
    double allowed = walks * (dtype == 0 && high ? 2e-5 : dtype == 3 ? 8e-3 : 4e-3);
    uint64_t bits = 0;
    const auto mix = [&](const std::vector<float>& numbers) {
      for (const float x : numbers) bits = bits * 1099511628211u + bits_of(x);
    };
    mix(walked), mix(row_lse), mix(lse);
    int64_t conflicts = report.bank_conflicts;
    if (backward && error <= allowed) {
      // of another size from row tile to row tile, so that their units differ
      const auto falling = [&](int at) { return unit(at) * std::exp2(-(at % nodes / 20)); };
      Numbers grad(images, classes, nodes, DType(dtype), chance, falling, 0.0);
      std::vector<float> grad_lse(size_t(images) * nodes);
      for (float& one : grad_lse) one = normal(chance);
      Gradients ours(asked, psi);
      std::vector<BatchField> to_psi = fields;
      for (int t = 0; t < walks; ++t) to_psi[t].data = ours.psi[t].data();
      std::vector<const float*> of_lse(walks, grad_lse.data());
      std::vector<float*> to_bias(walks);
      to_bias.back() = ours.bias.data();
      BackwardRequest back{};
      back.images = images, back.nodes = nodes, back.classes = classes, back.walks = walks;
      back.high = high, back.state = asked.state, back.seed = asked.seed;
      back.grad_seed = seed.field(), back.grad_seed.data = ours.seed.data();
      std::vector<float> by_node(grad.exact.size());
      std::vector<BatchField> given(size_t(launches ? walks : 1), grad.field());
      for (int b = 0; b < images; ++b)
        for (int k = 0; k < classes; ++k)
          for (int n = 0; n < nodes; ++n) by_node[(size_t(b) * nodes + n) * classes + k] = float(grad.at(b, k, n));
      if (launches)
        for (BatchField& one : given)
          one = {by_node.data(), int64_t(nodes) * classes, 1, classes, classes, DType::kFloat};
      back.given = int32_t(given.size()), back.walks_at_a_time = launches;
      back.psi = fields.data(), back.grad_psi = to_psi.data(), back.grad_states = given.data();
      back.column_bias = biases.data(), back.grad_lse = of_lse.data(), back.grad_bias = to_bias.data();
      back.mu = mu.data(), back.beta = beta.data(), back.walked = walked.data(), back.row_lse = row_lse.data();
      back.grad_mu = ours.mu.data(), back.grad_beta = ours.beta.data();
      back.counters = counters.data(), back.counters_size = int64_t(counters.size());
      back.processors = 132, back.forced_parts = parts, back.forced_all_parts = together;
      const twin::Report second = twin::run_on_host(back, {workers, schedule});
      if (second.error[0] != 0) {
        printf("FAILED %s\n", second.error);
        return 1;
      }
      error = worst_error(asked, seed, psi, grad, launches, grad_lse, ours);
      allowed = walks * (dtype == 0 && high ? 2e-5 : dtype == 3 ? 1e-2 : 5e-3);
      conflicts += second.bank_conflicts;
      mix(ours.seed), mix(ours.bias), mix(ours.mu), mix(ours.beta);
      for (const std::vector<float>& one : ours.psi) mix(one);
    }
    printf("%s error %.1e, allowed %.1e, %d parts of %d tiles, %lld bank conflicts, bits %016llx\n",
           error <= allowed ? "right" : "WRONG", error, allowed, report.parts, report.part_tiles,
           static_cast<long long>(conflicts), static_cast<unsigned long long>(bits));
    fflush(stdout);
    return error <= allowed ? 0 : 1;
  }
  return printf("FAILED to read %s\n", line), 2;
}

int main(int count, char** words) { return twin::run_lines(count, words, run); }
