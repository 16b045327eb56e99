"""Plans that a test chooses itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from difnet_kernels.backends.triton.split import Split


def in_parts(most: int, *, all_parts: bool = False) -> Callable[..., Split]:
    """A plan of so many parts, whatever the card."""

    def plan(batch: int, row_tiles: int, columns: int, processors: int, *, in_registers: bool) -> Split:
        part_tiles = math.ceil(columns / min(most, columns))
        return Split(math.ceil(columns / part_tiles), part_tiles, in_registers and all_parts)

    return plan
