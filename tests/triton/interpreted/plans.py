"""Plans that a test chooses itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from difnet_kernels.backends.triton.split_plan import Split


def in_parts(most: int, *, together: bool = False) -> Callable[..., Split]:
    """A plan of so many parts, whatever the card."""

    def plan(batch: int, row_tiles: int, columns: int, processors: int, *, in_registers: bool) -> Split:
        part_tiles = math.ceil(columns / min(most, columns))
        return Split(math.ceil(columns / part_tiles), part_tiles, in_registers and together)

    return plan
