"""The stages of `benchmarks.gpu_suite`: what each one asks of the card, item by item.

A process runs the items of one stage and adds lines of JSON to OUT/STAGE.jsonl: what it has
begun, and what came out. What an earlier process has begun and not ended is what it died of.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import machine
from benchmarks.cascade import problem, runner
from benchmarks.cases import CASES
from benchmarks.cost import floor_seconds
from benchmarks.device import Device, device
from benchmarks.gpu_cuda import of_one_launch
from benchmarks.gpu_suite import LEFT_OUT, LOST, NAMES, ROOT, lines_of
from benchmarks.peers import QUICK, Cascade
from benchmarks.projection import ProjectionTask
from benchmarks.questions import all_tasks
from benchmarks.record import header
from benchmarks.results import machine_of
from benchmarks.tasks import FAILED, STILL_TIMED, Task, first_line
from benchmarks.truth import judge
from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import BACKENDS

Facts = dict[str, Any]
# what is asked, and what finds the answer
Item = tuple[Facts, Callable[[], Facts]]
BOTH = "forward+backward"
SOUND = Path("tests/kernels/test_on_a_card.py")
# its tests in pieces of about equal length: launch rows by width, then the others
ROWS = tuple(f"every_launch_row and {widths}" for widths in ("64-21", "16-5", "128-60", "256-60", "128-127", "64-150"))
OTHERS = ("drift", "side_stream", "two_cascades", "replay", "captured", "projection", "offsets")
NOTHING_CHOSEN = 5  # pytest's status where nothing of a file is in the subset
# where compute-sanitizer lies if it is not on the path
TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")
SANITIZED = (("memcheck", "test_memory.py"), ("racecheck", "test_sizes.py"))
ONE_LAUNCH = "tests/cuda/test_on_a_card.py"
# memcheck sees what leaves an allocation: each tensor must be one, and not a part of a larger block
WITHOUT_A_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def _one_sum(on: Device) -> Facts:
    """Whether matrix units round or cut off: 1 + 1.5 · 2⁻²⁴ in fp32 is 1 + 2⁻²³ to nearest, and 1 cut off."""
    a, b = (torch.zeros(16, 16, dtype=torch.float16, device=on.torch) for _ in range(2))
    a[0, :2], b[:2, 0] = torch.tensor([[1.0, 1.5 * 2.0**-12], [1.0, 2.0**-12]], device=on.torch).half()
    total = torch.mm(a.float(), b.float()) if on.rehearsed else torch.mm(a, b, out_dtype=torch.float32)
    beyond = (total[0, 0].double() - 1).item() * 2.0**23
    return {"beyond_one": beyond, "rounds": {0.0: "cut off", 1.0: "to nearest"}.get(beyond, "neither")}


def of_kernels(on: Device) -> list[Item]:
    """The time of all kernels of a cascade, the walks' share, the launches, and what the host takes."""
    names = ("eval505", "train321", "eval505_h5", "context60", "batch4_16k")
    settings = (("bf16", "high"), ("fp32", "high"), ("fp32", "medium"))
    return [
        ({"case": name, "dtype": dtype, "precision": precision}, partial(_kernels, on, name, dtype, precision))
        for dtype, precision in settings
        for name in (names if not on.rehearsed else names[:1])
    ]


def _kernels(on: Device, name: str, dtype: str, precision: str) -> Facts:
    case = CASES[name] if not on.rehearsed else CASES[name].but(nodes=64)
    inputs, truth = problem(case, "smooth", dtype, on.torch, 1)
    ours = cast(Cascade, partial(cascaded_random_walk, precision=precision, backend=on.backend))
    first = inputs.first(1)
    verdict = judge(first, truth, *runner(ours, first, BOTH)(), precision=precision)
    facts: Facts = {"passed": verdict.passed, "error": verdict.error, "bound": verdict.bound}
    if verdict.error > STILL_TIMED * verdict.bound:
        return {**facts, "reason": verdict.told}
    run = runner(ours, inputs, BOTH)
    run()
    times = on.profiled(run)
    facts["device_seconds"], facts["launches"] = (sum(column) for column in zip(*times.values(), strict=True))
    facts["walk_seconds"] = sum(seconds for kernel, (seconds, _) in times.items() if "walk" in kernel)
    hosts = []
    for _ in range(5):  # seconds until a call returns, with nothing to wait for before
        on.synchronize()
        start = time.perf_counter()
        run()
        hosts.append(time.perf_counter() - start)
    facts["host_seconds"] = sorted(hosts)[2]
    facts["slowest"] = dict(sorted(times.items(), key=lambda item: -item[1][0])[:12])
    chip = machine_of({"machine": machine.describe(on)})
    return {**facts, "floor_seconds": floor_seconds(case, BOTH, chip)} if chip and dtype == "bf16" else facts


