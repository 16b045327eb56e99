// The operators of library.cpp on a CUDA device.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/stream.h"
#include "tensors.h"

namespace difnet::cuda {
namespace {

BatchField field_of(const Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), int32_t(x.size(1)), dtype(x)};
}

// One argument, whoever calls: sizes, device, and fp64, which no kernel takes.
void check(const char* name, const Tensor& x, const Tensor& seed, std::initializer_list<int64_t> sizes, bool fp32) {
  STD_TORCH_CHECK(x.dim() == int64_t(sizes.size()), "difnet_kernels::cuda_cascade_forward: ", name, " has ", x.dim(),
                  " axes, not ", sizes.size());
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(x.size(axis) == size, "difnet_kernels::cuda_cascade_forward: axis ", axis, " of ", name, " has ",
                    x.size(axis), " places, not ", size);
    ++axis;
  }
  const bool float64 = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(!float64 && (!fp32 || x.scalar_type() == ScalarType::Float),
                  "difnet_kernels::cuda_cascade_forward: ", name, " must be ",
                  fp32 ? "float32" : "float16, bfloat16 or float32");
  STD_TORCH_CHECK(x.get_device() == seed.get_device(), "difnet_kernels::cuda_cascade_forward: ", name,
                  " lies on another device than seed");
  STD_TORCH_CHECK(!fp32 || x.is_contiguous(), "difnet_kernels::cuda_cascade_forward: ", name, " must be contiguous");
}

const Device& device_of(const Tensor& x) {
  static std::array<std::optional<Device>, 64> known;
  static std::mutex lock;
  const std::lock_guard<std::mutex> guard(lock);
  std::optional<Device>& device = known.at(size_t(x.get_device()));
  if (!device) {
    Device found;
    const Failure failure = look_at_device(x.get_device(), found);
    STD_TORCH_CHECK(failure.empty(), failure);
    device = found;
  }
  return *device;
}

void cascade_forward_of_tensors(std::optional<Tensor> state, Tensor seed, std::vector<Tensor> psi,
                                std::vector<Tensor> bias, Tensor mu, Tensor beta, bool high, std::vector<Tensor> states,
                                std::optional<Tensor> walked, std::optional<Tensor> row_lse, std::vector<Tensor> lse,
                                Tensor counters) {
  const int64_t T = int64_t(psi.size()), B = seed.size(0), K = seed.size(1), N = seed.size(2),
                S = int64_t(states.size());
  check("seed", seed, seed, {B, K, N}, false);
  if (state) check("state", *state, seed, {B, K, N}, false);
  STD_TORCH_CHECK(T > 0 && (S == 1 || S == T), "difnet_kernels::cuda_cascade_forward: states holds ", S, " steps of ",
                  T);
  std::vector<BatchField> fields;
  for (const Tensor& one : psi) {
    check("psi", one, seed, {B, one.size(1), N}, false);
    STD_TORCH_CHECK(one.size(1) <= 128, "difnet_kernels::cuda_cascade_forward: D = ", one.size(1), " is above 128");
    fields.push_back(field_of(one));
  }
  STD_TORCH_CHECK(K <= 63, "difnet_kernels::cuda_cascade_forward: K = ", K, " is above 63");
  std::vector<void*> steps;
  for (const Tensor& one : states) {
    check("states", one, seed, {B, K, N}, false);
    const bool alike = one.stride(0) == states[0].stride(0) && one.stride(1) == states[0].stride(1) &&
                       one.stride(2) == states[0].stride(2) && one.scalar_type() == states[0].scalar_type();
    STD_TORCH_CHECK(alike, "difnet_kernels::cuda_cascade_forward: states differ in strides or dtype");
    steps.push_back(one.mutable_data_ptr());
  }
  for (const std::vector<Tensor>* list : {&bias, &lse})
    STD_TORCH_CHECK(list->empty() || int64_t(list->size()) == T, "difnet_kernels::cuda_cascade_forward: ", T,
                    " walks have ", list->size(), " biases or lse");
  std::vector<const float*> biases;
  for (const Tensor& one : bias) {  // an empty one stands for none
    if (one.numel() > 0) check("bias", one, seed, {B, N}, true);
    biases.push_back(one.numel() > 0 ? static_cast<const float*>(one.const_data_ptr()) : nullptr);
  }
  std::vector<float*> lses;
  for (const Tensor& one : lse) {
    check("lse", one, seed, {B, N}, true);
    lses.push_back(static_cast<float*>(one.mutable_data_ptr()));
  }
  check("mu", mu, seed, {T}, true);
  check("beta", beta, seed, {T}, true);
  if (walked) check("walked", *walked, seed, {T, B, N, K}, true);
  if (row_lse) check("row_lse", *row_lse, seed, {T, B, N}, true);
  const Device& device = device_of(seed);
  Request asked{};
  asked.images = int32_t(B), asked.nodes = int32_t(N), asked.classes = int32_t(K), asked.walks = int32_t(T);
  asked.wanted = int32_t(S), asked.high = high;
  asked.seed = field_of(seed), asked.state = state ? field_of(*state) : asked.seed, asked.states = field_of(states[0]),
  asked.steps = steps.data(), asked.psi = fields.data();
  asked.column_bias = biases.empty() ? nullptr : biases.data(), asked.lse = lses.empty() ? nullptr : lses.data();
  asked.mu = static_cast<const float*>(mu.const_data_ptr()),
  asked.beta = static_cast<const float*>(beta.const_data_ptr());
  asked.walked = walked ? static_cast<float*>(walked->mutable_data_ptr()) : nullptr;
  asked.row_lse = row_lse ? static_cast<float*>(row_lse->mutable_data_ptr()) : nullptr;
  asked.counters = static_cast<uint32_t*>(counters.mutable_data_ptr()), asked.counters_size = counters.numel();
  asked.processors = device.processors;
  const int64_t bytes = workspace_bytes(asked);
  const Tensor workspace = torch::stable::new_empty(seed, {std::max<int64_t>(bytes, 0)}, ScalarType::Byte);
  const Failure failure = cascade_forward(asked, device, workspace.mutable_data_ptr(), current_stream(device.index));
  STD_TORCH_CHECK(failure.empty(), "the CUDA kernels of difnet_kernels did not run: ", failure,
                  ". Use backend=\"triton\" or \"reference\", or report the case with this line.");
}

}  // namespace
}  // namespace difnet::cuda

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("why_no_cuda_device", TORCH_BOX(&difnet::cuda::why_no_device));
}

STABLE_TORCH_LIBRARY_IMPL(difnet_kernels, CUDA, m) {
  m.impl("cuda_cascade_forward", TORCH_BOX(&difnet::cuda::cascade_forward_of_tensors));
}
