"""The stage that times every kernel, with a profiler that says what it is told: what it writes is what the documents read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cascade, machine, predicted
from benchmarks.cases import Case
from benchmarks.gpu import kernels, ours
from benchmarks.results import FOLDER

SEEN = {"prepare_kernel": 1.0, "walk_forward_kernel": 50.0, "walk_forward_combine": 5.0, "walk_backward_kernel": 100.0}


def profiler(times: dict[str, float]) -> Callable[[Callable[[], object]], dict[str, dict[str, float]]]:
    return lambda call: {name: {"microseconds": taken, "launches": 1.0} for name, taken in times.items()}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, list[dict[str, Any]]]]:
    """The stage on few nodes and the reference."""

    def small(case: Case, kind: str, dtype: str, device: str) -> tuple[Any, Any]:
        return cascade.problem(case.but(nodes=12, batch=1, embed=8, walks=2), kind, dtype, "cpu")

    monkeypatch.setattr(machine, "describe", lambda device: {"device": "NVIDIA H200"})
    monkeypatch.setattr(ours, "BACKEND", "reference")
    monkeypatch.setattr(kernels, "problem", small)
    monkeypatch.setattr(kernels, "profiled", profiler(SEEN))
    monkeypatch.setattr(sys, "argv", ["kernels", "--out", str(tmp_path / "kernels.json")])

    def run() -> tuple[int, list[dict[str, Any]]]:
        status = kernels.main()
        return status, json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))["entries"]

    return run


def test_times_stand_beside_their_predictions(
    stage: Callable[[], tuple[int, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    """Every line of the table is measured, per walk of the five; what belongs to a walk is added up."""
    (tmp_path / predicted.WALK).write_bytes((FOLDER / predicted.WALK).read_bytes())
    status, entries = stage()
    assert status == 0 and all(entry["error"] <= entry["bound"] for entry in entries)
    assert entries[0]["walk_forward"]["fraction"] == entries[0]["walk_forward"]["h200_floor"] / 55
    table = predicted.walk(tmp_path)
    told = [line.split("|")[-2].strip() for line in table.splitlines() if "walk_" in line]
    assert set(told) == {"11.0", "20.0"}


def test_what_is_wrong_gets_no_time(
    stage: Callable[[], tuple[int, list[dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernels.calls

    def wrong(inputs: Any, precision: str) -> dict[str, Callable[[], Any]]:
        call = real(inputs, precision)["forward+backward"]
        return {"forward+backward": lambda: [x * 1.1 for x in call()]}

    monkeypatch.setattr(kernels, "calls", wrong)
    status, entries = stage()
    assert status == 1 and entries
    assert all("not timed" in entry["reason"] and "kernels" not in entry for entry in entries)


def test_a_kernel_that_nobody_saw_did_not_take_no_time(
    stage: Callable[[], tuple[int, list[dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "profiled", profiler({"walk_forward_kernel": 50.0}))
    status, entries = stage()
    assert status == 1 and all("saw no walk_backward" in entry["reason"] for entry in entries)
