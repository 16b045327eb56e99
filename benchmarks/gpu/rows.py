"""Every launch row of this GPU once, walks and Ψ, forward and backward, against fp64: what a new card shows first."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.correctness import Verdict, truth_of
from benchmarks.gpu.level import Level, judge
from benchmarks.gpu.ours import calls, judged
from benchmarks.gpu.processes import asking, verdicts
from benchmarks.gpu.stage import Report, parser
from benchmarks.inputs import make_inputs
from benchmarks.tasks import DTYPES

# together they reach every row that serves the architecture; sizes are ragged on purpose
WALKS = [
    {"of": "walk", "embed": embed, "classes": classes, "dtype": dtype, "nodes": nodes}
    for embed, classes in ((64, 21), (16, 5), (128, 60), (256, 60), (128, 127), (64, 150))
    for dtype in ("fp32", "bf16", "fp16")
    for nodes in ((29, 613) if embed == 64 else (613,))
]
PROJECTIONS = [
    {"of": "psi", "channels": channels, "embed": embed, "dtype": dtype, "channels_last": last, "training": training}
    for channels, embed, formats in (
        *((channels, embed, (("fp32", True, False), ("fp32", False, True), ("bf16", True, True)))
          for channels, embed in ((3, 64), (3, 200), (256, 64), (40, 64), (64, 200))),
        (256, 64, (("fp16", False, False), ("fp32", True, True))),
    )
    for dtype, last, training in formats
]  # fmt: skip
SIDE, GRID = 45, 16


def check(of: str, dtype: str, **sizes: Any) -> dict[str, object]:
    """One problem, in this process."""
    found = {"walk": _walk, "psi": _psi}[of](DTYPES[dtype], **sizes)
    return {"passed": found.passed, "error": found.error, "bound": found.bound, "worst": found.worst}


def _walk(dtype: torch.dtype, embed: int, classes: int, nodes: int) -> Verdict:
    inputs = make_inputs(Case("row", 2, nodes, embed, classes, walks=2), "network", dtype, "cuda")
    made = calls(inputs, "high")["forward+backward"]()
    return judged(inputs, truth_of(inputs, backward=True), made)


def _psi(dtype: torch.dtype, channels: int, embed: int, **formats: bool) -> Verdict:
    level = Level.draw(2, channels, SIDE, GRID, embed, dtype, **formats)
    level.both()
    return judge(level)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--one", help="a problem as JSON: check it in this process and print the verdict")
    options = made.parse_args()
    if options.one:
        print(json.dumps(check(**json.loads(options.one))))
        return 0
    report = Report(options.out, options.seconds)
    return report.done(verdicts(report, asking(report, "benchmarks.gpu.rows", WALKS + PROJECTIONS)))


if __name__ == "__main__":
    raise SystemExit(main())
