"""Instructions per call: a number that does not depend on what else the machine does.

Counted from outside, on one thread, as the difference between a process with few calls and one with more. perf reads
the processor's own counter; callgrind simulates, so it sees the AVX2 path of a CPU that has AVX-512, and small
problems only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cases import Case

FEW, MORE = 1, 3
# a simulated processor is about fifty times slower, and importing torch alone takes it a minute
SIMULATED_NODES = 400
PATIENCE = 400.0


@dataclass(frozen=True)
class Count:
    """Instructions per call and the tool that counted them, or why there are none."""

    value: float | None
    how: str = ""
    reason: str = ""


def instructions(case: Case, dtype: str, direction: str, environment: Mapping[str, str]) -> Count:
    """Instructions of one call, by perf or else by callgrind (on a smaller grid)."""
    reasons = []
    for how, counted, fit in (("perf", _perf, case), ("callgrind", _callgrind, _smaller(case))):
        try:
            few, more = (counted(_command(times, fit, dtype, direction), environment) for times in (FEW, MORE))
            told = how if fit == case else f"{how}, N = {fit.nodes}"
            return Count((more - few) / (MORE - FEW), told)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{how}: {error}")
    return Count(None, reason="; ".join(reasons))


def _smaller(case: Case) -> Case:
    return case.but(nodes=min(case.nodes, SIMULATED_NODES))


def _command(times: int, case: Case, dtype: str, direction: str) -> list[str]:
    code = "from benchmarks.worker import run_alone; run_alone()"
    return [sys.executable, "-c", code, str(times), json.dumps(asdict(case)), dtype, direction]


def _perf(command: list[str], environment: Mapping[str, str]) -> float:
    if shutil.which("perf") is None:
        raise RuntimeError("not installed")
    done = _run(["perf", "stat", "-x,", "-e", "instructions:u", *command], environment)
    fields = next((line.split(",") for line in done.stderr.splitlines() if "instructions" in line), [""])
    if not fields[0].isdigit():
        raise RuntimeError("the machine has no instruction counter for us")
    return float(fields[0])


def _callgrind(command: list[str], environment: Mapping[str, str]) -> float:
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind is not installed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"

        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", "--error-exitcode=0"]
        done = _run([*tool, *command], environment)
        found = [line for line in done.stderr.splitlines() if "Collected" in line]
        if not found:
            raise RuntimeError("valgrind could not run it")
        return float(found[-1].split(":")[-1].strip().split()[0])


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    settings = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as away:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**environment, **settings}, cwd=away, timeout=PATIENCE
        )
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise RuntimeError(told[-1][:120] if told else f"exit status {done.returncode}")
    return done
