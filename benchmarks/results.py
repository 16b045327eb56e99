"""Reading results files: one for each kind of processor (cpu_*.json) and for each card (gpu_*.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cost import Machine, hopper
from benchmarks.questions import QUESTIONS
from benchmarks.tasks import FAILED, TIMED, Row, Task

FOLDER = Path(__file__).with_name("results")
SCHEMA = 2


@dataclass
class Results:
    """What one machine has measured: the header of its file, rows by task and contender, and for a card the entries of
    the suite's other stages."""

    name: str
    head: dict[str, Any]
    rows: dict[tuple[str, str], Row]
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.head["machine"]["device"] != "cpu"

    @property
    def machine(self) -> Machine | None:
        """Peak rates for roofline and floor, where they are known."""
        return machine_of(self.head)

    @property
    def title(self) -> str:
        facts = self.head["machine"]
        return facts["device"] if self.on_gpu else f"{facts['cpu']}, {facts['simd']}"

    def of(self, task: Task) -> list[Row]:
        """One row per contender of the task; "not measured" where there is none."""
        missing = {name: task.row(name, name) for name in task.contenders}
        return [self.rows.get((str(task), name), row) for name, row in missing.items()]

    def tasks(self, question: str) -> list[Task]:
        """The tasks of a question that have been measured, at least in part."""
        seen = {row.task for row in self.rows.values() if row.status in (*TIMED, FAILED)}
        return [task for task in QUESTIONS[question](self.on_gpu) if str(task) in seen]


def machine_of(head: Mapping[str, Any]) -> Machine | None:
    """The peak rates of the machine that a header describes, where they are known."""
    facts = head["machine"]
    if facts["device"] == "cpu":
        unit = (head.get("unit_peak") or {}).get("flop_per_s")
        return Machine(facts["cpu"], head["peak"]["flop_per_s"], unit_flop_per_s=unit) if head["peak"] else None
    return hopper(facts["device"], facts["multiprocessors"]) if facts.get("arch") == "sm_90" else None


def read(path: Path) -> Results | None:
    """A results file, or None if the file is something else."""
    file = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(file, dict) or file.get("schema") != SCHEMA:
        return None
    rows = [Row(**facts) for facts in file.pop("rows")]
    found = {(row.task, row.contender): row for row in rows if row.status in TIMED or row.reason}
    return Results(path.stem, file, found, file.pop("entries", []))


def load(folder: Path = FOLDER) -> list[Results]:
    """Every results file of a folder, in the order of their names."""
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    return [results for results in found if results is not None]
