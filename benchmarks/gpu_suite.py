"""Everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR [--stage NAME ...]`.

Runs from a checkout without installing. Every stage is a process of its own with a time limit; it writes
DIR/STAGE.json as soon as it is done (the long ones after every measurement), and a stage that fails or runs out of
time does not stop the next. DIR/suite.json says how each one ended.

A call takes at most nine minutes. FIRST, which fits one call even if every stage needs all of its share, has what nobody
should go without: versions and clocks, correctness and soundness, every peer on a case at least, graph replay, peak memory,
the fraction of the floor, Table 4. What costs minutes of compilers is whole in LATER only: torch.compile and FlexAttention
beyond `eval505` in bf16 (its backward too, if they are quick), their graph replays, the test suite beyond its smoke tests.
Stages of LATER begin in what time is left, and in calls with --resume and the same DIR, until nothing is left. A stage ends
with status 3 if its own clock made it leave something out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MINUTES = 9.0
LEAVE = 8.0  # seconds kept for the last words
LEAST = 10.0  # seconds without which no stage is begun
OUT_OF_TIME, NOT_STARTED = "out of time", "not started: no time left"
LEFT_OUT = 3  # exit status of a stage that stopped itself before it had everything


@dataclass(frozen=True)
class Stage:
    """A command with {out} for its results file and {seconds} for the time it may take; `seconds` is its share."""

    name: str
    what: str
    seconds: float
    command: tuple[str, ...]


def _stage(name: str, what: str, seconds: float, module: str, *options: str) -> Stage:
    command = ("-m", f"benchmarks.gpu.{module}", "--out", "{out}", "--seconds", "{seconds}", *options)
    return Stage(name, what, seconds, command)


FIRST = (
    _stage("device", "device, clocks, versions", 20, "device"),
    _stage("rows", "every launch row of walks and Ψ once, against fp64", 70, "rows"),
    _stage("graphs", "graph replay of the small cases, beside dense eager and SDPA", 60, "cases", "--question", "replay",
           "--peers", "quick"),
    _stage("cases", "the cases in bf16 beside dense eager and SDPA", 65, "cases", "--peers", "quick", "--dtype", "bf16"),
    _stage("kernels", "time of every kernel, fraction of floor", 30, "kernels"),
    _stage("correctness", "the smoke tests on the GPU backend", 70, "suite_tests", "--smoke"),
    _stage("soundness", "NaN poison, guard bands, repeats, compute-sanitizer", 60, "soundness"),
    _stage("compilers", "one case beside everyone, torch.compile and FlexAttention too", 85, "cases", "--case", "eval505",
           "--dtype", "bf16"),
    _stage("memory", "peak extra memory", 35, "cases", "--question", "memory"),
    _stage("table4", "Table 4, the diffusion row", 35, "cases", "--question", "models"),
)  # fmt: skip
LATER = (
    _stage("psi", "Ψ: the five levels by graph replay, fraction of floor", 45, "psi"),
    _stage(
        "cases_fp32",
        "the cases in fp32 beside dense eager and SDPA",
        65,
        "cases",
        "--peers",
        "quick",
        "--dtype",
        "fp32",
    ),
    _stage("ceilings", "what the card can do at best", 30, "ceilings"),
    _stage("walk", "one walk", 15, "cases", "--question", "walk"),
    _stage("overhead", "a call on 16 nodes", 15, "cases", "--question", "overhead"),
    _stage("scaling", "one size grows, the others stay", 90, "cases", "--question", "scaling"),
    _stage("psi_peers", "Ψ beside the layers, eager and compiled", 90, "cases", "--question", "psi"),
    _stage("psi_memory", "peak extra memory of Ψ", 40, "cases", "--question", "psi_memory"),
    _stage("networks", "DifNet-18 and -50 in 16 bits, two streams against one", 60, "networks"),
    _stage("everyone", "the cases beside everyone, torch.compile and FlexAttention too", 200, "cases"),
    _stage("everyone_replayed", "the same by graph replay", 150, "cases", "--question", "replay"),
    _stage("sweep", "other tile sizes, for walk/rows.py", 45, "sweep"),
    _stage("tests", "the whole test suite, as far as the time goes", 400, "suite_tests"),
    _stage("experiments", "networks compared on generated images", 580, "networks", "--experiments"),
)
STAGES = FIRST + LATER
NAMES = tuple(stage.name for stage in STAGES)
ALONE = ("experiments",)  # takes a call of its own: --stage experiments --minutes 10


def no_gpu() -> str | None:
    """Why there is nothing to measure here, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    from difnet_kernels.backends import triton

    return triton.unusable()


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def forget(stage: Stage, folder: Path) -> None:
    """Remove what earlier calls have measured for the stage."""
    for path in (folder / f"{stage.name}.json", *folder.glob(f"{stage.name}.*.json")):
        path.unlink(missing_ok=True)


