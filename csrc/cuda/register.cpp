// The operators of library.cpp on a CUDA device.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/on_card.h"
#include "tensors.h"

namespace difnet::cuda {
namespace {

BatchField field_of(const Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), int32_t(x.size(1)), dtype(x)};
}

// One argument, whoever calls: sizes, device, and fp64, which no kernel takes.
void check(const char* name, const Tensor& x, const Tensor& seed, std::initializer_list<int64_t> sizes, bool fp32) {
  STD_TORCH_CHECK(x.dim() == int64_t(sizes.size()), "difnet_kernels::cuda_cascade: ", name, " has ", x.dim(),
                  " axes, not ", sizes.size());
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(x.size(axis) == size, "difnet_kernels::cuda_cascade: axis ", axis, " of ", name, " has ",
                    x.size(axis), " places, not ", size);
    ++axis;
  }
  const bool float64 = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(!float64 && (!fp32 || x.scalar_type() == ScalarType::Float), "difnet_kernels::cuda_cascade: ", name,
                  " must be ", fp32 ? "float32" : "float16, bfloat16 or float32");
  STD_TORCH_CHECK(x.get_device() == seed.get_device(), "difnet_kernels::cuda_cascade: ", name,
                  " lies on another device than seed");
  STD_TORCH_CHECK(!fp32 || x.is_contiguous(), "difnet_kernels::cuda_cascade: ", name, " must be contiguous");
}

// ψ, as fields; none wider than the compiled kernels.
std::vector<BatchField> fields_of(const std::vector<Tensor>& psi, const Tensor& seed) {
  std::vector<BatchField> fields;
  for (const Tensor& one : psi) {
    check("psi", one, seed, {seed.size(0), one.size(1), seed.size(2)}, false);
    STD_TORCH_CHECK(one.size(1) <= 128, "difnet_kernels::cuda_cascade: D = ", one.size(1), " is above 128");
    fields.push_back(field_of(one));
  }
  STD_TORCH_CHECK(!fields.empty(), "difnet_kernels::cuda_cascade: there is no psi");
  STD_TORCH_CHECK(seed.size(1) <= 63, "difnet_kernels::cuda_cascade: K = ", seed.size(1), " is above 63");
  return fields;
}

// What is (B, N) of every walk; an empty tensor stands for none. Number: float, or const float.
template <typename Number>
std::vector<Number*> vectors_of(const char* name, const std::vector<Tensor>& list, const Tensor& seed, size_t walks) {
  STD_TORCH_CHECK(list.empty() || list.size() == walks, "difnet_kernels::cuda_cascade: ", walks, " walks have ",
                  list.size(), " of ", name);
  std::vector<Number*> pointers;
  for (const Tensor& one : list) {
    if (one.numel() > 0) check(name, one, seed, {seed.size(0), seed.size(2)}, true);
    pointers.push_back(one.numel() > 0 ? static_cast<Number*>(one.data_ptr()) : nullptr);
  }
  return pointers;
}

template <typename Of>
auto data_or_null(const std::vector<Of>& list) -> decltype(list.data()) {
  return list.empty() ? nullptr : list.data();
}
float* data_or_null(const std::optional<Tensor>& x) { return x ? static_cast<float*>(x->mutable_data_ptr()) : nullptr; }

// What both directions are asked.
void set_common(auto& asked, const std::optional<Tensor>& state, const Tensor& seed, const std::vector<BatchField>& psi,
                const Tensor& mu, const Tensor& beta, bool high, const Tensor& counters, const Device& device) {
  STD_TORCH_CHECK(seed.size(0) < int64_t(1) << 31 && seed.size(2) < int64_t(1) << 31,
                  "difnet_kernels::cuda_cascade: a launch counts images and nodes up to 2^31 - 1, not ", seed.size(0),
                  " images of ", seed.size(2), " nodes; split the batch");
  asked.images = int32_t(seed.size(0)), asked.nodes = int32_t(seed.size(2)), asked.classes = int32_t(seed.size(1));
  asked.walks = int32_t(psi.size()), asked.high = high;
  asked.seed = field_of(seed), asked.state = state ? field_of(*state) : asked.seed;
  asked.psi = psi.data();
  asked.mu = static_cast<const float*>(mu.const_data_ptr());
  asked.beta = static_cast<const float*>(beta.const_data_ptr());
  asked.counters = static_cast<uint32_t*>(counters.mutable_data_ptr()), asked.counters_size = counters.numel();
  asked.processors = device.processors;
}

