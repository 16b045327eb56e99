"""Which of several results of GPUs the documents show: the newest, of one card, and an H200's where one is promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import predicted, record, results
from benchmarks.questions import all_tasks
from benchmarks.results import entries_on_h200, is_h200, load
from benchmarks.tables import all_tables
from benchmarks.tasks import MEASURED, NOT_MEASURED, Row

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
JANUARY, FEBRUARY, MARCH = (f"2026-0{month}-01T00:00:00Z" for month in (1, 2, 3))


def stage_file(path: Path, date: str, device: str, *entries: dict[str, Any]) -> None:
    """As benchmarks.gpu.stage.Report writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"date": date, "commit": "abc", "machine": {"device": device}, "complete": True}
    path.write_text(json.dumps({**head, "entries": entries}), encoding="utf-8")


def kernels(microseconds: float, **more: object) -> dict[str, Any]:
    return {
        "case": "eval505",
        "dtype": "bf16",
        "precision": "high",
        "walk_forward": {"microseconds": microseconds},
        **more,
    }


def level(median: float, **changes: object) -> dict[str, Any]:
    asked = {"side": 505, "dtype": "bf16", "level": "2048 x 64²", "channels_last": True, "training": False, **changes}
    return {**asked, "microseconds": {"median": median}}


def head(date: str, device: str, commit: str) -> dict[str, Any]:
    machine = {"device": device, "torch": "2.99"}
    return {"schema": 1, "date": date, "commit": commit, "backend": "triton", "peak": None, "machine": machine}


def rows(seconds: float, *questions: str, contender: str | None = None, status: str = MEASURED) -> list[Row]:
    taken = {"median": seconds, "p20": seconds, "p80": seconds} if status == MEASURED else {}
    return [
        task.row(name, name, status=status, **taken)
        for task in all_tasks("cuda", questions)
        for name in task.contenders
        if contender in (None, name)
    ]