def run(stage: Stage, folder: Path, seconds: float) -> dict[str, object]:
    """One stage, stopped after `seconds` with all that it has started; its output goes to DIR/STAGE.log."""
    out = folder / f"{stage.name}.json"
    inner = max(1.0, seconds - 5.0)  # the stage stops by itself before it is stopped
    command = [sys.executable, *(part.format(out=out, seconds=f"{inner:.0f}") for part in stage.command)]
    start = time.monotonic()
    with (folder / f"{stage.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # a child of the stage that lives on would hold the GPU's memory and disturb the next stage
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ended = {0: "done", LEFT_OUT: OUT_OF_TIME, None: OUT_OF_TIME}.get(code, f"failed with status {code}")
    return {
        "stage": stage.name,
        "what": stage.what,
        "ended": ended,
        "seconds": round(time.monotonic() - start, 1),
        "results": out.name if out.exists() else None,
    }


def earlier(folder: Path) -> dict[str, dict[str, object]]:
    """How the stages of earlier calls with this folder ended, by name."""
    path = folder / "suite.json"
    if not path.exists():
        return {}
    return {entry["stage"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["stages"]}


def has_failed(ended: dict[str, object] | None) -> bool:
    return ended is not None and str(ended["ended"]).startswith("failed")


def write(folder: Path, ended: dict[str, dict[str, object]]) -> None:
    listed = [ended[name] for name in NAMES if name in ended]
    (folder / "suite.json").write_text(json.dumps({"stages": listed}, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one JSON file per stage")
    parser.add_argument(
        "--stage",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help=f"some of {', '.join(NAMES)} (default: all but {', '.join(ALONE)})",
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for this call (default {MINUTES:g})")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what is done in --out; what ran out of time gets twice as long"
    )
    options = parser.parse_args(arguments)
    reason = no_gpu()
    if reason:
        print(
            f"gpu_suite: nothing was measured: {reason}. It needs an NVIDIA GPU (sm_80 or later) and Triton.",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes - LEAVE
    ended = earlier(options.out)
    chosen = options.stage or [name for name in NAMES if name not in ALONE]
    asked = [stage for stage in STAGES if stage.name in chosen]
    if options.resume:
        asked = [stage for stage in asked if ended.get(stage.name, {}).get("ended") != "done"]
        # what failed would mostly fail again: it must not take the time of what has not run yet
        asked.sort(key=lambda stage: has_failed(ended.get(stage.name)))
    for stage in asked:
        left = end - time.monotonic()
        if left < LEAST:
            if stage.name not in ended:
                ended[stage.name] = {"stage": stage.name, "what": stage.what, "ended": NOT_STARTED, "results": None}
        else:
            print(f"{stage.name}: {stage.what} ...", flush=True)
            again = options.resume and ended.get(stage.name, {}).get("ended") == OUT_OF_TIME
            if not again:
                forget(stage, options.out)
            ended[stage.name] = run(stage, options.out, min(stage.seconds * (2 if again else 1), left))
            print(f"  {ended[stage.name]['ended']} after {ended[stage.name]['seconds']} s", flush=True)
        write(options.out, ended)
    left_out = [stage.name for stage in asked if ended[stage.name]["ended"] in (NOT_STARTED, OUT_OF_TIME)]
    if left_out:
        print(f"not finished: {', '.join(left_out)}. Go on with --resume.")
    print("For the documents: --out a folder of benchmarks/results, then python -m benchmarks.report.")
    return 1 if any(has_failed(ended[stage.name]) for stage in asked) else 0


if __name__ == "__main__":
    raise SystemExit(main())
