"""Timing of contenders in turns: one call of each in every round, so that a machine that slows down slows all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.device import Device, device

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of `samples` and their 20th and 80th percentile."""

    samples: tuple[float, ...]

    def quantile(self, q: float) -> float:
        ordered = sorted(self.samples)
        place = q * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    @property
    def median(self) -> float:
        return self.quantile(0.5)


def alternate(
    calls: Mapping[str, Call], *, seconds: float, on: Device | None = None, rounds: tuple[int, int] = (3, 200)
) -> dict[str, Timing]:
    """Time all calls in turn, in `rounds` (least, most) rounds and about `seconds` in all.

    Every round runs each contender once, in the opposite order of the round before. A slow contender leaves after the
    least number of rounds once its share of the time is spent; the others go on. One call that takes as long as all of
    the time ends its contender's part after two.
    """
    clock = (on or device("cpu")).seconds
    least, most = rounds
    share = seconds / max(len(calls), 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for number in range(most):
        going = [
            name
            for name in calls
            if spent[name] < share or number < (least if spent[name] < number * seconds else min(least, 2))
        ]
        if not going:
            break
        for name in going if number % 2 == 0 else reversed(going):
            taken = clock(calls[name])
            samples[name].append(taken)
            spent[name] += taken
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def in_a_row(call: Call, times: int) -> Call:
    """`times` calls as one, for calls too short to be timed alone; divide the result by `times`."""

    def run() -> None:
        for _ in range(times):
            call()

    return run
