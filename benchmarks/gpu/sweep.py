"""Other tile sizes for the walks of the paper, timed offline: what a new row of walk/rows.py is taken from.

Nothing here runs in use: the library never times anything on its users' buffers.
"""

from __future__ import annotations

from unittest import mock

import torch

from benchmarks.cascade import problem
from benchmarks.correctness import Truth
from benchmarks.gpu.ours import SETTINGS, calls, judged
from benchmarks.gpu.stage import Report, first_line, microseconds, must_pass, named, parser
from benchmarks.inputs import Inputs
from difnet_kernels.backends.triton.rows import Case, Launch
from difnet_kernels.backends.triton.walk import rows

FORWARD = (
    Launch(128, 64, 4, 2), Launch(128, 64, 4, 3), Launch(128, 128, 8, 2), Launch(128, 64, 8, 3), Launch(64, 64, 4, 3),
    Launch(64, 128, 4, 2), Launch(256, 64, 8, 2),
)  # fmt: skip
BACKWARD = (
    Launch(64, 64, 4, 2), Launch(64, 64, 4, 2, in_registers=False), Launch(64, 64, 4, 3), Launch(64, 32, 4, 2),
    Launch(64, 32, 4, 3), Launch(128, 64, 8, 2),
)  # fmt: skip


def tried(asked: tuple[Inputs, Truth], precision: str, kind: str, tiles: Launch) -> dict[str, object]:
    """The time of a right result with these tiles for the kernels of this kind; raises if it is wrong."""
    chosen = rows.select

    def pick(case: Case) -> Launch:
        return tiles if case.kernel == kind else chosen(case)

    with mock.patch.object(rows, "select", pick):
        call = calls(asked[0], precision)["forward" if kind == "forward" else "forward+backward"]
        must_pass(judged(*asked, call(), precision))
        return {"microseconds": microseconds(call, rounds=10, inner=2)["median"]}


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out, options.seconds)
    for dtype, precision in SETTINGS[:2]:
        for case in named(("eval505", "batch4_16k")):
            for kind, candidates in (("forward", FORWARD), ("backward", BACKWARD)):
                for tiles in candidates:
                    facts = {"case": case.name, "dtype": dtype, "kind": kind, "launch": str(tiles)}
                    if report.time_is_up:
                        report.left_out(**facts)
                        continue
                    try:
                        facts |= tried(problem(case.but(walks=1), "smooth", dtype, "cuda"), precision, kind, tiles)
                    except Exception as error:
                        torch.cuda.synchronize()
                        facts["reason"] = first_line(error)
                    report.add(**facts)
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