// Where the last or all of T steps go, which are alike.
std::vector<void*> steps_of(const std::vector<Tensor>& states, const Tensor& seed, int64_t T) {
  const int64_t S = int64_t(states.size());
  STD_TORCH_CHECK(S == 1 || S == T, "difnet_kernels::cuda_cascade: states holds ", S, " steps of ", T);
  std::vector<void*> steps;
  for (const Tensor& one : states) {
    check("states", one, seed, {seed.size(0), seed.size(1), seed.size(2)}, false);
    const bool alike = one.stride(0) == states[0].stride(0) && one.stride(1) == states[0].stride(1) &&
                       one.stride(2) == states[0].stride(2) && one.scalar_type() == states[0].scalar_type();
    STD_TORCH_CHECK(alike, "difnet_kernels::cuda_cascade: states differ in strides or dtype");
    steps.push_back(one.mutable_data_ptr());
  }
  return steps;
}

void cascade_forward_of_tensors(std::optional<Tensor> state, Tensor seed, std::vector<Tensor> psi,
                                std::vector<Tensor> bias, Tensor mu, Tensor beta, bool high, std::vector<Tensor> states,
                                std::optional<Tensor> walked, std::optional<Tensor> row_lse, std::vector<Tensor> lse,
                                Tensor counters) {
  const int64_t T = int64_t(psi.size()), B = seed.size(0), K = seed.size(1), N = seed.size(2),
                S = int64_t(states.size());
  check("seed", seed, seed, {B, K, N}, false);
  if (state) check("state", *state, seed, {B, K, N}, false);
  const std::vector<BatchField> fields = fields_of(psi, seed);
  const std::vector<void*> steps = steps_of(states, seed, T);
  const auto biases = vectors_of<const float>("bias", bias, seed, psi.size());
  const auto lses = vectors_of<float>("lse", lse, seed, psi.size());
  check("mu", mu, seed, {T}, true);
  check("beta", beta, seed, {T}, true);
  if (walked) check("walked", *walked, seed, {T, B, N, K}, true);
  if (row_lse) check("row_lse", *row_lse, seed, {T, B, N}, true);
  const Device& device = device_of(seed);
  Request asked{};
  set_common(asked, state, seed, fields, mu, beta, high, counters, device);
  asked.wanted = int32_t(S), asked.states = field_of(states[0]), asked.steps = steps.data();
  asked.column_bias = data_or_null(biases), asked.lse = data_or_null(lses);
  asked.walked = data_or_null(walked), asked.row_lse = data_or_null(row_lse);
  launch(asked, seed, device, [](auto&&... all) { return cascade_forward(all...); });
}

