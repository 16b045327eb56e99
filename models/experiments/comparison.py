"""Table 1 from run folders: which runs are one row, what tells rows apart, and what may not be averaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import checkpoints
from models.training.run_folder import RunFolder

BOOK_KEEPING = ("save_every", "keep", "follow_links")  # they leave a result as it is
MACHINE = ("device", "backend", "instruction_set", "torch", "difnet_kernels")


@dataclass(frozen=True)
class Run:
    """A finished or stopped run: what was asked, on which data and machine, and how it scored."""

    path: Path
    model: str
    options: dict[str, Any]
    seed: int
    facts: dict[str, Any]  # everything else that was asked, and the data
    machine: dict[str, Any]
    scores: list[float]  # of validated epochs
    epochs: int
    num_classes: int


def read_run(path: str | Path) -> Run:
    """ValueError for a run without a validated epoch."""
    folder = RunFolder(path)
    asked = folder.read_config().to_dict()
    rows = [row for row in folder.read_metrics() if row.get("mean_iou") is not None]
    if not rows:
        raise ValueError(f"{folder.path} has no validated epoch yet.")
    known = checkpoints.load_header(folder.last) if folder.last.exists() else None
    data = {**known.data, "classes": known.classes} if known else {}
    facts = {**asked, **{f"recipe {key}": value for key, value in asked["recipe"].items()}, **data}
    for key in ("model", "options", "seed", "recipe", *BOOK_KEEPING):
        facts.pop(key, None)
    return Run(
        folder.path, asked["model"], asked["options"], asked["seed"], facts,
        {key: known.environment[key] for key in MACHINE if known and key in known.environment},
        [row["mean_iou"] for row in rows], rows[-1]["epoch"], len(rows[-1]["per_class_iou"]),
    )  # fmt: skip


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone. ValueError for two with the same seed: that is one run counted twice."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.model, run.options, run.facts, run.num_classes], sort_keys=True)
        twin = next((other for other in groups.get(key, []) if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(
                f"{twin.path} and {run.path} have one configuration and one seed, {run.seed}: that is one run counted "
                "twice. Leave one of them out."
            )
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def remarks(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What rows differ in besides the network, and what the runs of one row differ in besides the seed: a line each."""
    found = []
    for key in sorted({key for group in groups for key in group[0].facts}):
        values = [_shown(group[0].facts.get(key)) for group in groups]
        if len(set(values)) > 1:
            told = ", ".join(f"row {row} {value}" for row, value in enumerate(values, start=1))
            found.append(f"Rows differ in {key.replace('_', ' ')}: {told}.")
    for row, group in enumerate(groups, start=1):
        for key in MACHINE:
            values = sorted({_shown(run.machine[key]) for run in group if key in run.machine})
            if len(values) > 1:
                found.append(f"Row {row} averages runs of different {key.replace('_', ' ')}: {', '.join(values)}.")
    return found


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
