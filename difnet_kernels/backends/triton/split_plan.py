"""How many parts the columns of a walk are cut into, so that a small batch fills the card. A model, never a timing.

A walk has `tiles` row tiles; `slots` programs run at once. With p parts the card needs ceil(tiles·p / slots) rounds,
each of ceil(columns / p) column tiles plus the fixed cost of a program, and p > 1 pays for writing and adding the
parts.
"""

from __future__ import annotations

import math

# in units of one column tile: entering and leaving a program, the combining launch, and its traffic per part and wave
# of rows
START, COMBINE, PART = 3.0, 6.0, 0.25
MAX_SPLITS = 16
PROGRAMS_PER_SM = 2


def splits(tiles: int, columns: int, processors: int) -> tuple[int, int]:
    """(parts, column tiles per part) with the least modelled time, the fewest parts of equals; no part is empty.

    tiles: row tiles over the whole batch; columns: column tiles per row tile; processors: SMs (0: no card, one part).
    """
    if processors == 0:
        return 1, columns
    slots = processors * PROGRAMS_PER_SM

    def cost(parts: int) -> float:
        work = math.ceil(tiles * parts / slots) * (math.ceil(columns / parts) + START)
        return work if parts == 1 else work + COMBINE + PART * parts * max(1.0, tiles / slots)

    per_part = math.ceil(columns / min(range(1, min(MAX_SPLITS, columns) + 1), key=cost))
    return math.ceil(columns / per_part), per_part