void cascade_backward_of_tensors(std::vector<Tensor> grad_states, std::optional<Tensor> state, Tensor seed,
                                 std::vector<Tensor> psi, std::vector<Tensor> bias, Tensor mu, Tensor beta,
                                 Tensor walked, Tensor row_lse, bool high, std::vector<Tensor> grad_lse,
                                 std::optional<Tensor> grad_state, std::optional<Tensor> grad_seed,
                                 std::vector<Tensor> grad_psi, std::vector<Tensor> grad_bias,
                                 std::optional<Tensor> grad_mu, std::optional<Tensor> grad_beta, Tensor counters) {
  const int64_t T = int64_t(psi.size()), B = seed.size(0), K = seed.size(1), N = seed.size(2),
                S = int64_t(grad_states.size());
  check("seed", seed, seed, {B, K, N}, false);
  if (state) check("state", *state, seed, {B, K, N}, false);
  const std::vector<BatchField> fields = fields_of(psi, seed);
  STD_TORCH_CHECK(S == 1 || S == T, "difnet_kernels::cuda_cascade: grad_states holds ", S, " steps of ", T);
  STD_TORCH_CHECK(grad_psi.size() == psi.size(), "difnet_kernels::cuda_cascade: ", T, " psi have ", grad_psi.size(),
                  " gradients");
  std::vector<BatchField> given, to_psi;
  for (const Tensor& one : grad_states) {
    check("grad_states", one, seed, {B, K, N}, false);
    given.push_back(field_of(one));
  }
  for (size_t t = 0; t < psi.size(); ++t) {  // an empty one is not wanted
    if (grad_psi[t].numel() > 0) check("grad_psi", grad_psi[t], seed, {B, psi[t].size(1), N}, false);
    to_psi.push_back(grad_psi[t].numel() > 0 ? field_of(grad_psi[t]) : BatchField{});
  }
  const auto biases = vectors_of<const float>("bias", bias, seed, psi.size());
  const auto of_lse = vectors_of<const float>("grad_lse", grad_lse, seed, psi.size());
  const auto to_bias = vectors_of<float>("grad_bias", grad_bias, seed, psi.size());
  for (const std::optional<Tensor>* one : {&grad_state, &grad_seed})
    if (*one) check("a gradient of the state or seed", **one, seed, {B, K, N}, false);
  for (const std::optional<Tensor>* one : {&grad_mu, &grad_beta})
    if (*one) check("a gradient of mu or beta", **one, seed, {T}, true);
  check("mu", mu, seed, {T}, true);
  check("beta", beta, seed, {T}, true);
  check("walked", walked, seed, {T, B, N, K}, true);
  check("row_lse", row_lse, seed, {T, B, N}, true);
  const Device& device = device_of(seed);
  BackwardRequest asked{};
  set_common(asked, state, seed, fields, mu, beta, high, counters, device);
  asked.given = int32_t(S), asked.has_state = state.has_value();
  asked.grad_states = given.data(), asked.grad_psi = to_psi.data();
  asked.grad_state = grad_state ? field_of(*grad_state) : BatchField{};
  asked.grad_seed = grad_seed ? field_of(*grad_seed) : BatchField{};
  asked.column_bias = data_or_null(biases), asked.grad_lse = data_or_null(of_lse);
  asked.grad_bias = data_or_null(to_bias);
  asked.walked = static_cast<const float*>(walked.const_data_ptr());
  asked.row_lse = static_cast<const float*>(row_lse.const_data_ptr());
  asked.grad_mu = data_or_null(grad_mu), asked.grad_beta = data_or_null(grad_beta);
  launch(asked, seed, device, [](auto&&... all) { return cascade_backward(all...); });
}

// W or a vector of Ψ; an empty tensor stands for none.
Array array_of(const Tensor& x, const Tensor& seed, std::initializer_list<int64_t> sizes) {
  if (x.numel() == 0) return {};
  check("W or a vector of Ψ", x, seed, sizes, false);
  STD_TORCH_CHECK(x.is_contiguous(), "difnet_kernels::cuda_cascade: W and the vectors of Ψ must be contiguous");
  return {x.data_ptr(), dtype(x)};
}

