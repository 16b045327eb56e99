"""Reading results files: the newest measurement of every task, per kind of device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cost import Machine, cpu, h200
from benchmarks.questions import QUESTIONS
from benchmarks.tasks import NOT_MEASURED, Row, Task

FOLDER = Path(__file__).with_name("results")


@dataclass
class Results:
    """What is known of one kind of device, "cpu" or "gpu": the header of the newest file, rows by task and
    contender."""

    kind: str
    head: dict = field(default_factory=dict)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    folder: Path = FOLDER

    @property
    def machine(self) -> Machine | None:
        """Peak rates for roofline and floor, where they are known."""
        return machine_of(self.head) if self.head else None

    def of(self, task: Task) -> list[Row]:
        """One row per contender of the task; "not measured" where there is none."""
        missing = {name: task.row(name, name) for name in task.contenders}
        return [self.rows.get((str(task), name), row) for name, row in missing.items()]

    def tasks(self, question: str) -> list[Task]:
        return QUESTIONS[question]("cpu" if self.kind == "cpu" else "cuda")


def machine_of(head: Mapping[str, Any]) -> Machine | None:
    """The peak rates of the machine that a header describes, where they are known."""
    device = head["machine"]["device"]
    if device == "cpu":
        return cpu(head["machine"]["cpu"], head["peak"]["flop_per_s"])
    return h200() if is_h200(device) else None


def is_h200(device: str) -> bool:
    """Whether floors and predictions are those of this GPU, by its name. A GH200 is another chip."""
    return "H200" in device.split()


def entries_on_h200(stage: str, folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Entries of a stage's files (`benchmarks.gpu.stage`) in a folder and below that come from an H200, the newest last."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob(f"{stage}.json")]
    for file in sorted(files, key=lambda file: file["date"]):
        if is_h200(file["machine"]["device"]):
            yield from file["entries"]


def kind_of(head: Mapping[str, Any]) -> str:
    return "cpu" if head["machine"]["device"] == "cpu" else "gpu"


def load(folder: Path = FOLDER) -> dict[str, Results]:
    """All results files in a folder and below, later measurements over earlier ones; of the GPUs only the one measured
    last. A kind of device without a file is empty. Its commit names those of all files that it holds rows of; its peak is
    the highest seen, because the clock wanders."""
    commits: dict[str, dict[tuple[str, str], str]] = {"cpu": {}, "gpu": {}}
    found = {kind: Results(kind, folder=folder) for kind in ("cpu", "gpu")}
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]
    files = [file for file in files if isinstance(file, dict) and file.get("schema") == 1]
    files.sort(key=lambda file: file["date"])
    newest = {kind_of(file): file["machine"]["device"] for file in files}
    for file in files:
        if file["machine"]["device"] != newest[kind_of(file)]:
            continue
        results = found[kind_of(file)]
        peaks = [head["peak"] for head in (results.head, file) if head.get("peak")]
        results.head = {key: value for key, value in file.items() if key != "rows"}
        if peaks:
            results.head["peak"] = max(peaks, key=lambda peak: peak["flop_per_s"])
        for facts in file["rows"]:
            row = Row(**facts)
            if row.status != NOT_MEASURED or (row.task, row.contender) not in results.rows:
                results.rows[row.task, row.contender] = row
                commits[results.kind][row.task, row.contender] = file["commit"]
    for kind, results in found.items():
        if results.head:
            results.head["commit"] = ", ".join(dict.fromkeys(commits[kind].values()))
    return found
