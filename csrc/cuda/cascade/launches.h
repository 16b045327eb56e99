// From what a caller asks to launches: which kernel, which cut, how much workspace, and kMaxWalks walks at a time. The
// library hands the launches to a card, the tests to fibers.
#pragma once

#include <algorithm>

#include "cuda/backward_arguments.h"

namespace difnet::cuda {

struct Request {
  int32_t images, nodes, classes, walks, wanted;  // wanted: how many of the last states, 1 or all
  int32_t high;                                   // precision "high": three products where a field is fp32
  BatchField state, seed, states;                 // states: strides and dtype of all steps
  void* const* steps;                             // where the wanted ones lie
  const BatchField* psi;                          // of all walks
  const float* const* column_bias;                // of all walks (a walk without one has a null), or null
  float* const* lse;                              // of all walks, or null
  const float *mu, *beta;
  float *walked, *row_lse;  // or null
  uint32_t* counters;
  int64_t counters_size;
  // a card, and what the tests change: 0 is the plan's own
  int32_t processors, forced_parts, forced_all_parts, walks_at_a_time;
};

inline Instance instance_of(const auto& asked) {
  bool fp32 = asked.seed.dtype == DType::kFloat || asked.state.dtype == DType::kFloat;
  int32_t widest = 0;
  for (int32_t t = 0; t < asked.walks; ++t) {
    fp32 = fp32 || asked.psi[t].dtype == DType::kFloat;
    widest = std::max(widest, asked.psi[t].channels);
  }
  return instance(asked.high && fp32, widest, asked.classes);
}

// The walks of one launch, at most `most`: so many that their ψ take kTogether bytes of the workspace, or one. Larger ones
// last so long that a launch of their own costs nothing.
constexpr int64_t kTogether = int64_t(1) << 25;
inline int32_t walks_of_a_launch(const auto& asked, const Instance& with, int32_t most) {
  const int64_t nodes = int64_t(asked.images) * ((asked.nodes + kRows - 1) / kRows) * kRows;
  const int64_t walks = kTogether / std::max<int64_t>(1, nodes * with.embed * (with.products == 3 ? 4 : 2));
  most = int32_t(std::clamp<int64_t>(walks, 1, most));
  return std::min(asked.walks_at_a_time > 0 ? std::min(asked.walks_at_a_time, most) : most, asked.walks);
}

// What every launch of a request has in common.
void set_asked(auto& c, const Request& asked, const Instance& with) {
  c.images = asked.images;
  c.nodes = asked.nodes;
  c.classes = asked.classes;
  c.all_walks = asked.walks;
  c.wants_lse = asked.lse != nullptr;
  c.centred = with.products == 3;
  c.state = asked.state;
  c.seed = asked.seed;
  c.states = asked.states;
  c.mu = asked.mu;
  c.beta = asked.beta;
  c.walked = asked.walked;
  c.row_lse = asked.row_lse;
  c.counters = asked.counters;
}
// The walk `t` of a launch.
void set_walk(auto& c, const Request& asked, int32_t t) {
  const int32_t walk = c.first_walk + t, step = asked.wanted - asked.walks + walk;
  c.column_bias[t] = asked.column_bias == nullptr ? nullptr : asked.column_bias[walk];
  c.lse[t] = asked.lse == nullptr ? nullptr : asked.lse[walk];
  c.steps[t] = step < 0 ? nullptr : asked.steps[step];
}

// bind(cascade, instance) takes the sections of the workspace; the first launch needs the most. launch(cascade,
// instance) returns what run returns: something that is false when all is well. refuse(words) is for what no launch can
// hold.
template <typename Bind, typename Launch, typename Refuse>
auto run(const Request& asked, Bind bind, Launch launch, Refuse refuse) -> decltype(refuse("")) {
  const Instance with = instance_of(asked);
  const int32_t at_a_time = walks_of_a_launch(asked, with, kMaxWalks);
  Cascade c{};
  set_asked(c, asked, with);
  c.walks = at_a_time;
  cut(c, with.tile(), with.in_registers(), asked.processors, asked.forced_parts, asked.forced_all_parts);
  if (!count_units(c, true)) return refuse("the units of work pass 2^31; split the batch");
  if (counters(c) > asked.counters_size) return refuse("the counters do not suffice; this is a defect of the caller");
  for (c.first_walk = 0; c.first_walk < asked.walks; c.first_walk += c.walks) {
    c.walks = std::min(at_a_time, asked.walks - c.first_walk);
    count_units(c, c.first_walk == 0);
    bind(c, with);
    for (int32_t t = 0; t < c.walks; ++t) {
      c.psi[t] = asked.psi[c.first_walk + t];
      set_walk(c, asked, t);
    }
    if (auto bad = launch(c, with)) return bad;
  }
  return {};
}

// ---- backward -------------------------------------------------------------------------------------------------------
struct BackwardRequest {
  int32_t images, nodes, classes, walks, given;  // given: gradients of how many of the last states, 1 or all
  int32_t high, has_state;
  BatchField state, seed;            // y⁰ (the seed, if there is no state), s
  BatchField grad_state, grad_seed;  // without data where they are not wanted
  const BatchField* psi;             // of all walks
  const BatchField* grad_psi;        // of all walks, without data where it is not wanted
  const BatchField* grad_states;     // of the given ones
  const float* const* column_bias;   // of all walks (a walk without one has a null), or null
  const float* const* grad_lse;      // the same
  float* const* grad_bias;           // the same
  const float *mu, *beta, *walked, *row_lse;
  float *grad_mu, *grad_beta;  // or null
  uint32_t* counters;
  int64_t counters_size;
  int32_t processors, forced_parts, forced_all_parts, walks_at_a_time;  // as in Request
};

// As `run`: launches of the last walks first. Where ψ and bias alone are learnt, walks before the first that learns are
// left out.
template <typename Bind, typename Launch, typename Refuse>
auto run_backward(const BackwardRequest& asked, Bind bind, Launch launch, Refuse refuse) -> decltype(refuse("")) {
  const Instance with = instance_of(asked);
  const int32_t at_a_time = walks_of_a_launch(asked, with, kMaxWalksBackward);
  CascadeBackward c{};
  c.images = asked.images;
  c.nodes = asked.nodes;
  c.classes = asked.classes;
  c.all_walks = asked.walks;
  c.centred = with.products == 3;
  c.has_state = asked.has_state;
  c.state = asked.state;
  c.seed = asked.seed;
  c.grad_state = asked.grad_state;
  c.grad_seed = asked.grad_seed;
  c.mu = asked.mu;
  c.beta = asked.beta;
  c.walked = asked.walked;
  c.row_lse = asked.row_lse;
  c.grad_mu = asked.grad_mu;
  c.grad_beta = asked.grad_beta;
  c.counters = asked.counters;
  const bool to_the_start = asked.grad_state.data != nullptr || asked.grad_seed.data != nullptr ||
                            asked.grad_mu != nullptr || asked.grad_beta != nullptr;
  int32_t earliest = 0;
  const auto learns = [&](int32_t t) {
    return asked.grad_psi[t].data != nullptr || (asked.grad_bias != nullptr && asked.grad_bias[t] != nullptr);
  };
  while (!to_the_start && earliest < asked.walks - 1 && !learns(earliest)) ++earliest;
  c.walks = std::min(at_a_time, asked.walks - earliest);
  cut(c, backward_tile(with), true, asked.processors, asked.forced_parts, asked.forced_all_parts);
  if (!count_units(c, true)) return refuse("the units of work pass 2^31; split the batch");
  if (counters(c) > asked.counters_size) return refuse("the counters do not suffice; this is a defect of the caller");
  for (int32_t end = asked.walks; end > earliest; end -= c.walks) {
    c.walks = std::min(at_a_time, end - earliest);
    c.first_walk = end - c.walks;
    c.first_hands_on = to_the_start || c.first_walk > earliest;
    count_units(c, end == asked.walks);
    bind(c, with);
    for (int32_t t = 0; t < c.walks; ++t) {
      const int32_t walk = c.first_walk + t, step = asked.given - asked.walks + walk;
      c.psi[t] = asked.psi[walk];
      c.grad_psi[t] = asked.grad_psi[walk];
      c.grad_step[t] = step < 0 ? BatchField{} : asked.grad_states[step];
      c.column_bias[t] = asked.column_bias == nullptr ? nullptr : asked.column_bias[walk];
      c.grad_lse[t] = asked.grad_lse == nullptr ? nullptr : asked.grad_lse[walk];
      c.grad_bias[t] = asked.grad_bias == nullptr ? nullptr : asked.grad_bias[walk];
    }
    if (auto bad = launch(c, with)) return bad;
  }
  return {};
}

}  // namespace difnet::cuda
