"""Everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR [--stage NAME ...]`.

Runs from a checkout without installing. Every stage is a process of its own with a time limit; it writes
DIR/STAGE.json as soon as it is done (the long ones after every measurement), and a stage that fails or runs out of
time does not stop the next. DIR/suite.json says how each one ended. A call takes at most nine minutes; what did not fit is
named there, and a later call with --resume and the same DIR goes on with it.
"""

from __future__ import annotations

import argparse
import json
import os
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


@dataclass(frozen=True)
class Stage:
    """A command with {out} for its results file and {seconds} for the time it may take; `seconds` is its share."""

    name: str
    what: str
    seconds: float
    command: tuple[str, ...]


STAGES = (
    Stage("device", "device, clocks, versions", 30, ("-m", "benchmarks.gpu.device", "--out", "{out}")),
    Stage("rows", "every launch row once, against fp64", 75, ("-m", "benchmarks.gpu.rows", "--out", "{out}")),
    Stage(
        "correctness", "the smoke tests on the GPU backends", 90,
        ("-m", "benchmarks.gpu.suite_tests", "--out", "{out}", "--seconds", "{seconds}", "--smoke"),
    ),
    Stage("psi", "Ψ: every launch row against fp64, the five levels", 50, ("-m", "benchmarks.gpu.psi", "--out", "{out}",
    "--seconds", "{seconds}")),
    Stage("ceilings", "what the card can do at best, and torch's attention kernels", 60,
          ("-m", "benchmarks.gpu.ceilings", "--out", "{out}", "--seconds", "{seconds}")),
    Stage("graphs", "graph replay of the small cases", 60, ("-m", "benchmarks.gpu.graphs", "--out", "{out}",
    "--seconds", "{seconds}")),
    Stage(
        "cases", "the cases beside dense eager and SDPA", 110,
        ("-m", "benchmarks.gpu.cases", "--out", "{out}", "--seconds", "{seconds}", "--peers", "quick"),
    ),
    Stage("kernels", "time of every kernel, fraction of floor", 30, ("-m", "benchmarks.gpu.kernels", "--out", "{out}")),
    Stage("soundness", "NaN poison, guard bands, repeats, compute-sanitizer", 70,
          ("-m", "benchmarks.gpu.soundness", "--out", "{out}", "--seconds", "{seconds}")),
    Stage(
        "memory", "peak extra memory", 40,
        ("-m", "benchmarks.gpu.cases", "--out", "{out}", "--seconds", "{seconds}", "--question", "memory"),
    ),
    Stage(
        "table4", "Table 4, the diffusion row", 40,
        ("-m", "benchmarks.gpu.cases", "--out", "{out}", "--seconds", "{seconds}", "--question", "models"),
    ),
    Stage("networks", "DifNet-18 and -50 in 16 bits, two streams against one", 60,
          ("-m", "benchmarks.gpu.networks", "--out", "{out}", "--seconds", "{seconds}")),
    Stage(
        "compiled_peers", "the cases beside torch.compile and FlexAttention", 90,
        ("-m", "benchmarks.gpu.cases", "--out", "{out}", "--seconds", "{seconds}", "--peers", "compiled"),
    ),
    Stage("sweep", "other tile sizes, for launch_rows.py", 45, ("-m", "benchmarks.gpu.sweep", "--out", "{out}",
    "--seconds", "{seconds}")),
    Stage("tests", "the whole test suite, as far as the time goes", 400,
          ("-m", "benchmarks.gpu.suite_tests", "--out", "{out}", "--seconds", "{seconds}")),
    # nine minutes of its own: --stage experiments --minutes 10
    Stage("experiments", "networks compared on generated images", 580,
          ("-m", "benchmarks.gpu.networks", "--out", "{out}", "--experiments")),
)  # fmt: skip
NAMES = tuple(stage.name for stage in STAGES)


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


def run(stage: Stage, folder: Path, seconds: float) -> dict[str, object]:
    """One stage, stopped after `seconds`; its output goes to DIR/STAGE.log."""
    out = folder / f"{stage.name}.json"
    out.unlink(missing_ok=True)
    inner = max(1.0, seconds - 5.0)  # the stage stops by itself before it is stopped
    command = [sys.executable, *(part.format(out=out, seconds=f"{inner:.0f}") for part in stage.command)]
    start = time.monotonic()
    with (folder / f"{stage.name}.log").open("w") as log:
        try:
            code: int | None = subprocess.run(
                command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    ended = {0: "done", None: OUT_OF_TIME}.get(code, f"failed with status {code}")
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


def write(folder: Path, ended: dict[str, dict[str, object]]) -> None:
    listed = [ended[name] for name in NAMES if name in ended]
    (folder / "suite.json").write_text(json.dumps({"stages": listed}, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one JSON file per stage")
    parser.add_argument(
        "--stage", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for this call (default {MINUTES:g})")
    parser.add_argument("--resume", action="store_true", help="leave out the stages that are done in --out")
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
    asked = [stage for stage in STAGES if stage.name in options.stage]
    if options.resume:
        asked = [stage for stage in asked if ended.get(stage.name, {}).get("ended") != "done"]
    for stage in asked:
        left = end - time.monotonic()
        if left < LEAST:
            if stage.name not in ended:
                ended[stage.name] = {"stage": stage.name, "what": stage.what, "ended": NOT_STARTED, "results": None}
        else:
            print(f"{stage.name}: {stage.what} ...", flush=True)
            ended[stage.name] = run(stage, options.out, min(stage.seconds, left))
            print(f"  {ended[stage.name]['ended']} after {ended[stage.name]['seconds']} s", flush=True)
        write(options.out, ended)
    left_out = [stage.name for stage in asked if ended[stage.name]["ended"] in (NOT_STARTED, OUT_OF_TIME)]
    if left_out:
        print(f"not finished: {', '.join(left_out)}. Go on with --resume.")
    return 1 if any(str(ended[stage.name]["ended"]).startswith("failed") for stage in asked) else 0


if __name__ == "__main__":
    raise SystemExit(main())
