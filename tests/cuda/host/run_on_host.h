// A request on fibers: what csrc/cuda/kernels.cu does with a card.
#pragma once

#include <cascade_backward.h>
#include <cascade_forward.h>
#include <launches.h>

#include <cstring>
#include <vector>

namespace twin {

struct Options {
  int32_t workers;  // resident blocks
  uint32_t schedule;
};

struct Report {
  char error[600];
  int64_t bank_conflicts, instructions;
  int32_t parts, part_tiles, all_parts, launches;
};

// Memory of the card: every section an allocation of its own, so that the address sanitizer knows where it ends, and
// rubbish at first. Later launches of a cascade find what the first one took.
class Sections {
 public:
  template <typename T>
  void take(T*& pointer, int64_t count) {
    const size_t bytes = size_t(count) * sizeof(T);
    if (next_ == taken_.size()) {
      Section section{std::unique_ptr<char[]>(new char[bytes + 16]), bytes};
      memset(section.memory.get(), 0xff, bytes);  // NaN
      taken_.push_back(std::move(section));
    }
    const Section& section = taken_[next_++];
    pointer = bytes == 0 ? nullptr : reinterpret_cast<T*>(section.memory.get());
  }
  void again() { next_ = 0; }
  bool holds(const char* at, size_t bytes) const {
    for (const Section& section : taken_)
      if (at >= section.memory.get() && at + bytes <= section.memory.get() + section.bytes) return true;
    return false;
  }

 private:
  struct Section {
    std::unique_ptr<char[]> memory;
    size_t bytes;
  };
  std::vector<Section> taken_;
  size_t next_ = 0;
};

// Words if something is wrong.
struct Bad : std::string {
  Bad() = default;
  Bad(const std::string& words) : std::string(words) {}
  explicit operator bool() const { return !empty(); }
};

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

// The launches of a request: of run_all, which is run or run_backward.
template <typename Asked, typename RunAll>
Report run_on_host(const Asked& asked, const Options& options, RunAll run_all) {
  using namespace difnet::cuda;
  Report report{};
  Sections sections;
  const Bad bad = run_all(
      asked,
      [&](auto& c, const Instance& with) {
        sections.again();
        take_sections(c, with, sections);
      },
      [&](const auto& c, const Instance& with) -> Bad {
        Machine::Settings settings{};
        settings.blocks = options.workers;
        settings.threads = kThreads;
        settings.schedule = options.schedule;
        settings.holds = [&](const void* at, size_t bytes) {
          return sections.holds(static_cast<const char*>(at), bytes);
        };
        Machine::Result result;
        with_kind(with, [&](auto kind) { on_fibers<decltype(kind)>(c, settings, result); });
        report.bank_conflicts += result.bank_conflicts;
        report.instructions += result.instructions;
        report.parts = c.split.parts, report.part_tiles = c.split.part_tiles, report.all_parts = c.split.all_parts;
        ++report.launches;
        if (result.error.empty())
          for (int64_t at = 0; at < counters(c); ++at)
            if (c.counters[at] != 0) return Bad("a counter is not zero after the launch");
        return Bad(result.error);
      },
      [](const char* words) { return Bad(words); });
  strncpy(report.error, bad.c_str(), sizeof report.error - 1);
  return report;
}
inline Report run_on_host(const difnet::cuda::Request& asked, const Options& options) {
  return run_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run(all...); });
}
inline Report run_on_host(const difnet::cuda::BackwardRequest& asked, const Options& options) {
  return run_on_host(asked, options, [](auto&&... all) { return difnet::cuda::run_backward(all...); });
}

}  // namespace twin
