"""Other tile sizes for the walks of the paper, timed offline: what a new row of launch_rows.py is taken from.

Nothing here runs in use: the library never times anything on its users' buffers.
"""

from __future__ import annotations

from unittest import mock

import torch

from benchmarks.gpu.ours import SETTINGS, calls
from benchmarks.gpu.stage import Report, first_line, microseconds, named, parser
from benchmarks.inputs import make_inputs
from benchmarks.tasks import DTYPES
from difnet_kernels.backends.triton import launch_rows
from difnet_kernels.backends.triton.launch_rows import Case, Launch

FORWARD = (
    Launch(128, 64, 4, 2), Launch(128, 64, 4, 3), Launch(128, 128, 8, 2), Launch(128, 64, 8, 3), Launch(64, 64, 4, 3),
    Launch(64, 128, 4, 2), Launch(256, 64, 8, 2),
)  # fmt: skip
BACKWARD = (
    Launch(64, 64, 4, 2), Launch(64, 64, 4, 2, fused=False), Launch(64, 64, 4, 3), Launch(64, 32, 4, 2), Launch(64,
    32, 4, 3),
    Launch(128, 64, 8, 2),
)  # fmt: skip


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    chosen = launch_rows.select
    for dtype, precision in SETTINGS[:2]:
        for case in named(("eval505", "batch4_16k")):
            inputs = make_inputs(case.but(walks=1), "smooth", DTYPES[dtype], "cuda")
            for kind, candidates in (("forward", FORWARD), ("backward", BACKWARD)):
                for tiles in candidates:

                    def pick(problem: Case, kind: str = kind, tiles: Launch = tiles) -> Launch:
                        return tiles if problem.kind == kind else chosen(problem)

                    facts = {"case": case.name, "dtype": dtype, "kind": kind, "launch": str(tiles)}
                    if report.time_is_up:
                        report.left_out(**facts)
                        continue
                    try:
                        with mock.patch.object(launch_rows, "select", pick):
                            call = calls(inputs, precision)["forward" if kind == "forward" else "forward+backward"]
                            taken = microseconds(call, rounds=10, inner=2)
                        report.add(**facts, microseconds=taken["median"])
                    except Exception as error:
                        torch.cuda.synchronize()
                        report.add(**facts, reason=first_line(error))
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
