// What a program asks of the twin, and what it is told. The kernels behind it are compiled apart from the program, in
// cascades.cpp and projections.cpp: with a detector or without, where the program needs none.
#pragma once

#include <cstdint>

namespace difnet::cuda {
struct Request;
struct BackwardRequest;
struct ProjectedRequest;
struct ProjectionRequest;
struct ProjectionBackwardRequest;
}  // namespace difnet::cuda

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

// Fibers for launches to come, as many as there are threads.
void make_fibers(int count);

// All launches of a request.
Report run_on_host(const difnet::cuda::Request& asked, const Options& options);
Report run_on_host(const difnet::cuda::BackwardRequest& asked, const Options& options);
Report run_on_host(const difnet::cuda::ProjectedRequest& asked, const Options& options);
Report run_on_host(const difnet::cuda::ProjectionRequest& asked, const Options& options);
Report run_on_host(const difnet::cuda::ProjectionBackwardRequest& asked, const Options& options);

}  // namespace twin
