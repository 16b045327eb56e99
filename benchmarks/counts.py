"""Instructions of a call: a number that does not depend on what else the machine does.

`python -m benchmarks.counts` is the guard of CI: instructions per ordered pair of nodes on the AVX2 path, which callgrind
simulates whatever the CPU is, against limits that a kernel exceeds when it loses what makes it fast.

Counted from outside, on one thread. perf reads the processor's own counter, as the difference between a process with few
calls and one with more. callgrind simulates, so it sees the AVX2 path of a CPU that has AVX-512, and small problems only;
it counts between two points of one process, and the import of torch goes by at a tenth of the usual speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cases import CASES, Case

FEW, MORE = 1, 3
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
    """The tool is not there, or the machine does not let it count."""


@dataclass(frozen=True)
class Count:
    """Instructions of one call and the tool that counted them, or why there are none."""

    value: float | None
    how: str = ""
    reason: str = ""


def instructions(problems: Sequence[Problem], environment: Mapping[str, str]) -> list[Count]:
    """Instructions of one call of each problem, by perf or else by callgrind (on a smaller grid)."""
    reasons = []
    for how, counted in (("perf", _perf), ("callgrind", _callgrind)):
        fit = [_smaller(p) for p in problems] if how == "callgrind" else list(problems)
        try:
            values = counted(fit, environment)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{how}: {error}")
            continue
        told = [how if small == p else f"{how}, N = {small[0].nodes}" for p, small in zip(problems, fit, strict=True)]
        return [Count(value, tool) for value, tool in zip(values, told, strict=True)]
    return [Count(None, reason="; ".join(reasons))] * len(problems)


def _smaller(problem: Problem) -> Problem:
    case, dtype, direction = problem
    return case.but(nodes=min(case.nodes, SIMULATED_NODES)), dtype, direction


def _perf(problems: Sequence[Problem], environment: Mapping[str, str]) -> list[float]:
    if shutil.which("perf") is None:
        raise Unavailable("not installed")
    return [(_perf_of(p, MORE, environment) - _perf_of(p, FEW, environment)) / (MORE - FEW) for p in problems]


def _perf_of(problem: Problem, times: int, environment: Mapping[str, str]) -> float:
    case, dtype, direction = problem
    code = "from benchmarks.worker import run_alone; run_alone()"
    command = [sys.executable, "-c", code, str(times), json.dumps(asdict(case)), dtype, direction]
    done = _run(["perf", "stat", "-x,", "-e", "instructions:u", *command], environment)
    fields = next((line.split(",") for line in done.stderr.splitlines() if "instructions" in line), [""])
    if not fields[0].isdigit():
        raise Unavailable("the machine has no instruction counter for us")
    return float(fields[0])


def _callgrind(problems: Sequence[Problem], environment: Mapping[str, str]) -> list[float]:
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
        files = [counts.with_name(f"{counts.name}.{number}") for number in range(1, len(problems) + 1)]
        return [_total(file) for file in files]


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
        values = _callgrind(list(LIMITS), environment)
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
