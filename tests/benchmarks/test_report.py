"""README and docs say what the results files say, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots, record, report, results, show
from benchmarks.gpu_suite import pack
from benchmarks.questions import ONCE, QUESTIONS, all_tasks
from benchmarks.results import Results, load
from benchmarks.tables import LEFT_OUT, NO_CARD, all_tables
from benchmarks.tasks import IMPRECISE, MEASURED, NOT_MEASURED, UNAVAILABLE, Row

HEAD: dict[str, Any] = {
    "schema": results.SCHEMA, "date": "2026-01-02T03:04:05Z", "commit": "abc", "backend": "cpu",
    "peak": {"flop_per_s": 1e11, "how": "x"},
    "machine": {"device": "cpu", "cpu": "Some CPU", "threads": 2, "simd": "AVX2", "torch": "2.99"},
}  # fmt: skip
CARD = {**HEAD, "peak": None, "backend": "triton",
        "machine": {"device": "NVIDIA H100", "arch": "sm_90", "multiprocessors": 132, "torch": "2.99"}}  # fmt: skip


def measured(seconds: dict[str, float], *, on_gpu: bool = False, status: str = MEASURED) -> list[Row]:
    """Rows of every task: `seconds` by contender, the others unavailable."""
    rows = []
    for task in all_tasks(on_gpu):
        for name in task.contenders:
            row, taken = task.row(name, name), seconds.get(name.split("/")[0])
            if taken is None:
                rows.append(replace(row, status=UNAVAILABLE, reason=f"{name} is away"))
                continue
            times = {key: taken for key in ("median", "p20", "p80")}
            rows.append(replace(row, status=status, error=1e-6, bound=1e-5, **times))
    return rows


def told(folder: Path, head: dict[str, Any], rows: list[Row], name: str = "cpu") -> list[Results]:
    record.write(folder / f"{name}.json", head, [row.as_dict() for row in rows], complete=True)
    return load(folder)


def test_docs_agree_with_the_results_files():
    assert report.stale() == [], "run `make docs`"


def test_docs_hardly_ever_say_that_something_is_not_measured():
    said = {path.name: path.read_text(encoding="utf-8").count("not measured") for path in report.documents()}
    assert sum(said.values()) <= 10, said


def test_a_card_that_has_not_spoken_is_one_sentence(tmp_path: Path):
    assert all_tables(told(tmp_path, HEAD, measured({"ours": 0.01, "sdpa": 0.02})))["cards"]() == NO_CARD


def test_tables_show_what_was_recorded(tmp_path: Path):
    tables = all_tables(told(tmp_path, HEAD, measured({"ours": 0.010, "sdpa": 0.035, "dense": 0.070})))
    table = tables["cascade-fp32"]()
    line = next(line for line in table.splitlines() if "eval505`" in line and "backward" not in line)
    # 5 · 2 · 4096² · 85 FLOP in 10 ms of 1e11 FLOP/s
    for said in ("10.0 ms", "35.0 ms", "3.5×", f"{100 * 5 * 2 * 4096**2 * 85 / 0.010 / 1e11:.0f}%"):
        assert said in line
    assert "flex is away" in table and LEFT_OUT in table
    assert "Some CPU, AVX2, 2 threads" in tables["headline"]()


def test_processors_stand_side_by_side(tmp_path: Path):
    told(tmp_path, HEAD, measured({"ours": 0.010, "sdpa": 0.035}), "cpu_a")
    other = {**HEAD, "machine": {**HEAD["machine"], "cpu": "Other CPU"}}
    tables = all_tables(told(tmp_path, other, measured({"ours": 0.020, "sdpa": 0.030}), "cpu_b"))
    line = next(line for line in tables["headline"]().splitlines() if "`eval505`" in line)
    assert "**3.5×**" in line and "**1.5×**" in line
    assert [title in tables["walk"]() for title in ("Some CPU, AVX2:", "Other CPU, AVX2:")] == [True, True]


def test_a_processor_is_left_out_of_what_it_was_not_asked(tmp_path: Path):
    """`benchmarks.record --only` makes a file of some questions."""
    asked = QUESTIONS["steady_state"](False)
    told(tmp_path, HEAD, measured({"ours": 0.010, "sdpa": 0.035}), "cpu_a")
    other = {**HEAD, "machine": {**HEAD["machine"], "cpu": "Other CPU"}}
    some = [row for row in measured({"ours": 0.020}) if row.task in {str(task) for task in asked}]
    found = told(tmp_path, other, some, "cpu_b")
    tables = {name: table() for name, table in all_tables(found).items() if "experiments" not in name}
    assert {name for name, text in tables.items() if "Other CPU" in text} == {"steady-state"}
    assert "Some CPU" in tables["headline"] and "Some CPU" in tables["peers"]


def test_a_card_has_a_block_of_its_own_and_marks_what_is_imprecise(tmp_path: Path):
    """With the time of all kernels, the launches and the host beside the walks' share."""
    entry = {"stage": "kernels", "case": "eval505", "dtype": "bf16", "precision": "high", "device_seconds": 2e-4,
             "walk_seconds": 1e-4, "floor_seconds": 5e-5, "launches": 20.0, "host_seconds": 1e-4}  # fmt: skip
    rows = measured({"ours": 1e-4, "sdpa_flash": 2e-4}, on_gpu=True)
    wrong = replace(rows[0], status=IMPRECISE, reason="output: error 3e-05 exceeds 1e-05")
    block = all_tables(told(tmp_path, {**CARD, "entries": [entry]}, [wrong, *rows[1:]], "gpu_h100"))["cards"]()
    assert "### NVIDIA H100" in block and "2.0×" in block and "imprecise: output: error 3e-05" in block
    assert "| `eval505`, bf16 high | 200 µs | 100 µs | 50% | 20 | 5.00 µs |" in block


