"""Launch rows: tile sizes as data. The first row of a table that serves a case is taken, and the last of each kernel
serves every case. The tables: `walk/rows.py`, `projection/rows.py`.

No row has been timed yet: they were chosen from the compiled binaries (registers, spills, shared memory, matrix
instructions, see docs/gpu.md). A timed row names device, versions and benchmark.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LOG = logging.getLogger(__name__)

# A family begins with its first architecture and has those up to the next family, so that a newer card takes the rows of
# the nearest older one. Hopper multiplies from shared memory by warp groups (64 rows); Blackwell's data-centre parts
# accumulate in tensor memory; the others hold every operand in registers and want small tiles. Ada and consumer cards
# have 99 KiB of shared memory.
AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER = 80, 86, 90, 100, 120
FAMILIES = (AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER)
KNOWN = frozenset({80, 86, 87, 89, 90, 100, 103, 110, 120, 121})
_told: set[int] = set()  # the unknown architectures that were logged


def family_of(arch: int) -> int:
    """The family of an architecture; 0 for no card, which takes the rows that run everywhere."""
    family = max((first for first in FAMILIES if first <= arch), default=0)
    if arch and arch not in KNOWN and arch not in _told:
        _told.add(arch)
        LOG.debug("sm_%d is newer than these launch rows: it takes those of sm_%d", arch, family)
    return family


@dataclass(frozen=True)
class Launch:
    """A tile of rows and columns, warps per program, stages of the copy pipeline.

    Walks: rows I and columns J, both nodes. Ψ: the rows are all channels of ψ (0), the columns pixels.
    in_registers: the last step of a walk's rows fits the registers beside the sums.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    in_registers: bool = True

    @property
    def pad(self) -> int:
        """Nodes are padded to a multiple of this, so that neither rows nor columns need a mask."""
        return max(self.rows, self.cols)


@dataclass(frozen=True)
class Case:
    """What a launch depends on: the kernel, the architecture, and sizes or flags by name."""

    kernel: str
    arch: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """A launch and the cases it serves: this kernel, these families (None: any), sizes from `least` to `most`."""

    kernel: str
    launch: Launch
    families: tuple[int, ...] | None = None
    most: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)

    def serves(self, case: Case) -> bool:
        return (
            self.kernel == case.kernel
            and (self.families is None or family_of(case.arch) in self.families)
            and all(case.sizes[name] <= size for name, size in self.most.items())
            and all(case.sizes[name] >= size for name, size in self.least.items())
        )


def first(rows: Sequence[Row], case: Case) -> Launch:
    """The launch of the first row that serves `case`."""
    return next(row.launch for row in rows if row.serves(case))
