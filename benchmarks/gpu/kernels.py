"""Microseconds of every kernel inside one cascade, and the walks' fraction of their floor. To be read beside
docs/gpu.md."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.graphs import SETTINGS, calls
from benchmarks.gpu.stage import Report, first_line, floors, named, parser
from benchmarks.inputs import make_inputs

CALLS = 3


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    failed = 0
    for name, dtype, precision in SETTINGS:
        for case in named(("eval505", "batch4_16k", "context60")):
            facts: dict[str, object] = {"case": case.name, "dtype": name, "precision": precision}
            if report.time_is_up:
                report.left_out(**facts)
                continue
            try:
                call = calls(make_inputs(case, "smooth", dtype, "cuda"), precision)["forward+backward"]
                call()
                torch.cuda.synchronize()
                with profile(activities=[ProfilerActivity.CUDA]) as seen:
                    for _ in range(CALLS):
                        call()
                    torch.cuda.synchronize()
                times = {
                    event.key: {"microseconds": event.device_time_total / CALLS, "launches": event.count / CALLS}
                    for event in seen.key_averages()
                    if event.device_time_total > 0
                }
                facts["kernels"] = times
                forward, backward = floors(case)
                for kernel, floor in (("walk_forward", forward), ("walk_backward", backward)):
                    taken = sum(time["microseconds"] for key, time in times.items() if key.startswith(kernel))
                    if not taken:
                        raise RuntimeError(f"the profiler saw no {kernel} kernel")
                    facts[kernel] = {"microseconds": taken, "h200_floor": floor, "fraction": floor / taken}
            except Exception as error:
                failed += 1
                facts["reason"] = first_line(error)
            report.add(**facts)
    return report.done(failed)


if __name__ == "__main__":
    raise SystemExit(main())
