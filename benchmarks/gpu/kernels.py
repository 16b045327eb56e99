"""Microseconds of every kernel inside one cascade, and the walks' fraction of their floor. To be read beside
docs/gpu.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cascade import problem
from benchmarks.cases import Case
from benchmarks.gpu.ours import SETTINGS, calls, judged
from benchmarks.gpu.stage import Report, first_line, floors, must_pass, named, parser

CALLS = 3


def profiled(call: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Microseconds and launches per call, by kernel."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    return {
        event.key: {"microseconds": event.device_time_total / CALLS, "launches": event.count / CALLS}
        for event in seen.key_averages()
        if event.device_time_total > 0
    }


def measured(case: Case, dtype: str, precision: str) -> dict[str, object]:
    """Facts about a cascade that is right; raises if it is not."""
    inputs, truth = problem(case, "smooth", dtype, "cuda")
    call = calls(inputs, precision)["forward+backward"]
    verdict = judged(inputs, truth, call(), precision)
    must_pass(verdict)
    times = profiled(call)
    facts: dict[str, object] = {"kernels": times, "error": verdict.error, "bound": verdict.bound}
    for kernel, floor in zip(("walk_forward", "walk_backward"), floors(case), strict=True):
        taken = sum(time["microseconds"] for key, time in times.items() if key.startswith(kernel))
        if not taken:
            raise RuntimeError(f"the profiler saw no {kernel} kernel")
        facts[kernel] = {"microseconds": taken, "h200_floor": floor, "fraction": floor / taken}
    return facts


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    failed = 0
    for dtype, precision in SETTINGS:
        for case in named(("eval505", "batch4_16k", "context60", "eval505_h5", "train321")):
            facts: dict[str, object] = {"case": case.name, "dtype": dtype, "precision": precision}
            if report.time_is_up:
                report.left_out(**facts)
                continue
            try:
                facts |= measured(case, dtype, precision)
            except Exception as error:
                failed += 1
                facts["reason"] = first_line(error)
            report.add(**facts)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
