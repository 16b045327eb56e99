"""What a measurement is: a task puts contenders side by side on one problem and gives one row for each.

A row is plain data, goes into the results file as it is, and always exists: a contender that cannot take a task has a
row with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch

from benchmarks.cases import Case
from benchmarks.clock import Call, alternate
from benchmarks.correctness import Verdict

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MEASURED, UNAVAILABLE, FAILED, NOT_MEASURED = "measured", "unavailable", "failed", "not measured"


@dataclass
class Row:
    """One contender in one task. Times in seconds per call; `memory` in bytes; `error` relative to the largest
    value."""

    question: str
    task: str
    contender: str
    title: str
    case: dict[str, object] = field(default_factory=dict)
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

    def as_dict(self) -> dict[str, object]:
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

    def row(self, contender: str, title: str, **facts: object) -> Row:
        sizes = {name: getattr(self.case, name) for name in ("name", "batch", "nodes", "embed", "classes", "walks")}
        return Row(
            self.question,
            str(self),
            contender,
            title,
            sizes,
            self.kind,
            self.dtype,
            self.direction,
            **facts,
        )

    def measure(self, device: str) -> list[Row]:
        raise NotImplementedError


def contest(
    task: Task,
    entrants: Mapping[str, Entrant],
    device: str,
    *,
    per_call: int = 1,
    rounds: tuple[int, int] = (3, 200),
) -> list[Row]:
    """Check every entrant, then time the checked ones alternately. per_call: how often one timed call does the work."""
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    verdicts: dict[str, Verdict | None] = {}
    for name, entrant in entrants.items():
        if entrant.why_not:
            rows[name] = task.row(name, entrant.title, status=UNAVAILABLE, reason=entrant.why_not)
            continue
        try:
            call, verdict = entrant.prepare()
        except Exception as error:  # a peer may fail in any way; ours may not fail at all
            status = FAILED if name == "ours" else UNAVAILABLE
            rows[name] = task.row(name, entrant.title, status=status, reason=_first_line(error))
            continue
        finally:
            gc.collect()
        if verdict is not None and not verdict.passed:
            told = f"{verdict.worst}: error {verdict.error:.2g} exceeds {verdict.bound:.2g}"
            rows[name] = task.row(
                name, entrant.title, status=FAILED, reason=told, error=verdict.error, bound=verdict.bound
            )
            continue
        calls[name], verdicts[name] = call, verdict
    for name, timing in alternate(calls, seconds=task.seconds, device=device, rounds=rounds).items():
        verdict = verdicts[name]
        rows[name] = task.row(
            name,
            entrants[name].title,
            status=MEASURED,
            median=timing.median / per_call,
            p20=timing.quantile(0.2) / per_call,
            p80=timing.quantile(0.8) / per_call,
            rounds=len(timing.samples),
            samples=tuple(sample / per_call for sample in timing.samples),
            error=verdict.error if verdict else None,
            bound=verdict.bound if verdict else None,
        )
    return [rows[name] for name in entrants]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
