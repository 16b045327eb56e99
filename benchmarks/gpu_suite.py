"""Everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR --minutes 8`.

Runs from a checkout without installing. Every stage runs in processes of its own (`benchmarks.gpu_stages`), which add a
line to a file as soon as they know something: what is cut short keeps what it has, and what ends its process is one
failure, not the end of the stage. DIR.tar.gz, written after every stage, is all that has to be brought back;
`python -m benchmarks.report --archive DIR.tar.gz` puts it into the documents.

The stages come in the order of their value. The shares of FIRST sum to less than eight minutes, so that a call under
`timeout 500` has all of them; those of LATER begin in what time is left, and in a second call with --resume.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.device import REHEARSAL

ROOT = Path(__file__).parent.parent
MINUTES = 8.0
LEAVE = 6.0  # seconds kept for the last words
LEAST = 8.0  # seconds without which no stage is begun
DONE, OUT_OF_TIME, NOT_STARTED = "done", "out of time", "not started"
LEFT_OUT = 3  # exit status of a process that stopped itself before it had everything
LOST = 4  # and of one whose card answers no more: an error of a kernel stays with its process
LOG_END = 20_000  # characters of a log that are brought back


@dataclass(frozen=True)
class Stage:
    """`seconds` is its share of a call; so many `workers` share its items, if these are processes."""

    name: str
    what: str
    seconds: float
    workers: int = 1


FIRST = (
    Stage("device", "versions and clocks", 15),
    Stage("probe", "how the matrix units round their sums", 20),
    Stage("rows", "launch rows of walks and Ψ against fp64", 80, workers=8),
    Stage("kernels", "kernels, launches and host time of a cascade", 45),
    Stage("cuda", "the one-launch kernels beside Triton and SDPA", 48),
    Stage("graphs", "the small cases by graph replay", 60),
    Stage("cases", "the cases in bf16 beside dense eager and SDPA", 70),
    Stage("table4", "Table 4", 40),
    Stage("memory", "peak extra memory", 25),
    Stage("soundness", "tests that need a card: poison, guard bands, streams, graphs", 55, workers=8),
    Stage("smoke", "the smoke tests", 15, workers=8),
)
LATER = (
    Stage("cuda_tests", "tests of the one-launch kernels that need a card", 60, workers=4),
    Stage("compilers", "one case beside torch.compile and FlexAttention, too", 45),
    Stage("projection", "Ψ beside the layers, eager and compiled", 70),
    Stage("cases_fp32", "the cases in fp32, and other inputs", 70),
    Stage("graphs_fp32", "fp32 by graph replay", 40),
    Stage("overhead", "one walk, and a call on 16 nodes", 20),
    Stage("scaling", "one size grows, the others stay; wide embeddings", 90),
    Stage("sanitizer", "compute-sanitizer", 90, workers=4),
    Stage("tests", "the tests of kernels and operators", 400, workers=8),
)
STAGES = FIRST + LATER
NAMES = tuple(stage.name for stage in STAGES)


def no_gpu() -> str | None:
    """Why there is nothing to measure here, or None."""
    if os.environ.get(REHEARSAL):
        return None
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    from difnet_kernels.backends import BACKENDS

    # what Triton measures fails item by item where it alone is missing
    return None if BACKENDS["cuda"].unusable() is None else BACKENDS["triton"].unusable()


def once(stage: Stage, folder: Path, seconds: float) -> int | None:
    """The exit status of a process that runs the stage; None if it was stopped after `seconds`, with all that it started."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    threads = str(max(1, (os.cpu_count() or 1) // stage.workers))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "benchmarks.gpu_stages", stage.name, "--out", str(folder.resolve())]
    command += ["--workers", str(stage.workers), "--seconds", f"{seconds - 3:.1f}"]
    with (folder / f"{stage.name}.log").open("ab") as log:
        streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # a child that lives on would hold the card's memory and disturb the next stage
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(stage: Stage, folder: Path, seconds: float) -> dict[str, Any]:
    """One stage. A process that dies is begun again, without what it died of, as long as it gets on."""
    begun, known = time.monotonic(), -1
    while True:
        status = once(stage, folder, begun + seconds - time.monotonic())
        found = entries(folder, stage.name)
        left = begun + seconds - time.monotonic()
        if status in (0, LEFT_OUT, None) or len(found) <= known or left < LEAST:
            break
        known = len(found)
    ended = {0: DONE, LEFT_OUT: OUT_OF_TIME, None: OUT_OF_TIME}.get(status, f"failed with status {status}")
    failed = sum(entry.get("passed") is False for entry in found)
    return {"stage": stage.name, "what": stage.what, "ended": ended, "failed": failed,
            "seconds": round(time.monotonic() - begun, 1)}  # fmt: skip


