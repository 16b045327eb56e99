"""Everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR [--stage NAME ...]`.

Runs from a checkout without installing. Every stage is a process of its own with a time limit; it writes
DIR/STAGE.json as soon as it is done (the long ones after every measurement), and a stage that fails or runs out of
time does not stop the next. DIR/suite.json says how each one ended. The whole takes at most nine minutes; what did
not fit is named there.
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
    ended = {0: "done", None: "out of time"}.get(code, f"failed with status {code}")
    return {
        "stage": stage.name,
        "what": stage.what,
        "ended": ended,
        "seconds": round(time.monotonic() - start, 1),
        "results": out.name if out.exists() else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one JSON file per stage")
    parser.add_argument(
        "--stage", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for the whole (default {MINUTES:g})")
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
    report = []
    for stage in (stage for stage in STAGES if stage.name in options.stage):
        left = end - time.monotonic()
        if left < 10:
            report.append(
                {"stage": stage.name, "what": stage.what, "ended": "not started: no time left", "results": None}
            )
        else:
            print(f"{stage.name}: {stage.what} ...", flush=True)
            report.append(run(stage, options.out, min(stage.seconds, left)))
            print(f"  {report[-1]['ended']} after {report[-1]['seconds']} s", flush=True)
        (options.out / "suite.json").write_text(json.dumps({"stages": report}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(entry["ended"] in ("done", "out of time") for entry in report) else 1


if __name__ == "__main__":
    raise SystemExit(main())
