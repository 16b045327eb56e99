"""The growth of a process is that of the call, and whoever dies measuring it is a row with a reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.device import device
from benchmarks.memory import MemoryTask
from benchmarks.tasks import FAILED, MEASURED, UNAVAILABLE

CASE = Case("small", 1, 2500, 8, 3, walks=1)
CPU = device("cpu")


def test_the_dense_formula_grows_by_its_matrices_and_ours_does_not():
    rows = {row.contender: row for row in MemoryTask("memory", CASE, contenders=("ours", "dense")).measure(CPU)}
    matrix = 4 * CASE.nodes**2
    assert {row.status for row in rows.values()} == {MEASURED}
    assert 1.8 * matrix < rows["dense"].memory < 3 * matrix
    assert rows["ours"].memory < 0.5 * matrix


def test_a_failure_is_a_reason_and_ours_may_not_fail():
    wrong = MemoryTask("memory", CASE, kind="no such kind", contenders=("ours", "dense"))
    ours, peer = wrong.measure(CPU)
    assert (ours.status, peer.status) == (FAILED, UNAVAILABLE)
    assert "no such kind" in peer.reason
    # and the next one is measured all the same
    (row,) = MemoryTask("memory", CASE, contenders=("dense",)).measure(CPU)
    assert row.status == MEASURED


class Killed(MemoryTask):
    def growing(self, name: str, on: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_who_is_killed_ran_out_of_memory():
    (row,) = Killed("memory", CASE, contenders=("dense",)).measure(CPU)
    assert row.status == UNAVAILABLE and row.reason == "killed: out of memory"


@pytest.mark.parametrize("missing", ["clear_refs", "VmHWM"])
def test_where_a_peak_cannot_be_seen_every_row_says_so(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Containers without a writable clear_refs, kernels without the high-water mark: nobody has failed."""
    (tmp_path / "clear_refs").mkdir() if missing == "clear_refs" else (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("VmRSS: 1 kB\n")
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    rows = MemoryTask("memory", CASE, contenders=("ours", "dense")).measure(CPU)
    assert {row.status for row in rows} == {UNAVAILABLE}
    assert all("does not show the peak memory" in row.reason and missing in row.reason for row in rows)
    assert memory.unseen(device("cuda")) is None


HELD = """
import torch
from benchmarks import memory
from benchmarks.device import device

held = torch.ones(2**22)
print(memory.growth(lambda: None, lambda: held.clone(), device("cpu")) / held.nbytes)
"""


def test_what_was_held_before_does_not_count():
    root = Path(memory.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, cwd=root)
    assert 1 <= float(done.stdout) < 1.5
