"""Tile sizes of the two walk kernels, as data: the first row that fits the case is taken, the last row runs everywhere.

No row has been timed yet: they were chosen from the compiled binaries (registers, spills, shared memory, matrix
instructions, see docs/gpu.md). A timed row names device, versions and benchmark here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """rows I and columns J of a tile, warps per program, stages of the copy pipeline.

    fused: rows whose columns are not split are finished in registers; False where the last step would not fit them.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    fused: bool = True

    @property
    def pad(self) -> int:
        """Nodes are padded to a multiple of this, so that neither rows nor columns need a mask."""
        return max(self.rows, self.cols)


@dataclass(frozen=True)
class Case:
    """What a launch depends on. DP and KP: padded widths; products: 1 or 3 (hi/lo split) for the logits and the
    values."""

    kind: str
    arch: int
    DP: int
    KP: int
    logit_products: int
    value_products: int
    nodes: int


@dataclass(frozen=True)
class Row:
    """A launch and the cases it serves: the given kind and architectures, DP and KP up to a width, products as
    given."""

    launch: Launch
    kind: str | None = None
    archs: tuple[int, ...] | None = None
    DP: int = 256
    KP: int = 128
    products: int = 3
    min_nodes: int = 0

    def serves(self, case: Case) -> bool:
        return (
            self.kind in (None, case.kind)
            and (self.archs is None or case.arch in self.archs)
            and case.DP <= self.DP
            and case.KP <= self.KP
            and max(case.logit_products, case.value_products) <= self.products
            and case.nodes >= self.min_nodes
        )


# Hopper multiplies from shared memory by warp groups (64 rows); Blackwell's data-centre parts accumulate in tensor
# memory; the others hold every operand in registers and want small tiles. sm_86, sm_89 and sm_120 have 99 KiB of
# shared memory.
HOPPER = (90,)
BLACKWELL = (100, 103)
AMPERE = (80, 86, 87, 89)
CONSUMER = (120, 121)

ROWS: tuple[Row, ...] = (
    Row(Launch(64, 64, 4, 2), "forward", HOPPER, DP=16, KP=32, min_nodes=33),
    Row(Launch(128, 64, 4, 3), "forward", HOPPER, DP=64, KP=32, products=1, min_nodes=65),
    Row(Launch(128, 64, 4, 2), "forward", HOPPER, DP=64, KP=32, min_nodes=65),
    Row(Launch(64, 32, 4, 2, fused=False), "forward", HOPPER, min_nodes=33),
    Row(Launch(64, 64, 4, 2, fused=False), "backward", HOPPER, DP=64, KP=32, products=1, min_nodes=33),
    Row(Launch(64, 64, 4, 2), "backward", HOPPER, DP=64, KP=32, min_nodes=33),
    Row(Launch(64, 32, 4, 2, fused=False), "backward", HOPPER, DP=128, KP=64, products=1, min_nodes=33),
    Row(Launch(64, 16, 4, 2, fused=False), "backward", HOPPER, DP=128, KP=64, min_nodes=33),
    Row(Launch(128, 64, 8, 2), "forward", BLACKWELL, DP=64, KP=32, min_nodes=65),
    Row(Launch(64, 64, 4, 2), "backward", BLACKWELL, DP=64, KP=32, min_nodes=33),
    Row(Launch(64, 64, 4, 2), "forward", AMPERE, DP=64, KP=32, min_nodes=33),
    Row(Launch(64, 16, 4, 2), "backward", AMPERE + CONSUMER, DP=64, KP=32, min_nodes=33),
    Row(Launch(64, 32, 4, 2), "forward", CONSUMER, DP=64, KP=32, min_nodes=33),
    Row(Launch(32, 32, 4, 2, fused=False), "forward", AMPERE + CONSUMER, DP=128, KP=64, min_nodes=33),
    Row(Launch(32, 16, 4, 2, fused=False), "backward", AMPERE + CONSUMER, DP=128, KP=64, min_nodes=33),
    Row(Launch(32, 16, 8, 1, fused=False)),
)


def select(case: Case) -> Launch:
    """The launch of the first row that serves `case`."""
    return next(row.launch for row in ROWS if row.serves(case))
