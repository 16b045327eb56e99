"""Counts of instructions: read right, and never invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import counts
from benchmarks.counts import LIMITS, SIMULATED_NODES, Unavailable, instructions, smaller


def test_the_sum_of_a_file_of_counts_is_read(tmp_path: Path):
    file = tmp_path / "counts.1"
    file.write_text("version: 1\nevents: Ir\nfn=(1) walk\n12 4000000\ntotals: 4640000\n")
    assert counts._total(file) == 4640000
    file.write_text("version: 1\n")
    with pytest.raises(RuntimeError, match="nothing"):
        counts._total(file)


def test_without_a_tool_there_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Unavailable, match="valgrind"):
        instructions(list(LIMITS), Path())


def test_what_is_simulated_is_small():
    case, dtype, direction = next(iter(LIMITS))
    assert smaller((case.but(nodes=4096), dtype, direction)) == (case.but(nodes=SIMULATED_NODES), dtype, direction)
    assert smaller((case.but(nodes=16), dtype, direction))[0].nodes == 16


@pytest.mark.parametrize(("factor", "status"), [(0.99, 0), (1.01, 1)])
def test_the_guard_fails_above_its_limits_and_only_there(factor: float, status: int, monkeypatch: pytest.MonkeyPatch):
    values = [factor * limit * case.nodes**2 for (case, *_), limit in LIMITS.items()]
    monkeypatch.setattr(counts, "instructions", lambda *_, **__: values)
    assert counts.main() == status
