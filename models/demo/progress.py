"""One progress line per step: what runs now, then how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Numbers the steps of a part: `with progress("features"): ...` prints "[2/5] features ... 0.3 s"."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.done += 1
        print(f"[{self.done}/{self.steps}] {what} ...", end="", flush=True)
        start = time.perf_counter()
        yield
        print(f" {time.perf_counter() - start:.1f} s", flush=True)
