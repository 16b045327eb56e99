// The kernels of Ψ, as they are compiled for a program.
#include "run_projection_on_host.h"

namespace twin {

void make_fibers(int count) { Machine::make_fibers(count); }

template <typename Asked, typename RunAll>
Report run_projection_on_host(const Asked& asked, const Options& options, RunAll run_all) {
  return run_on_host(asked, options, run_all, [](const auto& c, const auto& with, Machine::Settings& settings) {
    Machine::Result result;
    with_projection_kind<std::decay_t<decltype(c)>>(
        with, [&](auto kind) { result = on_fibers<decltype(kind)>(c, settings); });
    return result;
  });
}
Report run_on_host(const difnet::cuda::ProjectionRequest& asked, const Options& options) {
  return run_projection_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run_projection(all...); });
}
Report run_on_host(const difnet::cuda::ProjectionBackwardRequest& asked, const Options& options) {
  return run_projection_on_host(asked, options,
                                [](auto&&... all) { return difnet::cuda::run_projection_backward(all...); });
}

}  // namespace twin
