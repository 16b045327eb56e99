"""Instructions of a call: a number that does not depend on what else the machine does.

`python -m benchmarks.counts` is the guard of CI: instructions per ordered pair of nodes on the AVX2 path, against limits
that a kernel exceeds when it loses what makes it fast. Callgrind simulates one thread, whatever the CPU is; it sees the
AVX2 path and small problems only, and counts between two points of one process (callgrind.c).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.worker import ROOT, Problem, Worker

SIMULATED_NODES = 400
_WALK = CASES["eval505"].but(nodes=SIMULATED_NODES, walks=1)
# instructions per ordered pair of nodes, about a fifth above the 29.0 and 103.7 that GCC 12 makes of the kernels
LIMITS: dict[Problem, float] = {
    (_WALK, "fp32", "forward"): 35,
    (_WALK, "fp32", "forward+backward"): 125,
}
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


class Unavailable(RuntimeError):
    """The tool is not there."""


def instructions(problems: Sequence[Problem], package: Path, **environment: str) -> list[float]:
    """Instructions of one call of each problem. Raises Unavailable with the reason where there is no tool."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if shutil.which("valgrind") is None or compiler is None:
        raise Unavailable("valgrind or a C compiler is not installed")
    with tempfile.TemporaryDirectory() as folder:
        library, counts = Path(folder) / "switches.so", Path(folder) / "counts"
        build = [compiler, "-shared", "-fPIC", "-O1", str(Path(__file__).with_name("callgrind.c")), "-o", str(library)]
        if (built := subprocess.run(build, capture_output=True, text=True)).returncode:
            raise Unavailable(f"valgrind's headers do not compile: {built.stderr.strip().splitlines()[-1]}")
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}", "-q"]
        with Worker("callgrind", package, tool, **ALONE, **environment) as worker:
            for problem in problems:
                worker.seconds(problem, switches=str(library))
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


def main() -> int:
    try:
        values = instructions(list(LIMITS), ROOT, DIFNET_KERNELS_ISA="avx2")
    except Unavailable as error:
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
