"""Instructions of a call: a number that does not depend on what else the machine does.

`python -m benchmarks.counts` is the guard of CI: instructions per ordered pair of nodes on the AVX2 path, against limits
that a kernel exceeds when it loses what makes it fast. Callgrind simulates one thread, whatever the CPU is; it sees the
AVX2 path and small problems only, and counts between two points of one process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cases import CASES, Case

SIMULATED_NODES = 400
PATIENCE = 400.0

Problem = tuple[Case, str, str]  # a case, a dtype, a direction

_WALK = CASES["eval505"].but(nodes=SIMULATED_NODES, walks=1)
# instructions per ordered pair of nodes, about a fifth above the 29.0 and 103.7 that GCC 12 makes of the kernels
LIMITS: dict[Problem, float] = {
    (_WALK, "fp32", "forward"): 35,
    (_WALK, "fp32", "forward+backward"): 125,
}


class Unavailable(RuntimeError):
    """The tool is not there."""


def instructions(problems: Sequence[Problem], environment: Mapping[str, str]) -> list[float]:
    """Instructions of one call of each problem. Raises Unavailable with the reason where there is no tool."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if shutil.which("valgrind") is None or compiler is None:
        raise Unavailable("valgrind or a C compiler is not installed")
    with tempfile.TemporaryDirectory() as folder:
        library, counts = Path(folder) / "switches.so", Path(folder) / "counts"
        source = Path(__file__).with_name("callgrind.c")
        try:
            _run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library)], environment)
        except RuntimeError as error:
            raise Unavailable(f"valgrind's headers do not compile: {error}") from error
        asked = json.dumps([[asdict(case), dtype, direction] for case, dtype, direction in problems])
        code = "from benchmarks.worker import run_counted; run_counted()"
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}"]
        _run([*tool, sys.executable, "-c", code, str(library), asked], environment)
        return [_total(counts.with_name(f"{counts.name}.{number}")) for number in range(1, len(problems) + 1)]


def smaller(problem: Problem) -> Problem:
    """What can be simulated in a reasonable time."""
    case, dtype, direction = problem
    return case.but(nodes=min(case.nodes, SIMULATED_NODES)), dtype, direction


def _total(file: Path) -> float:
    for line in file.read_text().splitlines():
        if line.startswith("totals:"):
            return float(line.split()[1])
    raise RuntimeError("callgrind counted nothing")


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


def main() -> int:
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "DIFNET_KERNELS_ISA": "avx2"}
    try:
        values = instructions(list(LIMITS), environment)
    except (Unavailable, subprocess.TimeoutExpired) as error:
        print(f"instructions were not counted: {error}")
        return 0
    failed = 0
    for ((case, dtype, direction), limit), value in zip(LIMITS.items(), values, strict=True):
        each = value / case.nodes**2
        failed += each > limit
        verdict = "MORE THAN" if each > limit else "at most"
        print(f"{case.sizes} {dtype} {direction:<17} {each:6.1f} instructions per pair of nodes; {verdict} {limit:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