def asking(*questions: str, **wanted: Any) -> Callable[[Device], list[Item]]:
    """The tasks of questions with these attributes; quick: without peers that compile."""
    quick = wanted.pop("quick", False)

    def items(on: Device) -> list[Item]:
        tasks = [task for task in all_tasks(True, questions) if all(getattr(task, k) in v for k, v in wanted.items())]
        if quick:
            tasks = [replace(t, contenders=tuple(c for c in t.contenders if c in QUICK[True])) for t in tasks]
        if on.rehearsed:
            tasks = [_small(task) for task in tasks[:2]]
        return [({"task": str(task)}, partial(_rows, task, on)) for task in tasks]

    return items


def _small(task: Task) -> Task:
    case = task.case.but(nodes=min(task.case.nodes, 64), batch=1, walks=min(task.case.walks, 2))
    if isinstance(task, ProjectionTask):
        return replace(task, seconds=0.02, levels=(2,))
    if task.question == "models":
        return replace(task, seconds=0.02, dtype="fp32")
    return replace(task, seconds=0.02, case=case)


def _rows(task: Task, on: Device) -> Facts:
    rows = task.measure(on)
    failed = [f"{row.contender}: {row.reason}" for row in rows if row.status == FAILED]
    return {"rows": [row.as_dict() for row in rows], "passed": not failed, "reason": "; ".join(failed)}


def testing(options: Sequence[str], pieces: Sequence[str] = ()) -> Callable[[Device], list[Item]]:
    """Tests in processes of their own, a piece (-k) or a file of kernels and operators at a time."""

    def items(on: Device) -> list[Item]:
        rooms = [path for room in ("kernels", "ops") for path in (ROOT / "tests" / room).glob("test_*.py")]
        # the card's own tests are stages of their own, and faults are seeded in the C++ sources
        files = sorted(str(path.relative_to(ROOT)) for path in rooms if path.name not in ("test_faults.py", SOUND.name))
        runs = [["-k", piece] for piece in pieces] or [[file] for file in files]
        return [
            ({"tests": run[-1]}, partial(_pytest, on, [*options, *run])) for run in runs[: 1 if on.rehearsed else None]
        ]

    return items


def of_sanitizer(on: Device) -> list[Item]:
    """Hazards that racecheck sees are reported and are no failure: it also warns of what is ordered in other ways."""
    paths = [shutil.which("compute-sanitizer"), *(f"{folder}/compute-sanitizer" for folder in TOOLKITS)]
    found = next((path for path in paths if path and Path(path).exists()), None)
    if found is None:
        return [({"check": "compute-sanitizer"}, lambda: {"passed": None, "reason": "it is not installed"})]

    def check(tool: str, file: str) -> Facts:
        before = [found, "--tool", tool, "--error-exitcode", "9"]
        backend = ["--backends", "cuda"] if file == ONE_LAUNCH else []
        facts = _pytest(on, [file, "-m", "smoke", *backend], before, **WITHOUT_A_CACHE)
        return {**facts, "passed": None} if tool == "racecheck" else facts

    files = [(tool, f"tests/kernels/{file}") for tool, file in SANITIZED]
    if _no_launch(on) is None:
        files += [(tool, ONE_LAUNCH) for tool in ("memcheck", "racecheck")]
    return [({"check": tool, "tests": file}, partial(check, tool, file)) for tool, file in files]


def of_one_launch_tests(on: Device) -> list[Item]:
    """Capture, side streams, the device guard and every compiled kernel, a test at a time."""
    missing = _no_launch(on)
    if missing is not None:
        return [({"tests": ONE_LAUNCH}, lambda: {"passed": None, "reason": missing})]
    names = re.findall(r"def (test_\w+)", (ROOT / ONE_LAUNCH).read_text(encoding="utf-8"))
    return [({"tests": name}, partial(_pytest, on, [ONE_LAUNCH, "-k", name, "--backends", "cuda"])) for name in names]


