"""What a measurement is: a task puts contenders side by side on one problem and gives one row for each.

A row is plain data and goes into the results file as it is. A contender that cannot take a task has a row with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.clock import Call, alternate
from benchmarks.device import Device
from benchmarks.truth import Verdict

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MEASURED, UNAVAILABLE, FAILED, NOT_MEASURED = "measured", "unavailable", "failed", "not measured"
# on a GPU, whose time is scarce, a result within so many times its bound keeps its time, and the row says IMPRECISE
IMPRECISE, STILL_TIMED = "imprecise", 20
TIMED = (MEASURED, IMPRECISE)


@dataclass
class Row:
    """One contender in one task. Times in seconds per call; `memory` in bytes; `error` relative to the largest
    value."""

    question: str
    task: str
    contender: str
    title: str
    case: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    dtype: str = ""
    direction: str = ""
    status: str = NOT_MEASURED
    reason: str = ""
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    rounds: int = 0
    error: float | None = None
    bound: float | None = None
    memory: int | None = None
    samples: tuple[float, ...] = ()  # of this run; a results file keeps their quantiles

    def as_dict(self) -> dict[str, Any]:
        facts = asdict(self)
        del facts["samples"]
        return facts


@dataclass(frozen=True)
class Entrant:
    """A contender in one task: a reason to stay away, or how to get a checked, warm call.

    prepare runs the contender once, compares it with the truth, and returns the call to time with the verdict (None
    where there is nothing to compare).
    """

    title: str
    why_not: str | None
    prepare: Callable[[], tuple[Call, Verdict | None]]


@dataclass(frozen=True)
class Task:
    """Base of all tasks: `measure` gives one row per contender."""

    question: str
    case: Case
    direction: str = "forward"
    kind: str = "smooth"
    dtype: str = "fp32"
    contenders: tuple[str, ...] = ("ours",)
    seconds: float = 2.0
    turn: int = 0  # a run that is out of time leaves out the tasks of the last turns

    def __str__(self) -> str:
        sizes = f"B{self.case.batch}-N{self.case.nodes}-D{self.case.embed}-K{self.case.classes}-T{self.case.walks}"
        direction = self.direction.replace("+", "-")
        return "-".join(x for x in (self.question, self.case.name, sizes, self.kind, self.dtype, direction) if x)

    def row(self, contender: str, title: str, **facts: Any) -> Row:
        sizes = {name: getattr(self.case, name) for name in ("name", "batch", "nodes", "embed", "classes", "walks")}
        about = (self.question, str(self), contender, title, sizes, self.kind, self.dtype, self.direction)
        return Row(*about, **facts)

    def measure(self, on: Device) -> list[Row]:
        raise NotImplementedError

    def title_of(self, name: str) -> str:
        """What a contender is called."""
        raise NotImplementedError

    def why_not(self, name: str, on: Device) -> str | None:
        """The reason that a contender cannot take the task, or None."""
        raise NotImplementedError

    def growing(self, name: str, on: Device) -> tuple[Call, Call]:
        """A small call of a contender that loads all code, and the call whose memory counts."""
        raise NotImplementedError


def contest(
    task: Task,
    entrants: Mapping[str, Entrant],
    on: Device,
    *,
    per_call: int = 1,
    rounds: tuple[int, int] = (3, 200),
) -> list[Row]:
    """Check every entrant, then time the checked ones alternately. per_call: how often one timed call does the work."""
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, entrant in entrants.items():
        status, reason, verdict = UNAVAILABLE, entrant.why_not or "", None
        if not reason:
            try:
                call, verdict = entrant.prepare()
            except Exception as error:
                reason, status = first_line(error), failure_of(name)
            gc.collect()
        judged = {"error": verdict.error, "bound": verdict.bound} if verdict else {}
        if verdict and not verdict.passed:
            reason = verdict.told
            status = IMPRECISE if on.on_gpu and verdict.error <= STILL_TIMED * verdict.bound else FAILED
        if reason and status != IMPRECISE:
            rows[name] = task.row(name, entrant.title, status=status, reason=reason, **judged)
            continue
        calls[name] = call
        found[name] = {**judged, "status": IMPRECISE if reason else MEASURED, "reason": reason}
    for name, timing in alternate(calls, seconds=task.seconds, on=on, rounds=rounds).items():
        samples = tuple(sample / per_call for sample in timing.samples)
        times = {key: timing.quantile(q) / per_call for key, q in (("median", 0.5), ("p20", 0.2), ("p80", 0.8))}
        rows[name] = task.row(name, entrants[name].title, rounds=len(samples), samples=samples, **times, **found[name])
    return [rows[name] for name in entrants]


def failure_of(contender: str) -> str:
    """A peer may fail in any way; ours may not fail at all."""
    return FAILED if contender.split("/")[0] == "ours" else UNAVAILABLE


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
