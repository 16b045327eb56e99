"""Is this revision faster than that one? `python -m benchmarks.compare --base REV`, or `make compare BASE=REV`.

Builds REV in a temporary worktree and installs it in a temporary folder, starts one process with it and one with the
working tree, and lets the two take turns on the same problems: whatever the machine does meanwhile, it does to both.
Instruction counts of one thread, where they can be had, do not depend on the noise at all.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks import show
from benchmarks.cases import CASES, TINY
from benchmarks.clock import Timing
from benchmarks.counts import Unavailable, instructions, smaller
from benchmarks.questions import DIRECTIONS
from benchmarks.worker import ROOT, Problem, Worker

# one walk is enough to compare kernels with; the tiny one compares the way to them
WALK, CROP = (CASES[name].but(walks=1) for name in ("eval505", "train321_one"))
PROBLEMS: tuple[Problem, ...] = (
    *((case, "fp32", direction) for case in (WALK, CROP) for direction in DIRECTIONS),
    *((WALK, "bf16", direction) for direction in DIRECTIONS),
    (TINY, "fp32", "forward"),
)


@contextmanager
def installed(revision: str) -> Iterator[Path]:
    """A folder with the package of `revision`, built from its own sources."""
    with tempfile.TemporaryDirectory() as name:
        source, site = Path(name) / "source", Path(name) / "site"
        add = ["git", "worktree", "add", "--detach", str(source), revision]
        subprocess.run(add, cwd=ROOT, check=True, stdout=sys.stderr)
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--target", str(site), str(source)], check=True, stdout=sys.stderr)
            yield site
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(source)], cwd=ROOT, check=False)


def alternate(base: Worker, head: Worker, problem: Problem, rounds: int) -> dict[str, Timing]:
    """The times of both, taken in turns."""
    # short calls are repeated within a sample until it lasts long enough for the clock
    repeats = max(1, round(5e-3 / max(worker.seconds(problem, times=3) for worker in (base, head))))
    samples: dict[str, list[float]] = {base.name: [], head.name: []}
    for number in range(rounds):
        for worker in (base, head) if number % 2 == 0 else (head, base):
            samples[worker.name].append(worker.seconds(problem, repeats=repeats))
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def compared(base: Worker, head: Worker, problems: Sequence[Problem], rounds: int) -> list[tuple[float, float]]:
    """The spread of the ratio of each problem; prints them as they come."""
    spreads = []
    for problem in problems:
        (case, dtype, direction), times = problem, alternate(base, head, problem, rounds)
        ratios = Timing(tuple(b / h for b, h in zip(times[base.name].samples, times[head.name].samples, strict=True)))
        low, high = ratios.quantile(0.1), ratios.quantile(0.9)
        line = f"{case.name + case.sizes:<36} {dtype} {direction:<17}"
        line += f" {show.seconds(times[base.name].median):>9} -> {show.seconds(times[head.name].median):>9}"
        print(f"{line}  {ratios.median:5.3f}x ({low:.3f} - {high:.3f})  {verdict(low, high)}", flush=True)
        spreads.append((low, high))
    return spreads


def verdict(low: float, high: float) -> str:
    """A ratio is only called a difference if its spread, all but a tenth at each end, lies on one side of one."""
    return "faster" if low > 1 else "SLOWER" if high < 1 else "same within the noise"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="the revision to compare the working tree with")
    parser.add_argument("--head", help="another revision instead of the working tree")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each per problem (default 21)")
    parser.add_argument("--counts", action="store_true", help="count instructions of smaller problems, too")
    options = parser.parse_args(arguments)
    # a revision is never built from anything but itself; the working tree runs as it was built last
    head_folder = installed(options.head) if options.head else nullcontext(ROOT)
    with installed(options.base) as base_package, head_folder as head_package:
        with Worker(f"base {options.base}", base_package) as base, Worker("head", head_package) as head:
            for worker in (base, head):
                print(f"{worker.name}: backend {worker.about['backend']}, of {worker.about['package']}")
            if base.about["backend"] != head.about["backend"]:
                told = ", ".join(f"{worker.name} misses {worker.about['missing']}" for worker in (base, head))
                raise SystemExit(f"the two run different backends, so a ratio would say nothing: {told}. Build both.")
            compared(base, head, PROBLEMS, options.rounds)
        if options.counts:
            print(counted(base.package, head.package, [smaller(problem) for problem in PROBLEMS]))
    return 0


def counted(base: Path, head: Path, problems: Sequence[Problem]) -> str:
    """A line per problem: instructions of a call, and their ratio."""
    try:
        before, after = (instructions(problems, package) for package in (base, head))
    except Unavailable as error:
        return f"instructions were not counted: {error}"
    return "\n".join(
        f"{case.name:<14} {dtype} {direction:<17} N = {case.nodes}: {b / 1e6:.2f} M -> {h / 1e6:.2f} M, {b / h:.3f}x"
        for (case, dtype, direction), b, h in zip(problems, before, after, strict=True)
    )


if __name__ == "__main__":
    if shutil.which("git") is None:
        raise SystemExit("benchmarks.compare needs git")
    raise SystemExit(main())
