// What a run on fibers needs whatever the kernel: memory, options, a report.
#pragma once

#include <device.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cascade/launches.h"

namespace twin {

struct Options {
  int32_t workers;  // resident blocks
  uint32_t schedule;
};

struct Report {
  char error[600];
  int64_t bank_conflicts, instructions, copied, loaded;
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

// The launches of a request: of run_all, such as difnet::cuda::run; `start`(what is asked, instance, settings) runs one.
template <typename Asked, typename RunAll, typename Start>
Report run_on_host(const Asked& asked, const Options& options, RunAll run_all, Start start) {
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
        const Machine::Result result = start(c, with, settings);
        report.bank_conflicts += result.bank_conflicts;
        report.instructions += result.instructions;
        report.copied += result.copied, report.loaded += result.loaded;
        if constexpr (requires { c.split; })
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

}  // namespace twin
