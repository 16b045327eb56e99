"""What the stages share: their arguments, their results file, and how a GPU call is timed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.cases import CASES, Case
from benchmarks.clock import Call, Timing
from benchmarks.correctness import Verdict
from benchmarks.cost import BEST_FORMS, Widths, backward_cost, forward_cost, h200, pairs
from benchmarks.gpu_suite import LEFT_OUT

BACKEND = "triton"
NO_TIME = "not measured: no time left"


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--seconds", type=float, default=60.0, help="start nothing new after this time")
    return made


class Report:
    """A JSON file that is rewritten after every entry, so that a run cut short keeps what it has."""

    def __init__(self, path: Path, seconds: float = 1e9):
        self.path, self.entries = path, []  # type: ignore[var-annotated]
        self.end = time.monotonic() + seconds
        self.incomplete = False
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.head = {"date": date, "commit": machine.commit(), "machine": machine.describe("cuda")}

    @property
    def logs(self) -> Path:
        """A folder for what the processes of the stage say."""
        folder = self.path.with_name(f"{self.path.stem}_logs")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def time_is_up(self) -> bool:
        return time.monotonic() > self.end

    def add(self, **facts: object) -> None:
        self.entries.append(facts)
        print(" ".join(f"{key}={value}" for key, value in facts.items()), flush=True)
        self.write()

    def left_out(self, **facts: object) -> None:
        """An entry for what there was no time for."""
        self.incomplete = True
        self.add(**facts, reason=NO_TIME)

    def write(self, *, complete: bool = False) -> None:
        partial = self.path.with_name(self.path.name + ".part")
        text = json.dumps({**self.head, "complete": complete, "entries": self.entries}, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def done(self, failed: int = 0) -> int:
        """The exit status of the stage."""
        self.write(complete=not self.incomplete)
        return 1 if failed else LEFT_OUT if self.incomplete else 0


def in_turns(calls: Mapping[str, Call], *, rounds: int = 30, inner: int = 5) -> dict[str, dict[str, float]]:
    """Microseconds of every call, median, p20 and p80: `inner` calls between two events, in every round one contender
    after the other and back again in the next, so that a clock that changes does so for all. The small cases live in
    the L2 cache, as in use."""
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in calls if number % 2 == 0 else reversed(list(calls)):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(inner):
                calls[name]()
            end.record()
            end.synchronize()
            taken[name].append(begin.elapsed_time(end) * 1e3 / inner)
    timings = {name: Timing(tuple(samples)) for name, samples in taken.items()}
    return {
        name: {"median": timing.median, "p20": timing.quantile(0.2), "p80": timing.quantile(0.8)}
        for name, timing in timings.items()
    }


def microseconds(call: Call, *, rounds: int = 30, inner: int = 5) -> dict[str, float]:
    """One call alone."""
    return in_turns({"alone": call}, rounds=rounds, inner=inner)["alone"]


def must_pass(found: Verdict) -> None:
    """Raises where there is a time to be taken of something wrong."""
    if not found.passed:
        raise RuntimeError(f"not timed: {found.worst} is wrong by {found.error:.2g}, more than {found.bound:.2g}")


def floors(case: Case) -> tuple[float, float]:
    """(forward, backward) microseconds of the whole cascade on an H200, with 16-bit products."""
    chip = h200()
    widths = Widths.of(case, chip)
    forward, backward = BEST_FORMS["gpu"]
    count = pairs(case)
    return (
        1e6 * count * forward_cost(widths, forward).seconds(chip),
        1e6 * count * backward_cost(widths, backward).seconds(chip),
    )


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def named(names: Sequence[str]) -> list[Case]:
    return [CASES[name] for name in names]
