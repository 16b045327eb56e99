"""Rows as text for a terminal, and the units in which numbers are read."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cases import Case
from benchmarks.cost import Machine, dense_flop, floor_seconds, on_unit
from benchmarks.models import PARTS
from benchmarks.peers import CONTENDERS
from benchmarks.projection import TITLES
from benchmarks.steady_state import TITLES as SOLVERS
from benchmarks.tasks import IMPRECISE, MEASURED, TIMED, Row

ARROWS = {"forward": "forward", "forward+backward": "forward + backward", "": ""}
# questions whose rows are cascades, which the cost model knows
CASCADES = ("cascade", "replay", "walk", "wide", "scaling", "smoke")


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


def title_of(contender: str) -> str:
    """A contender's name for people: a peer, a part of Table 4, or who runs Ψ (in which layout)."""
    stem, _, layout = contender.partition("/")
    title = (
        CONTENDERS[stem].title if stem in CONTENDERS else PARTS.get(stem) or TITLES.get(stem) or SOLVERS.get(stem, stem)
    )
    return f"{title}, {layout}" if layout else title


def fastest(rows: Sequence[Row]) -> dict[str, Row]:
    """One row per contender: who ran in several memory layouts ("ours/contiguous") counts in the best of them."""
    best: dict[str, Row] = {}
    for row in rows:
        stem = row.contender.split("/")[0]
        if stem not in best or _amount(row) < _amount(best[stem]):
            best[stem] = row
    return best


def _amount(row: Row) -> float:
    if row.status not in TIMED:
        return float("inf")
    return row.memory if row.memory is not None else row.median or 0.0


def best_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest of the others."""
    # the parts of a network stand beside ours in Table 4, but do something else
    away = {"ours", "stored", *PARTS}
    found = fastest(rows)
    others = [row for name, row in found.items() if name not in away and row.status == MEASURED and row.median]
    return min(others, key=lambda row: row.median or 0.0, default=None)


def ratio(rows: Sequence[Row]) -> float | None:
    """How many times faster ours is than the fastest peer; below one it is slower."""
    ours, peer = fastest(rows).get("ours"), best_peer(rows)
    return peer.median / ours.median if ours and peer and ours.median and peer.median else None


def efficiency(row: Row, machine: Machine | None) -> tuple[float, float] | None:
    """The machine's peak (in dense FLOP) and the floor, as fractions of the time of a cascade. The peak of a CPU is that
    of fp32 for fp32 fields, that of its matrix unit for bf16 ones; processors without one differ in how much faster they
    multiply 16 bits."""
    if machine is None or not row.median or row.question not in CASCADES:
        return None
    if machine.exp_per_s is None and row.dtype != "fp32":
        machine = on_unit(machine) if row.dtype == "bf16" else None
        if machine is None:
            return None
    case = Case(**row.case)
    dense, floor = dense_flop(case, row.direction) / machine.flop_per_s, floor_seconds(case, row.direction, machine)
    return dense / row.median, floor / row.median


def task(name: str, rows: Sequence[Row], machine: Machine | None = None) -> str:
    """One task: a heading and a line per contender."""
    faster, peer, first = ratio(rows), best_peer(rows), fastest(rows).get("ours")
    lines = [name]
    for row in rows:
        if row.status not in TIMED:
            what = f"{row.status}: {row.reason}"
        elif row.memory is not None:
            what = f"+{size(row.memory)}"
        else:
            what = f"{seconds(row.median):>9}  ({seconds(row.p20)} - {seconds(row.p80)}, {row.rounds} rounds)"
            what += "" if row.error is None else f"  error {row.error:.1e}"
            what += f"  IMPRECISE: {row.reason}" if row.status == IMPRECISE else ""
            if found := efficiency(row, machine):
                what += "  {:.0%} of peak, {:.0%} of the floor".format(*found)
        if row is first and faster is not None and peer is not None:
            what += f"  = {faster:.2f}x the best peer ({peer.title})"
        lines.append(f"  {row.title:<40} {what}")
    return "\n".join(lines)
