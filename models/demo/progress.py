"""One progress line per step: what runs now, then how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Numbers the steps of a part: `with progress("features"): ...` prints "[2/5] features ... 0.3 s".

    lines_follow: the step shows a bar of its own, so the time goes to a line of its own.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    @contextmanager
    def __call__(self, what: str, lines_follow: bool = False) -> Iterator[None]:
        self.done += 1
        number = f"[{self.done}/{self.steps}]"
        print(f"{number} {what} ...", end="\n" if lines_follow else "", flush=True)
        start = time.perf_counter()
        yield
        took = f"{time.perf_counter() - start:.1f} s"
        print(f"{' ' * len(number)} {took}" if lines_follow else f" {took}", flush=True)
