// How a program reads its runs, one a line; a Run prints what came out, and returns 0 if it is right.
//
//     program              WAY RUN: one after another, up to the first that is wrong
//     program apart        FAULT WAY RUN: each in a process of its own, because a fault ends it
#pragma once

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>

#include "cuda/arguments.h"
#include "run.h"

extern "C" {
int twin_fault = -1;  // the seeded fault that is on (tests/cuda/faults.py)
}

namespace twin {

using Run = int(const std::string& way, const char* line);

constexpr const char* kApart = "---- apart";

// One after another, up to the first that is wrong.
inline int run_together(Run* run) {
  for (std::string way, line; std::cin >> way && std::getline(std::cin, line);)
    if (const int wrong = run(way, line.c_str())) return wrong;
  return 0;
}

// All kinds of runs end with the number of resident blocks and the schedule.
inline int blocks_of(const std::string& line) { return std::stoi(line.substr(line.rfind(' ', line.rfind(' ') - 1))); }

// Fibers are made once, before the processes part, because to make them costs more than a run.
inline int run_apart(Run* run) {
  for (std::string way, line; std::cin >> twin_fault >> way && std::getline(std::cin, line);) {
    make_fibers(blocks_of(line) * difnet::cuda::kThreads);
    puts(kApart);
    fflush(stdout);
    // fork() would blind the race detector, for it trusts no child of a process that has threads; ours are fibers
    const pid_t child = pid_t(syscall(SYS_fork));
    if (child == 0) {
      const int wrong = run(way, line.c_str());
      fflush(stdout);
      _exit(wrong);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return perror("apart"), 3;
    if (status != 0) printf("exit status %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  return 0;
}

inline int run_lines(int count, char** words, Run* run) {
  return count > 1 && words[1] == std::string("apart") ? run_apart(run) : run_together(run);
}

}  // namespace twin
