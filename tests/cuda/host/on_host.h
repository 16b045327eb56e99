// What a run on fibers needs whatever the kernel: memory, options, a report.
#pragma once

#include <device.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cascade/launches.h"
#include "run.h"

namespace twin {

// Memory of the card: every section an allocation of its own, so that the address sanitizer knows where it ends, and
// rubbish at first. Later launches of a cascade find what the first one took.
class Sections final : public Memory {
 public:
  template <typename T>
  void take(T*& pointer, int64_t count) {
    const size_t bytes = size_t(count) * sizeof(T);
    if (next_ == taken_.size()) {
      memory_.emplace_back(new char[bytes + 16]);
      char* const begin = memory_.back().get();
      memset(begin, 0xff, bytes);  // NaN
      taken_.push_back({begin, begin + bytes});
      first_ = taken_.data(), count_ = taken_.size();
    }
    const Section& section = taken_[next_++];
    pointer = bytes == 0 ? nullptr : reinterpret_cast<T*>(section.begin);
  }
  void again() { next_ = 0; }
  TWIN_PLAIN bool holds(const char* at, size_t bytes) const override {
    for (size_t n = 0; n < count_; ++n)
      if (at >= first_[n].begin && at + bytes <= first_[n].end) return true;
    return false;
  }

 private:
  struct Section {
    char *begin, *end;
  };
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<Section> taken_;
  const Section* first_ = nullptr;  // of taken_, as holds() reads it
  size_t count_ = 0, next_ = 0;
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
        settings.memory = &sections;
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
