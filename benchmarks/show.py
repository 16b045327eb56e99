"""Rows as text for a terminal, and the units in which numbers are read."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.table4 import PARTS
from benchmarks.tasks import MEASURED, Row


def seconds(value: float | None) -> str:
    """Three significant digits in the unit that suits."""
    if value is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{value * 1e9:.0f} ns"


def size(value: int | None) -> str:
    if value is None:
        return ""
    mebi = value / 2**20
    return f"{mebi / 1024:.2f} GiB" if mebi >= 1024 else f"{_three(mebi)} MiB"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def best_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest of the others."""
    # the parts of a network stand beside ours in Table 4, but do something else
    away = {"ours", *PARTS}
    others = [row for row in rows if row.contender not in away and row.status == MEASURED and row.median]
    return min(others, key=lambda row: row.median or 0.0, default=None)


def ratio(rows: Sequence[Row]) -> float | None:
    """How many times faster ours is than the fastest peer; below one it is slower."""
    ours = next((row for row in rows if row.contender == "ours" and row.status == MEASURED), None)
    peer = best_peer(rows)
    return peer.median / ours.median if ours and peer and ours.median and peer.median else None


def task(name: str, rows: Sequence[Row]) -> str:
    """One task: a heading and a line per contender."""
    lines = [f"\n{name}"]
    faster = ratio(rows)
    peer = best_peer(rows)
    for row in rows:
        if row.status != MEASURED:
            what = f"{row.status}: {row.reason}"
        elif row.memory is not None:
            what = f"+{size(row.memory)}"
        else:
            what = f"{seconds(row.median):>9}  ({seconds(row.p20)} - {seconds(row.p80)}, {row.rounds} rounds)"
            if row.error is not None:
                what += f"  error {row.error:.1e}"
        if row.contender == "ours" and faster is not None and peer is not None:
            what += f"  = {faster:.2f}x the best peer ({peer.title})"
        lines.append(f"  {row.title:<38} {what}")
    return "\n".join(lines)
