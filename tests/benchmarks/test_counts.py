"""Counts of instructions: read right, and never invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import counts
from benchmarks.counts import LIMITS, SIMULATED_NODES, Unavailable, instructions


def test_the_sum_of_a_file_of_counts_is_read(tmp_path: Path):
    file = tmp_path / "counts.1"
    file.write_text("version: 1\nevents: Ir\nfn=(1) walk\n12 4000000\ntotals: 4640000\n")
    assert counts._total(file) == 4640000
    file.write_text("version: 1\n")
    with pytest.raises(RuntimeError, match="nothing"):
        counts._total(file)


def test_without_a_tool_there_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    found = instructions(list(LIMITS), {})
    assert [count.value for count in found] == [None] * len(LIMITS)
    assert "perf: not installed" in found[0].reason
    assert "valgrind" in found[0].reason


def test_perf_counts_the_difference_of_two_processes_and_callgrind_a_smaller_grid(monkeypatch: pytest.MonkeyPatch):
    problem = next(iter(LIMITS))
    large = (problem[0].but(nodes=4096), *problem[1:])
    monkeypatch.setattr(counts, "_perf_of", lambda _, times, __: 5e9 + 2e6 * times)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert instructions([large], {})[0] == counts.Count(2e6, "perf")

    def denied(*_: object) -> float:
        raise Unavailable("the machine has no instruction counter for us")

    monkeypatch.setattr(counts, "_perf_of", denied)
    monkeypatch.setattr(counts, "_callgrind", lambda problems, _: [float(case.nodes) for case, *_ in problems])
    assert instructions([large], {})[0] == counts.Count(SIMULATED_NODES, f"callgrind, N = {SIMULATED_NODES}")


@pytest.mark.parametrize(("factor", "status"), [(0.99, 0), (1.01, 1)])
def test_the_guard_fails_above_its_limits_and_only_there(factor: float, status: int, monkeypatch: pytest.MonkeyPatch):
    values = [factor * limit * case.nodes**2 for (case, *_), limit in LIMITS.items()]
    monkeypatch.setattr(counts, "_callgrind", lambda *_: values)
    assert counts.main() == status
