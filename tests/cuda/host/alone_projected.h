// Runs of alone.cpp with Ψ in the launch: from maps of several sizes, channels and strides. One a line,
//     images classes gridZ gridY gridX embed walks dtype precision parts together workers schedule
#pragma once

namespace {

// Features of walk t and what makes ψ of them; ψ itself in fp64 stands in `psi`.
struct Maps {
  Maps(int t, int images, const int (&grid)[3], int embed, DType dtype, std::mt19937& chance, float root,
       const std::vector<float>* bias) {
    static constexpr int kChannels[] = {3, 70, 20, 130};
    const int channels = kChannels[t % 4];
    Volume& map = level.psi.features;
    int32_t (&size)[3] = level.psi.windows.pixels;
    int pixels = 1;
    for (int axis = 0; axis < 3; ++axis) {  // windows that overlap, overlap by half, are single pixels, hold others'
      size[axis] = grid[axis] == 1 && axis < 2 ? 1 + t % 2
                   : t % 3 == 0                ? 3 * grid[axis] + 1
                   : t % 3 == 1                ? 2 * grid[axis] - 1
                                               : grid[axis];
      pixels *= size[axis];
    }
    const auto half = [](int) { return 1.0; };
    numbers = std::make_unique<Numbers>(images, channels, pixels, dtype, chance, half, 0.5);
    map.data = numbers->field().data, map.channels = channels, map.dtype = dtype;
    map.batch_stride = int64_t(channels) * pixels;
    map.channel_stride = pixels, map.stride[2] = 1;
    if (t % 2 == 1) {  // channels last: the same numbers in another order
      Numbers moved = *numbers;
      for (int b = 0; b < images; ++b)
        for (int c = 0; c < channels; ++c)
          for (int p = 0; p < pixels; ++p) {
            const size_t from = (size_t(b) * channels + c) * pixels + p, to = (size_t(b) * pixels + p) * channels + c;
            numbers->wide[to] = moved.wide[from], numbers->narrow[to] = moved.narrow[from];
          }
      map.channel_stride = 1, map.stride[2] = channels;
    }
    map.stride[1] = map.stride[2] * size[2], map.stride[0] = map.stride[1] * size[1];
    std::normal_distribution<float> normal;
    weight.resize(size_t(embed) * channels);
    for (float& one : weight) one = normal(chance) / std::sqrt(float(channels));
    level.psi.weight = {weight.data(), DType::kFloat}, level.psi.embed = embed;
    level.eps = 0.01f, level.dtype = DType::kFloat;
    const auto draw = [&](std::vector<float>& to, Array& array, bool given = true, bool positive = false) {
      to.resize(size_t(embed));
      for (float& one : to) one = positive ? 0.5f + std::fabs(normal(chance)) : normal(chance);
      if (given) array = {to.data(), DType::kFloat};
    };
    const bool norm = t % 4 != 3;  // the last kind of map has its offset alone
    draw(offset, level.offset), draw(mean, level.mean, norm), draw(variance, level.variance, norm, true);
    draw(slope, level.psi.slope, norm), draw(shift, level.shift, norm);
    nodes = grid[0] * grid[1] * grid[2];
    psi = std::make_unique<Numbers>(images, embed, nodes, DType::kFloat, chance, half, 0.0);
    for (int b = 0; b < images; ++b)
      for (int d = 0; d < embed; ++d) {
        std::vector<double> z(pixels, 0.0);
        for (int p = 0; p < pixels; ++p) z[size_t(p)] = normalised(b, d, p);
        for (int node = 0; node < nodes; ++node) {
          const bool exists = bias == nullptr || (*bias)[size_t(b) * nodes + node] > -INFINITY;
          psi->exact[(size_t(b) * embed + d) * nodes + node] = exists ? root * largest(z, grid, node) : 0.0;
        }
      }
  }
  double normalised(int b, int d, int p) const {
    const int channels = level.psi.features.channels;
    const size_t at = size_t(d);
    double z = offset[at];
    for (int c = 0; c < channels; ++c) z += numbers->at(b, c, p) * double(weight[at * channels + c]);
    if (level.variance.data == nullptr) return z;
    return (z - mean[at]) / std::sqrt(variance[at] + double(level.eps)) * slope[at] + shift[at];
  }
  double largest(const std::vector<double>& z, const int (&grid)[3], int node) const {
    const int at[3] = {node / grid[2] / grid[1], node / grid[2] % grid[1], node % grid[2]};
    int begin[3], end[3];
    for (int axis = 0; axis < 3; ++axis) {
      const int size = level.psi.windows.pixels[axis];
      begin[axis] = at[axis] * size / grid[axis], end[axis] = ((at[axis] + 1) * size + grid[axis] - 1) / grid[axis];
    }
    double most = -INFINITY;
    const int32_t* const size = level.psi.windows.pixels;
    for (int a = begin[0]; a < end[0]; ++a)
      for (int b = begin[1]; b < end[1]; ++b)
        for (int c = begin[2]; c < end[2]; ++c) most = std::fmax(most, z[size_t((a * size[1] + b) * size[2] + c)]);
    return most;
  }
  Level level{};
  int nodes;
  std::unique_ptr<Numbers> numbers, psi;
  std::vector<float> weight, offset, mean, variance, slope, shift;
};

int run_projected(const char* line) {
  int images, classes, grid[3], embed, walks, dtype, high, parts, together, workers;
  unsigned schedule;
  if (sscanf(line, "%d %d %d %d %d %d %d %d %d %d %d %d %u", &images, &classes, &grid[0], &grid[1], &grid[2], &embed,
             &walks, &dtype, &high, &parts, &together, &workers, &schedule) == 13) {
    const int nodes = grid[0] * grid[1] * grid[2];
    std::mt19937 chance(unsigned(nodes + 7 * classes + 13 * embed));
    std::normal_distribution<float> normal;
    // two nodes of the last image do not exist in the last walk
    std::vector<float> bias(size_t(images) * nodes), lse(size_t(walks) * images * nodes, NAN);
    for (float& one : bias) one = normal(chance);
    for (int node = 5; node < nodes && node < 7; ++node) bias[size_t(images - 1) * nodes + node] = -INFINITY;
    std::vector<const float*> biases(size_t(walks), nullptr);
    biases.back() = bias.data();
    const float root = 1.5f / std::pow(float(embed), 0.5f);
    std::vector<std::unique_ptr<Maps>> maps;
    std::vector<Level> levels;
    std::vector<Numbers> psi;
    for (int t = 0; t < walks; ++t) {
      maps.push_back(
          std::make_unique<Maps>(t, images, grid, embed, DType(dtype), chance, root, t == walks - 1 ? &bias : nullptr));
      levels.push_back(maps.back()->level);
      psi.push_back(*maps.back()->psi);
    }
    const auto unit = [&](int at) { return std::exp2(-(at / nodes % 8)); };
    Numbers seed(images, classes, nodes, DType::kFloat, chance, unit, 0.0), states = seed;
    std::vector<float> mu(size_t(walks), 0.75f), beta(size_t(walks), 0.5f);
    std::vector<float> walked(size_t(walks) * images * nodes * classes, NAN);
    std::vector<float*> lses;
    for (int t = 0; t < walks; ++t) lses.push_back(&lse[size_t(t) * images * nodes]);
    ProjectedRequest asked{};
    Request& cascade = asked.cascade;
    cascade.images = images, cascade.nodes = nodes, cascade.classes = classes, cascade.walks = walks,
    cascade.wanted = 1;
    cascade.high = high, cascade.seed = cascade.state = seed.field(), cascade.states = states.field();
    void* const last = cascade.states.data;
    cascade.steps = &last, cascade.column_bias = biases.data(), cascade.lse = lses.data();
    cascade.mu = mu.data(), cascade.beta = beta.data(), cascade.walked = walked.data();
    cascade.processors = 132, cascade.forced_parts = parts, cascade.forced_all_parts = together;
    asked.levels = levels.data(), asked.root = root;
    for (int axis = 0; axis < 3; ++axis) asked.grid[axis] = grid[axis];
    std::vector<uint32_t> counters(
        size_t(1 + images * (1 + walks) * (1 + (nodes + kRows - 1) / kRows) + (images + 1) * walks));
    cascade.counters = counters.data(), cascade.counters_size = int64_t(counters.size());
    const twin::Report report = twin::run_on_host(asked, {workers, schedule});
    if (report.error[0] != 0) {
      printf("FAILED %s\n", report.error);
      return 1;
    }
    const double error = worst_error(cascade, seed, psi, walked.data()), allowed = walks * (high ? 2e-5 : 4e-3);
    uint64_t bits = 0;
    for (const std::vector<float>* numbers : {&walked, &lse})
      for (const float x : *numbers) bits = bits * 1099511628211u + bits_of(x);
    printf("%s error %.1e, allowed %.1e, %d parts of %d tiles, %lld bank conflicts, bits %016llx\n",
           error <= allowed ? "right" : "WRONG", error, allowed, report.parts, report.part_tiles,
           static_cast<long long>(report.bank_conflicts), static_cast<unsigned long long>(bits));
    fflush(stdout);
    return error <= allowed ? 0 : 1;
  }
  return printf("FAILED to read %s\n", line), 2;
}

}  // namespace
