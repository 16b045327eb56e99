"""How the columns of a walk are cut into parts, and who adds them. A model, never a timing.

Every part is summed from zero, and the parts are added in their order. Their number follows from the image and the card
alone, so an image has the same bits alone and in any batch; it is what fills the card with one image. A batch that fills
the card by itself gives all parts of a row tile to one program, which adds them in registers where those suffice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

# in units of one column tile: entering and leaving a program, refilling the copy pipeline at the next part, adding the
# parts at the end, and their traffic per part and wave of rows
START, REFILL, COMBINE, PART = 3.0, 0.5, 6.0, 0.25
MAX_PARTS = 16
LEAST_TILES = 8  # of a part: what a full card loses to the parts stays a sixteenth where one program has them all
PROGRAMS_PER_SM = 2


@dataclass(frozen=True)
class Split:
    """`parts` of `part_tiles` column tiles, the last may be shorter; all parts of a row tile in one program, or a program
    each."""

    parts: int
    part_tiles: int
    all_parts: bool


@lru_cache(maxsize=1024)
def split_columns(batch: int, row_tiles: int, columns: int, processors: int, *, in_registers: bool) -> Split:
    """The plan with the least modelled time. row_tiles, columns: of one image; processors: SMs (0: no card, one part);
    in_registers: one program can add the parts of its rows."""
    slots = max(1, processors * PROGRAMS_PER_SM)

    def apart(tiles: int, parts: int) -> float:
        work = math.ceil(tiles * parts / slots) * (math.ceil(columns / parts) + START)
        return work + (COMBINE + PART * parts * max(1.0, tiles / slots) if parts > 1 else 0.0)

    def together(tiles: int, parts: int) -> float:
        return math.ceil(tiles / slots) * (columns + REFILL * (parts - 1) + START)

    most = 1 if processors == 0 else max(1, min(MAX_PARTS, columns // LEAST_TILES))
    part_tiles = math.ceil(columns / min(range(1, most + 1), key=lambda parts: apart(row_tiles, parts)))
    parts, tiles = math.ceil(columns / part_tiles), batch * row_tiles
    return Split(parts, part_tiles, in_registers and together(tiles, parts) <= apart(tiles, parts))
