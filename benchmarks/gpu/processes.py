"""Commands in processes of their own, as many at a time as there are cores, for as long as the time goes.

An illegal access ends its process, and compilers have broken single tile shapes before: what is checked apart fails alone.
Most of the time goes into imports and compilers, which side by side cost once; Triton's cache on disk lets processes share
what one of them has compiled.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import Report
from benchmarks.gpu_suite import ROOT

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
AT_ONCE = min(16, CORES)  # each one holds half a GiB of the GPU before it does anything
# the exception that ended a Python process; torch adds advice below it
_EXCEPTION = re.compile(r"^\w[\w.]*(Error|Exception): ")


@dataclass(eq=False)
class Job:
    """A command, the file that takes what it says, and how it ended: None if the time was up before."""

    about: Mapping[str, Any]
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None

    def start(self) -> subprocess.Popen[bytes]:
        threads = str(max(1, CORES // AT_ONCE))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, **self.environment}
        with self.log.open("wb") as log:
            # in the process group of the stage, so that the suite ends whatever this process leaves behind
            return subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def last_words(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        exceptions = [line for line in lines if _EXCEPTION.match(line)]
        return f"status {self.status}: {(exceptions or lines or ['it said nothing'])[-1][:300]}"


def ended(jobs: Sequence[Job], end: float, at_once: int = AT_ONCE) -> Iterator[Job]:
    """Every job once: as soon as it has ended, or, when time.monotonic() passes `end`, stopped or never begun."""
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    for job in jobs:
        job.log.unlink(missing_ok=True)
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                running[waiting[0]] = waiting[0].start()
                waiting.pop(0)
            over = [job for job, process in running.items() if process.poll() is not None]
            for job in over:
                job.status = running.pop(job).returncode
                yield job
            if not over:
                time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
    yield from (*running, *waiting)


def verdict(job: Job) -> dict[str, Any]:
    """What a process that ended by itself says in its last line of JSON; a failure if there is none."""
    told = [line for line in job.said.splitlines() if line.startswith("{")]
    return json.loads(told[-1]) if job.status == 0 and told else {"passed": False, "reason": job.last_words}


def verdicts(report: Report, jobs: Sequence[Job]) -> int:
    """An entry for every job with its verdict; how many have failed."""
    failed = 0
    for job in ended(jobs, report.end):
        if job.status is None:
            report.left_out(**job.about)
            continue
        facts = verdict(job)
        failed += facts["passed"] is False
        report.add(**job.about, **facts)
    return failed


def asking(report: Report, module: str, problems: Sequence[Mapping[str, Any]]) -> list[Job]:
    """A job `python -m MODULE --out OUT --one PROBLEM` for every problem."""
    command = [sys.executable, "-m", module, "--out", str(report.path), "--one"]
    return [
        Job(problem, [*command, json.dumps(problem)], report.logs / f"{number}.log")
        for number, problem in enumerate(problems)
    ]
