// The twin as a library: a request from Python, run on fibers. The kernels are those of csrc/cuda, word for word.
#include <cstdlib>
#include <cstring>
#include <optional>

#include "run_on_host.h"

namespace {

// The workspace of a launch, counted as csrc/cuda/cascade/forward.cu does.
struct Sizes {
  int64_t size = 0;
  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(size);
    size += (count * int64_t(sizeof(T)) + 127) / 128 * 128;
  }
};

// Of the first launch of a request, which needs the most; and how many launches there are.
int64_t first_workspace(const auto& asked, auto run_all, int32_t& launches) {
  int64_t bytes = 0;
  launches = 0;
  (void)run_all(
      asked,
      [&](auto& c, const difnet::cuda::Instance& with) {
        Sizes sections;
        take_sections(c, with, sections);
        if (launches++ == 0) bytes = sections.size;
      },
      [](const auto&, const difnet::cuda::Instance&) { return twin::Bad(); },
      [](const char* words) { return twin::Bad(words); });
  return bytes;
}

}  // namespace

extern "C" {

int64_t twin_workspace_forward(const difnet::cuda::Request* asked, int32_t* launches) {
  return first_workspace(*asked, [](auto&&... all) { return difnet::cuda::run(all...); }, *launches);
}
int64_t twin_workspace_backward(const difnet::cuda::BackwardRequest* asked, int32_t* launches) {
  return first_workspace(*asked, [](auto&&... all) { return difnet::cuda::run_backward(all...); }, *launches);
}

// Returns whether all is well; `error` (600 bytes) says what is not.
bool twin_cascade_forward(const difnet::cuda::Request* asked, const twin::Options* options, twin::Report* report) {
  *report = twin::run_on_host(*asked, *options);
  return report->error[0] == 0;
}
bool twin_cascade_backward(const difnet::cuda::BackwardRequest* asked, const twin::Options* options,
                           twin::Report* report) {
  *report = twin::run_on_host(*asked, *options);
  return report->error[0] == 0;
}
bool twin_projected_cascade(const difnet::cuda::ProjectedRequest* asked, const twin::Options* options,
                            twin::Report* report) {
  *report = twin::run_on_host(*asked, *options);
  return report->error[0] == 0;
}

// What the host does for a launch on a card, but for the calls of the driver: `times` requests from size to arguments.
// Returns the bytes of their workspace, so that nothing is left out.
int64_t twin_host_work(const difnet::cuda::Request* asked, int32_t times) {
  using namespace difnet::cuda;
  static Cascade* kept = new Cascade;
  int64_t bytes = 0;
  const auto bind = [&](Cascade& c, const Instance& with) {
    Sizes sections;
    take_sections(c, with, sections);
    bytes += sections.size;
  };
  const auto launch = [&](const Cascade& c, const Instance&) {
    *kept = c;  // what the driver would copy
    return twin::Bad();
  };
  const auto refuse = [](const char* words) { return twin::Bad(words); };
  for (int32_t n = 0; n < times; ++n) (void)run(*asked, bind, launch, refuse);
  return bytes;
}

void twin_split_columns(int64_t batch, int64_t row_tiles, int64_t columns, int64_t processors, bool in_registers,
                        int32_t* to) {
  const difnet::cuda::Split split = difnet::cuda::split_columns(batch, row_tiles, columns, processors, in_registers);
  to[0] = split.parts;
  to[1] = split.part_tiles;
  to[2] = split.all_parts;
}

// Nodes of a column tile and shared memory of a block of a compiled kernel.
int32_t twin_tile(int32_t products, int32_t embed, int32_t width, bool backward) {
  const difnet::cuda::Instance with{products, embed, width};
  return backward ? difnet::cuda::backward_tile(with) : with.tile();
}

// way: 0 forward, 1 backward, 2 with Ψ in the launch.
int32_t twin_shared_bytes(int32_t products, int32_t embed, int32_t width, int32_t way) {
  using namespace difnet::cuda;
  int32_t bytes = 0;
  twin::with_kind({products, embed, width}, [&](auto kind) {
    using With = decltype(kind);
    bytes = int32_t(way == 1 ? sizeof(BackwardMemory<With>) : sizeof(SharedMemory<With>));
    if constexpr (is_compiled(With::kInstance))
      if (way == 2) bytes = int32_t(sizeof(ProjectedMemory<With>));
  });
  return bytes;
}

void twin_sizes(int32_t* to) {
  to[0] = sizeof(difnet::cuda::BatchField);
  to[1] = sizeof(difnet::cuda::Request);
  to[2] = sizeof(twin::Options);
  to[3] = sizeof(twin::Report);
  to[4] = sizeof(difnet::cuda::BackwardRequest);
  to[5] = sizeof(difnet::cuda::ProjectedRequest);
  to[6] = sizeof(difnet::cuda::Level);
}
}
