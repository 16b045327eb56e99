// A Ψ on fibers: what csrc/cuda/compiled.h does with a card.
#pragma once

#include "cuda/projection/backward.h"
#include "cuda/projection/forward.h"
#include "cuda/projection/launches.h"
#include "on_host.h"

namespace twin {

// act(kind) for the compiled kernel that is meant.
template <typename Arguments, typename Act>
void with_projection_kind(const difnet::cuda::Instance& with, Act act) {
  using namespace difnet::cuda;
  const auto look = [&](auto kind) {
    constexpr Instance mine = decltype(kind)::kInstance;
    if (mine.products == with.products && mine.embed == with.embed) act(kind);
  };
  constexpr int kOfFloat = Arguments::kOfFloat;
  look(Kind<kOfFloat, 64, 0>{});
#if !defined(TWIN_ONE_KIND)
  look(Kind<2, 64, 0>{}), look(Kind<2, 128, 0>{}), look(Kind<kOfFloat, 128, 0>{});
#endif
}

template <typename With>
Machine::Result on_fibers(const difnet::cuda::ProjectionForward& c, Machine::Settings& settings) {
  settings.shared_bytes = sizeof(difnet::cuda::ProjectionMemory<difnet::cuda::kHalvesOf<With>, With::kInstance.embed>);
  return Machine::run(settings, [&c] { difnet::cuda::projection_forward<With>(c); });
}

template <typename With>
Machine::Result on_fibers(const difnet::cuda::ProjectionBackward& c, Machine::Settings& settings) {
  settings.shared_bytes = sizeof(difnet::cuda::ProjectionBackwardMemory<With>);
  return Machine::run(settings, [&c] { difnet::cuda::projection_backward<With>(c); });
}

}  // namespace twin