// Ψ and the cascade: features (B, C, Z, Y, X), and vectors (D,) of which an empty one is none.
void projected_cascade_of_tensors(Tensor seed, std::vector<Tensor> features, std::vector<Tensor> weight,
                                  std::vector<Tensor> offset, std::vector<Tensor> mean, std::vector<Tensor> variance,
                                  std::vector<Tensor> slope, std::vector<Tensor> shift, std::vector<double> eps,
                                  double root, std::vector<int64_t> grid, Tensor mu, Tensor beta,
                                  std::optional<Tensor> bias, bool high, std::vector<Tensor> states, Tensor counters) {
  const int64_t T = int64_t(features.size()), B = seed.size(0), K = seed.size(1), N = seed.size(2);
  check("seed", seed, seed, {B, K, N}, false);
  STD_TORCH_CHECK(grid.size() == 3 && grid[0] * grid[1] * grid[2] == N,
                  "difnet_kernels::cuda_cascade: grid has other nodes than seed");
  const std::vector<Tensor>* const vectors[] = {&offset, &mean, &variance, &slope, &shift};
  for (const auto* list : vectors)
    STD_TORCH_CHECK(int64_t(list->size()) == T && int64_t(weight.size()) == T && int64_t(eps.size()) == T,
                    "difnet_kernels::cuda_cascade: ", T, " maps have lists of other lengths");
  STD_TORCH_CHECK(T > 0 && T <= kMaxProjectedWalks && K <= 63, "difnet_kernels::cuda_cascade: T = ", T, ", K = ", K,
                  " have no launch with Ψ in it");
  std::vector<Level> levels(size_t(T), Level{});
  for (size_t t = 0; t < levels.size(); ++t) {
    const Tensor& x = features[t];
    Level& level = levels[t];
    check("features", x, seed, {B, x.size(1), x.size(2), x.size(3), x.size(4)}, false);
    STD_TORCH_CHECK(weight[t].dim() == 2 && weight[t].size(0) <= 64,
                    "difnet_kernels::cuda_cascade: weight must be (D, C) with D up to 64");
    const int64_t channels = x.size(1), D = weight[t].size(0);
    level.psi.features = {x.data_ptr(), x.stride(0), x.stride(1), {}, int32_t(channels), dtype(x)};
    for (int axis = 0; axis < 3; ++axis) {
      STD_TORCH_CHECK(x.size(2 + axis) < int64_t(1) << 31, "difnet_kernels::cuda_cascade: an axis of features has ",
                      x.size(2 + axis), " places");
      level.psi.features.stride[axis] = x.stride(2 + axis);
      level.psi.windows.pixels[axis] = int32_t(x.size(2 + axis));
    }
    level.psi.weight = array_of(weight[t], seed, {D, channels}), level.psi.embed = int32_t(D);
    level.eps = float(eps[t]), level.dtype = promoted(dtype(x), dtype(weight[t]));
    level.offset = array_of(offset[t], seed, {D}), level.mean = array_of(mean[t], seed, {D});
    level.variance = array_of(variance[t], seed, {D}), level.psi.slope = array_of(slope[t], seed, {D});
    level.shift = array_of(shift[t], seed, {D});
  }
  const std::vector<void*> steps = steps_of(states, seed, T);
  if (bias) check("bias", *bias, seed, {B, N}, true);
  const std::vector<const float*> biases(size_t(T), bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr);
  check("mu", mu, seed, {T}, true);
  check("beta", beta, seed, {T}, true);
  const Device& device = device_of(seed);
  ProjectedRequest asked{};
  set_common(asked.cascade, std::nullopt, seed, {}, mu, beta, high, counters, device);
  asked.cascade.walks = int32_t(T), asked.cascade.wanted = int32_t(states.size());
  asked.cascade.states = field_of(states[0]), asked.cascade.steps = steps.data();
  asked.cascade.column_bias = bias ? biases.data() : nullptr;
  asked.levels = levels.data(), asked.root = float(root);
  for (size_t axis = 0; axis < 3; ++axis) asked.grid[axis] = int32_t(grid[axis]);
  launch(asked, seed, device, [](auto&&... all) { return projected_cascade(all...); });
}

}  // namespace
}  // namespace difnet::cuda

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("why_no_cuda_device", TORCH_BOX(&difnet::cuda::why_no_device));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CUDA, m) {
  m.impl("cuda_cascade_forward", TORCH_BOX(&difnet::cuda::cascade_forward_of_tensors));
  m.impl("cuda_cascade_backward", TORCH_BOX(&difnet::cuda::cascade_backward_of_tensors));
  m.impl("cuda_projected_cascade", TORCH_BOX(&difnet::cuda::projected_cascade_of_tensors));
}
