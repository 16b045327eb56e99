// A cascade on fibers: what csrc/cuda/compiled.h does with a card.
#pragma once

#include "cuda/cascade/backward.h"
#include "cuda/cascade/forward.h"
#include "cuda/cascade/projected.h"
#include "on_host.h"

namespace twin {

template <typename With>
void on_fibers(const difnet::cuda::Cascade& c, Machine::Settings& settings, Machine::Result& result) {
  settings.shared_bytes = sizeof(difnet::cuda::SharedMemory<With>);
  result = Machine::run(settings, [&c] { difnet::cuda::cascade_forward<With>(c); });
}
template <typename With>
void on_fibers(const difnet::cuda::CascadeBackward& c, Machine::Settings& settings, Machine::Result& result) {
  settings.shared_bytes = sizeof(difnet::cuda::BackwardMemory<With>);
  result = Machine::run(settings, [&c] { difnet::cuda::cascade_backward<With>(c); });
}

template <typename With>
void on_fibers(const difnet::cuda::ProjectedCascade& c, Machine::Settings& settings, Machine::Result& result) {
  if constexpr (difnet::cuda::is_compiled(With::kInstance)) {
    settings.shared_bytes = sizeof(difnet::cuda::ProjectedMemory<With>);
    result = Machine::run(settings, [&c] { difnet::cuda::projected_cascade<With>(c); });
  }
}

// act(kind) for the compiled kernel that is meant.
template <typename Act>
void with_kind(const difnet::cuda::Instance& with, Act act) {
  using namespace difnet::cuda;
  const auto look = [&](auto kind) {
    constexpr Instance mine = decltype(kind)::kInstance;
    if (mine.products == with.products && mine.embed == with.embed && mine.width == with.width) act(kind);
  };
  look(Kind<3, 64, 24>{});
#if !defined(TWIN_ONE_KIND)
  look(Kind<1, 64, 24>{}), look(Kind<1, 64, 64>{}), look(Kind<1, 128, 24>{}), look(Kind<1, 128, 64>{});
  look(Kind<3, 64, 64>{}), look(Kind<3, 128, 24>{}), look(Kind<3, 128, 64>{});
#endif
}

}  // namespace twin