def lines_of(text: str) -> list[dict[str, Any]]:
    """What a process has written; a line that was cut short does not count."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def entries(folder: Path, name: str) -> list[dict[str, Any]]:
    """What is known of a stage."""
    path = folder / f"{name}.jsonl"
    lines = lines_of(path.read_text(encoding="utf-8")) if path.exists() else []
    return [line for line in lines if "begun" not in line]


def pack(folder: Path) -> Path:
    """One archive of what is known and of the ends of the logs."""
    for log in folder.glob("*.log"):
        text = log.read_text(encoding="utf-8", errors="replace")
        log.with_suffix(".log.end").write_text(text[-LOG_END:], encoding="utf-8")
    archive = folder.with_name(folder.name + ".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        for pattern in ("*.json", "*.jsonl", "*.log.end"):
            for path in sorted(folder.glob(pattern)):
                tar.add(path, path.name)
    return archive


def kept(archive: Path, folder: Path) -> Path:
    """Write the results file of an archive into `folder`, named by the card. Of every row the newest counts."""
    from benchmarks.record import write

    said: dict[str, list[dict[str, Any]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".jsonl") and (file := tar.extractfile(member)) is not None:
                said[member.name.split(".")[0]] = lines_of(file.read().decode())
    heads = [line["head"] for line in said.get("device", []) if "head" in line]
    if not heads:
        raise ValueError(f"{archive} does not say which card it is from: its stage `device` did not end.")
    if "rehearsal" in heads[-1]["machine"]["device"] and folder.name == "results":
        raise ValueError(f"{archive} is from a rehearsal: its times are those of a CPU in a card's place.")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name in NAMES:
        for line in said.get(name, []):
            rows.update({(row["task"], row["contender"]): row for row in line.get("rows", [])})
    others = [{"stage": name, **line} for name in NAMES for line in said.get(name, [])
              if not {"rows", "head", "begun"} & line.keys()]  # fmt: skip
    card = "".join(c if c.isalnum() else "_" for c in heads[-1]["machine"]["device"].lower()).strip("_")
    path = folder / f"gpu_{card.removeprefix('nvidia_')}.json"
    write(path, {**heads[-1], "entries": others}, rows.values(), complete=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; OUT.tar.gz holds them all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for this call (default {MINUTES:g})")
    parser.add_argument("--stage", nargs="+", choices=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--resume", action="store_true", help="go on with what is not finished in OUT")
    options = parser.parse_args(arguments)
    reason = no_gpu()
    if reason:
        needs = "an NVIDIA GPU (sm_80 or later), and Triton or a library built with nvcc"
        told = f"gpu_suite: nothing was measured: {reason}. It needs {needs}."
        print(told, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes - LEAVE
    path = options.out / "suite.json"
    ended = json.loads(path.read_text(encoding="utf-8")) if path.exists() and options.resume else {}
    asked = [stage for stage in STAGES if stage.name in (options.stage or NAMES)]
    asked = [stage for stage in asked if ended.get(stage.name, {}).get("ended") != DONE]
    if os.environ.get(REHEARSAL):
        asked = [replace(stage, workers=1, seconds=300) for stage in asked]  # a CPU need not keep to the shares
    for stage in asked:
        left = end - time.monotonic()
        if left < LEAST:
            ended.setdefault(stage.name, {"stage": stage.name, "what": stage.what, "ended": NOT_STARTED})
            continue
        if not options.resume:
            for old in options.out.glob(f"{stage.name}.*"):
                old.unlink()
        print(f"{stage.name}: {stage.what} ...", flush=True)
        found = ended[stage.name] = run(stage, options.out, min(stage.seconds, left))
        print(f"  {found['ended']} after {found['seconds']} s, {found['failed']} failed", flush=True)
        path.write_text(json.dumps(ended, indent=1) + "\n", encoding="utf-8")
        pack(options.out)
    path.write_text(json.dumps(ended, indent=1) + "\n", encoding="utf-8")
    unfinished = [stage.name for stage in asked if ended[stage.name]["ended"] in (NOT_STARTED, OUT_OF_TIME)]
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}. Go on with --resume.")
    print(f"{pack(options.out)} has everything. Next, on any machine: python -m benchmarks.report --archive FILE")
    bad = [name for name, one in ended.items() if one["ended"].startswith("failed") or one.get("failed")]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
