"""Checks in processes of their own: which pass, fail, die, never end; and that none is left behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.gpu import processes
from benchmarks.gpu.processes import Job, ended, verdicts
from benchmarks.gpu.stage import NO_TIME, Report

CHILD = """
import json, os, signal, sys, time
kind, mark = sys.argv[1:]
if kind == "raises":
    raise ValueError("out of luck\\nand advice that nobody needs")
if kind == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
while kind == "never ends":
    open(mark, "a").write(".")
    time.sleep(0.02)
print("a word before")
if kind != "says nothing":
    print(json.dumps({"passed": kind == "passes", "error": 0.5}))
print("a warning after")
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe", lambda device: {"device": device})


def jobs(folder: Path, *kinds: str) -> list[Job]:
    command = [sys.executable, "-c", CHILD]
    return [
        Job(
            {"kind": kind, "number": number}, [*command, kind, str(folder / f"{number}.mark")], folder / f"{number}.log"
        )
        for number, kind in enumerate(kinds)
    ]


def entries(report: Report) -> dict[str, dict]:
    listed = json.loads(report.path.read_text(encoding="utf-8"))["entries"]
    return {entry["kind"]: entry for entry in listed}


def test_every_problem_has_its_verdict(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.json", 60)
    failed = verdicts(report, jobs(tmp_path, "passes", "fails", "raises", "dies", "says nothing"))
    found = entries(report)
    assert [found[kind]["passed"] for kind in ("passes", "fails", "raises", "dies", "says nothing")] == [True] + 4 * [
        False
    ]
    assert found["passes"]["error"] == found["fails"]["error"] == 0.5
    assert found["raises"]["reason"] == "status 1: ValueError: out of luck"
    assert found["dies"]["reason"] == "status -9: it said nothing"
    assert found["says nothing"]["reason"] == "status 0: a warning after"
    assert failed == 4 and report.done(failed) == 1


def test_the_clock_ends_them_and_leaves_nobody_behind(tmp_path: Path) -> None:
    """One passes, one runs when the time is up, one never begins."""
    report = Report(tmp_path / "out.json", 3)
    asked = jobs(tmp_path, "passes", "never ends", "never ends")
    asked[2].about = {"kind": "never begins"}
    began = time.monotonic()
    failed = 0
    for job in ended(asked, report.end, at_once=1):
        if job.status is None:
            report.left_out(**job.about)
        else:
            report.add(**job.about, **processes.verdict(job))
    assert time.monotonic() - began < 20
    found = entries(report)
    assert found["passes"]["passed"] and found["never ends"]["reason"] == found["never begins"]["reason"] == NO_TIME
    beats = (tmp_path / "1.mark").stat().st_size
    time.sleep(0.3)
    assert beats > 0 and (tmp_path / "1.mark").stat().st_size == beats
    assert not (tmp_path / "2.mark").exists()
    assert report.done(failed) == 3


def test_who_stops_listening_ends_them_too(tmp_path: Path) -> None:
    """An error in the stage, or a key pressed: closing the generator is what both come to."""
    running = ended(jobs(tmp_path, "passes", "never ends"), time.monotonic() + 60, at_once=2)
    assert next(running).about["kind"] == "passes"
    running.close()
    beats = (tmp_path / "1.mark").stat().st_size if (tmp_path / "1.mark").exists() else 0
    time.sleep(0.3)
    assert beats == ((tmp_path / "1.mark").stat().st_size if (tmp_path / "1.mark").exists() else 0)


def test_as_many_at_a_time_as_asked(tmp_path: Path) -> None:
    script = "import os, sys, time; open(sys.argv[1], 'w').close(); time.sleep(0.5); os.unlink(sys.argv[1])"
    most = 0
    asked = [
        Job({}, [sys.executable, "-c", script, str(tmp_path / f"{i}.alive")], tmp_path / f"{i}.log") for i in range(5)
    ]

    def count(seconds: float) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("*.alive"))))
        real(seconds)

    real = time.sleep
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes.time, "sleep", count)
        assert [job.status for job in ended(asked, time.monotonic() + 60, at_once=2)] == [0] * 5
    assert most == 2


def test_a_child_does_not_take_the_cores_of_the_others(tmp_path: Path) -> None:
    script = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MORE'])"
    job = Job({}, [sys.executable, "-c", script], tmp_path / "log", {"MORE": "given"})
    (found,) = ended([job], time.monotonic() + 60)
    threads = int(found.said.split()[0])
    assert found.said.split()[1] == "given"
    assert threads >= 1 and threads * processes.AT_ONCE <= max(processes.CORES, processes.AT_ONCE)
    assert os.environ.get("MORE") is None
