"""The problems that are measured, named by what they are in the paper (§5).

tests/support/cases.py has the same sizes, and tests/benchmarks/test_cases.py sees that it has: a case that is added here
is added there, so what is measured is tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One cascade: B images of N nodes, embeddings of width D, K classes, T walks."""

    name: str
    batch: int
    nodes: int
    embed: int
    classes: int
    walks: int = 5
    what: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) with H·W = N: square where N is a square, a single row of nodes otherwise."""
        side = math.isqrt(self.nodes)
        return (side, side) if side * side == self.nodes else (1, self.nodes)

    @property
    def sizes(self) -> str:
        return f"({self.batch}, {self.nodes}, {self.embed}, {self.classes})"

    def but(self, **changes: Any) -> Case:
        """The same case with some sizes changed, for sweeps."""
        return replace(self, **changes)

    def __str__(self) -> str:
        return self.name


CASES = {
    case.name: case
    for case in (
        Case("train321_one", 1, 41 * 41, 64, 21, what="one training crop, 321² at stride 8"),
        Case("train321", 16, 41 * 41, 64, 21, what="the training batch, 16 crops of 321² at stride 8"),
        Case("eval505", 1, 64 * 64, 64, 21, what="evaluation on VOC, 505² at stride 8"),
        Case("eval505_h5", 1, 101 * 101, 64, 21, what="505² on the paper's grid, h' = h/5"),
        Case("context60", 1, 64 * 64, 128, 60, what="Pascal Context, 60 classes, wide embeddings"),
        Case("highres1024", 1, 128 * 128, 64, 21, what="1024² at stride 8"),
        Case("batch4_16k", 4, 128 * 128, 64, 21, what="four images of 1024² at stride 8"),
    )
}
TINY = Case("tiny", 1, 16, 64, 21, walks=1, what="nothing but the way to the kernel")
# where the sweeps start: one size grows, the others stay
SWEEP = Case("sweep", 1, 1024, 64, 21, walks=1)


def swept(size: str, value: int) -> Case:
    return SWEEP.but(name=f"sweep_{size}", **{size: value})
