// The kernels of a cascade, as they are compiled for a program.
#include "run_on_host.h"

namespace twin {

void make_fibers(int count) { Machine::make_fibers(count); }

// The launches of a cascade: of run_all, which is run or run_backward.
template <typename Asked, typename RunAll>
Report run_on_host(const Asked& asked, const Options& options, RunAll run_all) {
  return run_on_host(asked, options, run_all, [](const auto& c, const auto& with, Machine::Settings& settings) {
    Machine::Result result;
    with_kind(with, [&](auto kind) { on_fibers<decltype(kind)>(c, settings, result); });
    return result;
  });
}
Report run_on_host(const difnet::cuda::Request& asked, const Options& options) {
  return run_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run(all...); });
}
Report run_on_host(const difnet::cuda::BackwardRequest& asked, const Options& options) {
  return run_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run_backward(all...); });
}

Report run_on_host(const difnet::cuda::ProjectedRequest& asked, const Options& options) {
  return run_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run_projected(all...); });
}

}  // namespace twin
