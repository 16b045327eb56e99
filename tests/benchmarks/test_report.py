"""README and docs say what the results files say, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import plots, record, report, results, show
from benchmarks.clock import Timing, alternate
from benchmarks.questions import ONCE, QUESTIONS, all_tasks, overhead
from benchmarks.tables import all_tables
from benchmarks.tasks import FAILED, MEASURED, UNAVAILABLE, Entrant, Row, contest

HEAD = {
    "schema": 1, "date": "2026-01-02T03:04:05Z", "commit": "abc", "backend": "cpu",
    "peak": {"flop_per_s": 1e11, "how": "x"},
    "machine": {"device": "cpu", "cpu": "Some CPU", "threads": 2, "simd": "AVX2", "torch": "2.99"},
}  # fmt: skip


def measured(seconds: dict[str, float]) -> list[Row]:
    """Rows of every task: `seconds` by contender, the others unavailable."""
    rows = []
    for task in all_tasks("cpu"):
        for name in task.contenders:
            row = task.row(name, name)
            if name in seconds:
                times = {key: seconds[name] for key in ("median", "p20", "p80")}
                rows.append(replace(row, status=MEASURED, error=1e-6, bound=1e-5, **times))
            else:
                rows.append(replace(row, status=UNAVAILABLE, reason=f"{name} is away"))
    return rows


def test_docs_agree_with_the_results_files():
    assert report.stale() == [], "run `make docs`"


def test_without_results_every_cell_says_not_measured(tmp_path: Path):
    tables = all_tables(results.load(tmp_path))
    for name, table in tables.items():
        assert not re.search(r"\d (ms|µs|s|ns|MiB|GiB)\b", table().replace("GTX 1080", "")) or name.startswith(
            ("models", "targets", "experiments")
        )
    assert "not measured" in tables["headline-cpu"]()
    assert "No measurement on a GPU yet" in tables["machine-gpu"]()


def test_tables_show_what_was_recorded(tmp_path: Path):
    record.write(tmp_path / "cpu.json", HEAD, measured({"ours": 0.010, "sdpa": 0.035, "dense": 0.070}), complete=True)
    found = results.load(tmp_path)
    table = all_tables(found)["cascade-cpu-fp32-smooth"]()
    line = next(line for line in table.splitlines() if "eval505`" in line and line.count("backward") == 0)
    assert "10.0 ms" in line
    assert "35.0 ms" in line
    assert "3.5×" in line
    assert "flex is away" in table
    # 5 · 2 · 4096² · 85 FLOP in 10 ms of 1e11 FLOP/s
    assert f"{100 * 5 * 2 * 4096**2 * 85 / 0.010 / 1e11:.0f}%" in line
    assert "Some CPU, 2 threads" in all_tables(found)["headline-cpu"]()


def test_a_changed_result_makes_the_docs_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path / "docs" / "figures")
    monkeypatch.setattr(report, "load", lambda _=None: results.load(tmp_path))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "performance.md"
    page.write_text("before\n<!-- table:begin headline-cpu -->\n<!-- table:end -->\nafter\n")
    record.write(tmp_path / "cpu.json", HEAD, measured({"ours": 0.010, "sdpa": 0.035}), complete=True)
    assert report.main([]) == 0
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert report.stale() == []
    record.write(tmp_path / "cpu.json", HEAD, measured({"ours": 0.011, "sdpa": 0.035}), complete=True)
    stale = {line.split(":")[0].rpartition("/")[2] for line in report.stale()}
    assert stale == {"performance.md", "scaling_cpu.svg", "sizes_cpu.svg", "peers_cpu.svg"}
    assert report.main(["--check"]) == 1
    page.write_text(page.read_text().replace("10.0 ms", "1.0 ms"))
    assert report.main([]) == 0
    assert "11.0 ms" in page.read_text()


def test_a_marker_with_a_wrong_name_or_without_an_end_is_an_error(tmp_path: Path):
    found = results.load(tmp_path)
    with pytest.raises(ValueError, match="no table 'nonsense'"):
        report.filled("<!-- table:begin nonsense -->\n<!-- table:end -->", found)
    with pytest.raises(ValueError, match="each needs"):
        report.filled("<!-- table:begin headline-cpu -->\n", found)


def test_later_files_win_and_foreign_files_are_ignored(tmp_path: Path):
    later = HEAD | {"date": "2026-02-02T00:00:00Z", "commit": "def"}
    record.write(tmp_path / "a.json", later, measured({"ours": 0.002}), complete=True)
    record.write(tmp_path / "b.json", HEAD, measured({"ours": 0.001}), complete=True)
    (tmp_path / "c.json").write_text(json.dumps({"something": "else"}))
    found = results.load(tmp_path)["cpu"]
    assert found.head["commit"] == "def"
    assert found.of(found.tasks("cascade")[0])[0].median == 0.002
    lower = later | {"date": "2026-03-03T00:00:00Z", "commit": "ghi", "peak": {**HEAD["peak"], "flop_per_s": 1.0}}
    part = [row for row in measured({"sdpa": 0.003}) if row.contender == "sdpa"]
    record.write(tmp_path / "d.json", lower, part, complete=True)
    found = results.load(tmp_path)["cpu"]
    assert found.head["commit"] == "def, ghi", "rows of both are shown"
    assert found.head["peak"] == HEAD["peak"], "a slow clock does not raise what was reached of the peak"


def test_figures_carry_the_digest_of_their_numbers(tmp_path: Path):
    record.write(tmp_path / "cpu.json", HEAD, measured({"ours": 0.010, "sdpa": 0.035}), complete=True)
    found = results.load(tmp_path)
    plots.write(tmp_path, found)
    for name, (_, data) in plots.figures(found).items():
        assert plots.digest(data) in (tmp_path / name).read_text()
    assert [64, 0.010, 0.010, 0.010] in plots.scaling_data(found["cpu"])["forward"]["series"]["ours"]


def test_a_wrong_or_failing_contender_gets_no_time():
    from benchmarks.correctness import Verdict

    task = overhead()[0]

    def broken():
        raise RuntimeError("no such kernel\nlong story")

    entrants = {
        "ours": Entrant("ours", None, lambda: (lambda: None, Verdict(1.0, 0.1, "output"))),
        "dense": Entrant("dense", None, broken),
        "sdpa": Entrant("sdpa", "not here", broken),
    }
    rows = {row.contender: row for row in contest(replace(task, seconds=0.01), entrants, "cpu")}
    assert rows["ours"].status == FAILED
    assert "exceeds" in rows["ours"].reason
    assert rows["dense"].reason == "RuntimeError: no such kernel"
    assert rows["sdpa"].reason == "not here"
    assert all(row.median is None for row in rows.values())


def test_contenders_take_turns():
    order: list[str] = []
    timings = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=1, rounds=(4, 4))
    assert "".join(order) == "abbaabba"
    assert len(timings["a"].samples) == 4


def test_quantiles():
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (timing.quantile(0.2), timing.median, timing.quantile(0.8)) == pytest.approx((1.8, 3.0, 4.2))
    assert Timing((2.0,)).quantile(0.8) == 2.0


def test_tasks_have_names_of_their_own():
    for device in ("cpu", "cuda"):
        names = [str(task) for task in all_tasks(device)]
        assert len(names) == len(set(names))


def test_the_first_turn_asks_every_question():
    asked = {name for name, tasks in QUESTIONS.items() if tasks("cpu")}
    assert {task.question for task in all_tasks("cpu") if task.turn == ONCE} == asked
    assert set(QUESTIONS) - asked == {"replay"}, "a CPU has no graphs"


def test_every_question_has_its_tests_under_pytest():
    files = [path.read_text(encoding="utf-8") for path in Path(show.__file__).parent.glob("test_*.py")]
    for name in QUESTIONS:
        assert any(f'contenders_of("{name}")' in text for text in files), name


def test_units():
    assert [show.seconds(x) for x in (2.5, 0.0312, 4.2e-5, 3e-8)] == ["2.50 s", "31.2 ms", "42.0 µs", "30 ns"]
    assert [show.size(x) for x in (5 * 2**20, 3 * 2**30)] == ["5.00 MiB", "3.00 GiB"]
