"""The whole test suite, as `make test` runs it: every room in a process of its own, one process for each core at a time.

python tests/rooms.py [ROOM ...]      all rooms, or the named ones; whole outputs lie in out/tests/ROOM.log

Triton decides at import whether it interprets or compiles, so the two halves of tests/triton are two rooms.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "out" / "tests"


@dataclass(frozen=True)
class Room:
    paths: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def aarch64_tools_missing() -> str | None:
    """What tests/aarch64 needs and is not here; rooms know nothing of torch, so they ask for themselves."""
    needs = [("g++-aarch64-linux-gnu", ["aarch64-linux-gnu-g++"])]
    needs.append(("qemu-user-static", ["qemu-aarch64-static", "qemu-aarch64"]))
    missing = [package for package, programs in needs if not any(map(shutil.which, programs))]
    return f"no {' and no '.join(missing)}" if missing else None


# of the operators, what another backend may change
TORCH = [f"tests/ops/test_{name}.py" for name in ("operators", "compile", "bias_and_mask")]
# the longest first, so that no core waits long for the last one
ROOMS = {
    "kernels": Room(["tests/kernels"]),
    "triton-compiled": Room(["tests/triton"]),
    "cuda": Room(["tests/cuda", "--ignore-glob=*binaries.py"]),
    "triton-interpreted": Room(["tests/triton"], {"TRITON_INTERPRET": "1"}),
    "models": Room(["tests/models"]),
    "project": Room(["tests/benchmarks", *sorted(f"tests/{path.name}" for path in ROOT.glob("tests/test_*.py"))]),
    "ops": Room(["tests/ops"]),
    # every case that fits, on the twin of the CUDA kernels
    "cuda-host": Room(["tests/kernels", *TORCH, "--backends", "cuda-host", "-k", "cuda-host"]),
    # what nvcc made of the CUDA kernels
    "cuda-binaries": Room(sorted(f"tests/cuda/{path.name}" for path in ROOT.glob("tests/cuda/test_*binaries.py"))),
}
# the CPU kernels compiled for 64-bit ARM, in an emulator
FILES = ("test_forward.py", "test_backward.py", "test_projection_kernels.py")
if (missing := aarch64_tools_missing()) is None:
    paths = ["tests/aarch64", *(f"tests/kernels/{file}" for file in FILES)]
    ROOMS["aarch64"] = Room([*paths, "--backends", "aarch64", "-m", "smoke"])
else:
    print(f"LEFT OUT: {missing}; nothing is tested on 64-bit ARM here", flush=True)
if platform.machine() != "x86_64" or shutil.which(os.environ.get("CXX", "g++")) is None:
    del ROOMS["cuda"], ROOMS["cuda-host"]
    print("LEFT OUT: the twin of the CUDA kernels needs g++ on x86-64; nothing about them is tested here", flush=True)


def run(name: str) -> bool:
    """Whether every test of a room passed; its last lines are printed, on a failure all of them."""
    room, started, log = ROOMS[name], time.perf_counter(), LOGS / f"{name}.log"
    # rooms share the cores: a thread that waits must not spin
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **room.environment}
    with log.open("w") as out:
        command = [sys.executable, "-m", "pytest", "--durations=15", "--durations-min=3", *room.paths]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    passed = done.returncode == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    said = [line for line in lines if line.startswith("walk: ")] + lines[-1:] if passed else lines
    verdict = "passed" if passed else "FAILED"
    print("\n".join([f"==== {name} {verdict} in {time.perf_counter() - started:.0f} s", *said]), flush=True)
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/rooms.py", description="The whole test suite.")
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rooms if name not in ROOMS]
    if unknown:
        parser.error(f"rooms must be among {', '.join(ROOMS)}; got {', '.join(unknown)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [name for name, passed in zip(options.rooms, pool.map(run, options.rooms), strict=True) if not passed]
    print(f"==== FAILED: {', '.join(failed)}" if failed else "==== all rooms passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
