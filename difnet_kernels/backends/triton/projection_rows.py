"""Tile sizes of the projection kernels, as data: the first row that fits the case is taken, the last row of a kind runs
everywhere.

No row has been timed yet: they were chosen from the compiled binaries (registers, spills, shared memory, matrix
instructions, see docs/gpu.md). A timed row names device, versions and benchmark here.
"""

from __future__ import annotations

from dataclasses import dataclass

# the pixels of an image are padded to this in the backward; a power of two that every row's `pixels` divides
PAD = 64
# DP, the padded width of ψ -> channels of a chunk, the same in every kernel because W is split once for all of them; a
# tile of W's halves is DP times as large
CHUNKS = {16: 64, 32: 64, 64: 64, 128: 32, 256: 32}


@dataclass(frozen=True)
class Launch:
    """pixels of a tile (forward: windows, of which one pixel each is in the tile), warps per program, stages of the copy
    pipeline."""

    pixels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Case:
    """What a launch depends on. DP: padded width of ψ; narrow: C ≤ 4, multiplied without the matrix units."""

    kind: str
    arch: int
    DP: int
    narrow: bool
    statistics: bool
    channels_last: bool


@dataclass(frozen=True)
class Row:
    """A launch and the cases it serves; None: any."""

    launch: Launch
    kind: str
    narrow: bool
    DP: int = 256
    archs: tuple[int, ...] | None = None
    statistics: bool | None = None
    channels_last: bool | None = None

    def serves(self, case: Case) -> bool:
        return (
            self.kind == case.kind
            and self.narrow == case.narrow
            and case.DP <= self.DP
            and (self.archs is None or case.arch in self.archs)
            and self.statistics in (None, case.statistics)
            and self.channels_last in (None, case.channels_last)
        )


# the parts whose matrix units take 64 rows (the channels of ψ) from shared memory; on the others a wide tile of pixels
# would not fit the registers
BLACKWELL = (100, 103)
WARP_GROUPS = (90, *BLACKWELL)
# 99 KiB of shared memory: one program in place of two
SMALL_SHARED = (86, 89, 120, 121)

ROWS: tuple[Row, ...] = (
    Row(Launch(16, 4, 1), "forward", True, DP=64),
    Row(Launch(16, 8, 1), "forward", True),
    Row(Launch(32, 4, 3), "forward", False, 64, WARP_GROUPS, statistics=False, channels_last=True),
    Row(Launch(16, 4, 2), "forward", False, 64, BLACKWELL, channels_last=False),
    Row(Launch(16, 4, 3), "forward", False, 64),
    Row(Launch(16, 8, 2), "forward", False),
    Row(Launch(8, 4, 1), "backward", True, DP=64),
    Row(Launch(16, 8, 1), "backward", True),
    Row(Launch(32, 4, 3), "pixel_gradient", False, 64, WARP_GROUPS, channels_last=True),
    Row(Launch(16, 4, 3), "pixel_gradient", False, DP=64),
    Row(Launch(16, 8, 2), "pixel_gradient", False),
    Row(Launch(PAD, 4, 2), "feature_gradient", False, DP=64),
    Row(Launch(32, 8, 1), "feature_gradient", False, 128),
    Row(Launch(16, 8, 1), "feature_gradient", False),
    Row(Launch(PAD, 8, 2), "weight_gradient", False, 64, SMALL_SHARED),
    Row(Launch(PAD, 4, 2), "weight_gradient", False, 64),
    Row(Launch(PAD, 8, 1), "weight_gradient", False),
)


def select(case: Case) -> Launch:
    """The launch of the first row that serves `case`."""
    return next(row.launch for row in ROWS if row.serves(case))