def test_one_command_brings_an_archive_into_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, page = tmp_path / "out", tmp_path / "page.md"
    (tmp_path / "results").mkdir()
    out.mkdir()
    page.write_text("# A page\n<!-- table:begin cards -->\n<!-- table:end -->\n")
    rows = [row.as_dict() for row in measured({"ours": 1e-4, "sdpa_flash": 2e-4}, on_gpu=True)]
    (out / "device.jsonl").write_text(json.dumps({"asked": 1, "head": CARD}) + "\n")
    (out / "cases.jsonl").write_text(json.dumps({"asked": 1, "rows": rows}) + "\n")
    for name, place in (("ROOT", tmp_path), ("FOLDER", tmp_path / "results"), ("FIGURES", tmp_path / "figures")):
        monkeypatch.setattr(report, name, place)
    monkeypatch.setattr(report, "documents", lambda: [page])
    monkeypatch.setattr(report, "load", lambda: load(tmp_path / "results"))
    assert report.main(["--archive", str(pack(out))]) == 0
    assert "### NVIDIA H100" in page.read_text() and "2.0×" in page.read_text()
    assert report.main(["--check"]) == 0


def test_what_was_not_asked_is_not_shown_and_what_is_missing_says_so(tmp_path: Path):
    rows = [row for row in measured({"ours": 0.01, "sdpa": 0.02}) if row.kind != "maps"]
    late = [replace(row, status=NOT_MEASURED, reason="late") if row.contender == "dense" else row for row in rows]
    tables = all_tables(told(tmp_path, HEAD, late))
    assert "`maps`" not in tables["other-inputs"]() and "`network`" in tables["other-inputs"]()
    assert "not measured [" in tables["walk"]()


def test_a_changed_result_makes_the_docs_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path / "docs" / "figures")
    monkeypatch.setattr(report, "load", lambda: load(tmp_path))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "performance.md"
    page.write_text("before\n<!-- table:begin headline -->\n<!-- table:end -->\nafter\n")
    told(tmp_path, HEAD, measured({"ours": 0.010, "sdpa": 0.035}))
    assert report.main([]) == 0
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert report.stale() == []
    told(tmp_path, {**HEAD, "commit": "def"}, measured({"ours": 0.011, "sdpa": 0.035}))
    stale = {line.split(":")[0].rpartition("/")[2] for line in report.stale()}
    assert stale == {"performance.md", "scaling_cpu.svg", "memory_cpu.svg", "peers_cpu.svg"}
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert "11.0 ms" in page.read_text()


def test_a_figure_is_drawn_from_the_numbers_of_its_results(tmp_path: Path):
    """Twice the time of every peer is another picture."""
    drawn = []
    for name, taken in (("a", 0.035), ("b", 0.070)):
        (tmp_path / name).mkdir()
        plots.write(tmp_path / name, told(tmp_path / name, HEAD, measured({"ours": 0.010, "sdpa": taken})))
        drawn.append({path.name: path.read_text() for path in (tmp_path / name).glob("*.svg")})
    assert drawn[0].keys() == drawn[1].keys() >= {"peers_cpu.svg", "scaling_cpu.svg"}
    assert all(drawn[0][name] != drawn[1][name] for name in ("peers_cpu.svg", "scaling_cpu.svg"))
    assert "3.5×" in drawn[0]["peers_cpu.svg"] and "7.0×" in drawn[1]["peers_cpu.svg"]


def test_a_marker_with_a_wrong_name_or_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="no table 'nonsense'"):
        report.filled("<!-- table:begin nonsense -->\n<!-- table:end -->", [])
    with pytest.raises(ValueError, match="each needs"):
        report.filled("<!-- table:begin headline -->\n", [])


def test_foreign_files_are_ignored(tmp_path: Path):
    (tmp_path / "c.json").write_text(json.dumps({"something": "else"}))
    assert load(tmp_path) == []


def test_tasks_have_names_of_their_own_and_the_first_turn_asks_every_question():
    for on_gpu in (False, True):
        names = [str(task) for task in all_tasks(on_gpu)]
        assert len(names) == len(set(names))
    asked = {name for name, of in QUESTIONS.items() if of(False)}
    assert {task.question for task in all_tasks() if task.turn == ONCE} == asked
    assert set(QUESTIONS) - asked == {"replay"}, "a CPU has no graphs"


def test_units():
    assert [show.seconds(x) for x in (2.5, 0.0312, 4.2e-5, 3e-8)] == ["2.50 s", "31.2 ms", "42.0 µs", "30 ns"]
    assert [show.size(x) for x in (5 * 2**20, 3 * 2**30)] == ["5.00 MiB", "3.00 GiB"]