def cells(table: str, *starts: str) -> list[str]:
    line = next(line for line in table.splitlines() if all(start in line for start in starts))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for name in (predicted.WALK, predicted.PSI):
        (tmp_path / name).write_bytes((results.FOLDER / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("device", "is_one"),
    [(H200, True), ("NVIDIA H200 NVL", True), (H100, False), ("NVIDIA GH200 480GB", False), ("cpu", False)],
)
def test_an_h200_is_known_by_its_name(device: str, is_one: bool) -> None:
    assert is_h200(device) is is_one


@pytest.mark.parametrize("folders", [("a", "b"), ("b", "a")])
def test_entries_come_in_the_order_of_their_dates(folders: tuple[str, str], tmp_path: Path) -> None:
    """Whatever the folders are called, and from an H200 alone."""
    for folder, date in zip(folders, (MARCH, JANUARY), strict=True):
        stage_file(tmp_path / folder / "kernels.json", date, H200, {"from": date})
    stage_file(tmp_path / "kernels.json", FEBRUARY, H100, {"from": "another card"})
    stage_file(tmp_path / "psi.json", FEBRUARY, H200, {"from": "another stage"})
    assert [entry["from"] for entry in entries_on_h200("kernels", tmp_path)] == [JANUARY, MARCH]


def test_the_newest_kernel_time_stands_beside_its_prediction(predictions: Path) -> None:
    """Of one walk; a later file that has nothing, or comes from another card, takes nothing away."""
    stage_file(predictions / "z" / "kernels.json", JANUARY, H200, kernels(100.0))
    stage_file(predictions / "a" / "kernels.json", FEBRUARY, H200, kernels(50.0))
    stage_file(predictions / "b" / "kernels.json", MARCH, H100, kernels(1.0))
    stage_file(
        predictions / "c" / "kernels.json", MARCH, H200, {**kernels(0.0), "walk_forward": {}, "reason": "no time"}
    )
    table = predicted.walk(predictions)
    assert cells(table, "eval505 |", "bf16 high", "walk_forward")[-1] == "10.0"
    assert cells(table, "eval505 |", "bf16 high", "walk_backward")[-1] == "not measured"
    assert cells(table, "eval505 |", "fp32 high", "walk_forward")[-1] == "not measured"


def test_levels_are_those_of_the_prediction(predictions: Path) -> None:
    """Evaluation, channels last: neither a training step nor another layout."""
    others = [level(1.0, training=True), level(2.0, channels_last=False), {**level(0), "microseconds": {"median": 3.0}}]
    stage_file(predictions / "psi.json", JANUARY, H200, level(9.5), level(40.0, level="all five"), *others[:2])
    stage_file(predictions / "later" / "psi.json", FEBRUARY, H100, others[2])
    table = predicted.psi(predictions)
    assert cells(table, "505²", "2048 x 64²", "bf16")[-1] == "9.5"
    assert cells(table, "505²", "all five", "bf16")[-1] == "40.0"
    assert cells(table, "321²", "all five", "bf16")[-1] == "not measured"


def test_the_card_measured_last_has_the_tables_to_itself(tmp_path: Path) -> None:
    record.write(tmp_path / "h100.json", head(JANUARY, H100, "old"), rows(0.001, "replay"), complete=True)
    record.write(tmp_path / "h200.json", head(FEBRUARY, H200, "new"), rows(0.002, "walk"), complete=True)
    tables = all_tables(load(tmp_path))
    assert "1.00 ms" not in tables["replay-gpu-bf16"]() and "2.00 ms" in tables["walk-gpu"]()
    assert H200 in tables["machine-gpu"]() and H100 not in tables["machine-gpu"]()


def test_of_every_row_the_newest_counts(tmp_path: Path) -> None:
    """One that was left out does not hide one that was measured; the commits of all that is shown are named."""
    record.write(tmp_path / "z.json", head(JANUARY, H200, "first"), rows(0.001, "replay"), complete=True)
    again = rows(0.004, "replay", contender="dense") + rows(0.0, "replay", contender="ours", status=NOT_MEASURED)
    record.write(tmp_path / "a.json", head(FEBRUARY, H200, "second"), again, complete=True)
    found = load(tmp_path)["gpu"]
    shown = {row.contender: row.median for row in found.of(found.tasks("replay")[0])}
    assert (shown["ours"], shown["dense"], shown["sdpa_flash"]) == (0.001, 0.004, 0.001)
    assert found.head["commit"] == "first, second"


def measured_replays(folder: Path, device: str) -> dict[str, Any]:
    """Ours in 60 µs, everyone else in 240 or 120."""
    found = rows(60e-6, "replay", contender="ours") + rows(240e-6, "replay", contender="dense")
    found += rows(120e-6, "replay", contender="sdpa_cudnn")
    record.write(folder / "graphs.json", head(JANUARY, device, "abc"), found, complete=True)
    return load(folder)


def test_replays_show_the_fastest_peer_and_the_targets(tmp_path: Path) -> None:
    tables = all_tables(measured_replays(tmp_path, H200))
    line = cells(tables["replay-gpu-bf16"](), "`eval505`", "forward |")
    assert line[1].startswith("60.0 µs") and "2.0×" in line and line.count("not measured") == 7
    assert cells(tables["targets-gpu"](), "five walks forward by graph replay, `eval505`")[1:] == [
        "65 µs",
        "45 µs",
        "60.0 µs",
    ]
    told = "forward + backward by graph replay against the fastest peer, `context60`"
    assert cells(tables["targets-gpu"](), told)[1:] == ["1.5×", "3×", "2.0×"]


def test_what_an_h200_promises_another_card_does_not_answer(tmp_path: Path) -> None:
    """A ratio is one on any card; microseconds and fractions of an H200's floor are not."""
    tables = all_tables(measured_replays(tmp_path, H100))
    assert cells(tables["targets-gpu"](), "five walks forward by graph replay, `eval505`")[-1] == "not measured"
    assert cells(tables["replay-gpu-bf16"](), "`eval505`", "forward |")[-2:] == ["not measured", "not measured"]
    assert cells(tables["targets-gpu"](), "forward by graph replay against the fastest peer, `eval505`")[-1] == "2.0×"
