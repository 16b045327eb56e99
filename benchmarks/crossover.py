"""From how many nodes on is ours faster? Read off the sweep over N."""

from __future__ import annotations

import math

from benchmarks.results import Results
from benchmarks.tasks import MEASURED


def times_by_nodes(results: Results, direction: str) -> dict[str, dict[int, float]]:
    """Seconds of one walk by contender and N."""
    times: dict[str, dict[int, float]] = {}
    for task in results.tasks("scaling"):
        if task.case.name == "sweep_nodes" and task.direction == direction:
            for row in results.of(task):
                if row.status == MEASURED and row.median:
                    times.setdefault(row.contender, {})[task.case.nodes] = row.median
    return times


def crossing(ours: dict[int, float], peer: dict[int, float]) -> str | None:
    """Where ours overtakes a peer for good, between two measured N on a straight line through the logarithms; None
    without a measurement."""
    nodes = sorted(ours.keys() & peer.keys())
    if not nodes:
        return None
    ahead = [math.log(peer[n] / ours[n]) for n in nodes]  # positive where ours is faster
    behind = [place for place, value in enumerate(ahead) if value <= 0]
    if not behind:
        return f"at every N, {nodes[0]} to {nodes[-1]}"
    last = behind[-1]
    if last == len(nodes) - 1:
        return f"nowhere up to N = {nodes[-1]}"
    way = ahead[last] / (ahead[last] - ahead[last + 1])
    place = nodes[last] * (nodes[last + 1] / nodes[last]) ** way
    return f"from N ≈ {float(f'{place:.2g}'):.0f}"