def _no_launch(on: Device) -> str | None:
    """Why the tests of the one-launch kernels cannot be collected, or None."""
    return "it needs a card to be collected" if on.backend is None else BACKENDS["cuda"].unusable()


def _pytest(on: Device, options: Sequence[str], before: Sequence[str] = (), **environment: str) -> Facts:
    if find_spec("pytest") is None:
        return {"passed": None, "reason": "pytest is not installed"}
    # without what pyproject.toml adds: strict configuration would demand the plugin of its time limit
    command = [*before, sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--backends", on.backend or "reference", *options]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    facts: Facts = {"passed": done.returncode in (0, NOTHING_CHOSEN), "said": lines[-1] if lines else ""}
    return facts if facts["passed"] else {**facts, "reason": f"status {done.returncode}", "failures": failures[:20]}


ITEMS: dict[str, Callable[[Device], list[Item]]] = {
    "device": lambda on: [({"what": "device"}, lambda: {"head": header(on)})],
    "probe": lambda on: [({"what": "one sum of 16-bit products"}, lambda: _one_sum(on))],
    "rows": testing([str(SOUND)], ROWS),
    "kernels": of_kernels,
    "cuda": of_one_launch,
    "graphs": asking("replay", dtype=("bf16",)),
    "cases": asking("cascade", dtype=("bf16",), kind=("smooth",), quick=True),
    "table4": asking("models"),
    "memory": asking("memory", turn=(0,)),
    "soundness": testing([str(SOUND)], OTHERS),
    "compilers": asking("cascade", dtype=("bf16",), kind=("smooth",), case=(CASES["eval505"],)),
    "smoke": testing(["-m", "smoke"]),
    "projection": asking("projection"),
    "cases_fp32": asking("cascade", dtype=("bf16", "fp32"), quick=True),
    "graphs_fp32": asking("replay", dtype=("fp32",)),
    "overhead": asking("walk", "overhead"),
    "scaling": asking("scaling", "wide"),
    "cuda_tests": of_one_launch_tests,
    "sanitizer": of_sanitizer,
    "tests": testing([]),
}


def run(
    items: Sequence[Item],
    path: Path,
    seconds: float,
    workers: int = 1,
    synchronize: Callable[[], None] = lambda: None,
) -> int:
    """The exit status: LEFT_OUT if the time was up before all items had their line, LOST if the card, for which `synchronize`
    waits, answers no more after one that failed."""
    end, lock, lost = time.monotonic() + seconds, threading.Lock(), threading.Event()
    before = lines_of(path.read_text(encoding="utf-8")) if path.exists() else []
    ended = [line["asked"] for line in before if "asked" in line]

    def add(facts: Facts) -> None:
        with lock, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def answered(item: Item) -> bool:
        asked, answer = item
        if lost.is_set() or time.monotonic() > end:
            return False
        add({"begun": asked})
        try:
            facts = answer()
        except Exception as error:
            facts = {"passed": False, "reason": first_line(error)}
        if facts.get("passed") is False and not _answers(synchronize):
            lost.set()
        add({"asked": asked, **asked, **facts})
        print(asked, {key: value for key, value in facts.items() if key not in ("rows", "slowest")}, flush=True)
        return True

    for asked in (line["begun"] for line in before if "begun" in line and line["begun"] not in ended):
        add({"asked": asked, **asked, "passed": False, "reason": "ended its process"})
        ended.append(asked)
    waiting = [item for item in items if item[0] not in ended]
    with ThreadPoolExecutor(workers) as pool:
        done = all(pool.map(answered, waiting) if workers > 1 else map(answered, waiting))
    return 0 if done else LOST if lost.is_set() else LEFT_OUT


def _answers(synchronize: Callable[[], None]) -> bool:
    try:
        synchronize()
    except Exception as error:
        print(first_line(error), flush=True)
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_stages", description="One stage of gpu_suite.")
    parser.add_argument("stage", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="how many items at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="begin nothing after this time")
    options = parser.parse_args(arguments)
    on = device("cuda")
    path = options.out / f"{options.stage}.jsonl"
    return run(ITEMS[options.stage](on), path, options.seconds, options.workers, on.synchronize)


if __name__ == "__main__":
    raise SystemExit(main())
