"""How much does a process grow during one call? Every contender in a fresh process, after a small warm-up.

`python -m benchmarks.memory` is where these processes come from: it has imported everything, computed nothing (so no
thread runs that a fork could lose), and forks a child for each line of JSON that it reads.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import cascade, psi
from benchmarks.cases import Case
from benchmarks.clock import Call
from benchmarks.peers import CONTENDERS, Setting
from benchmarks.tasks import DTYPES, FAILED, MEASURED, UNAVAILABLE, Row, Task

PATIENCE = 120
# pages of their own for whatever is not small, so that freeing it shows (glibc)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PROCESS = Path("/proc/self")
# what grows: functions that give a small call, and the call that counts
SUBJECTS = {"cascade": cascade.growing, "psi": psi.growing}


@dataclass(frozen=True)
class MemoryTask(Task):
    """Peak extra memory of a cascade: what the process (or the GPU's allocator) holds more at the worst moment than
    before the call."""

    def measure(self, device: str) -> list[Row]:
        rows = []
        for name in self.contenders:
            title = CONTENDERS[name].title
            setting = Setting(self.case, DTYPES[self.dtype], device, self.direction)
            asked = {"kind": self.kind, "dtype": self.dtype, "direction": self.direction}
            rows.append(grown(self, "cascade", name, title, device, asked, CONTENDERS[name].why_not(setting)))
        return rows


@dataclass(frozen=True)
class PsiMemoryTask(psi.PsiTask):
    """The same of Ψ."""

    def measure(self, device: str) -> list[Row]:
        asked = {"side": self.side, "levels": self.levels, "direction": self.direction, "dtype": self.dtype}
        return [grown(self, "psi", name, psi.title_of(name), device, asked) for name in self.contenders]


def grown(
    task: Task,
    subject: str,
    contender: str,
    title: str,
    device: str,
    asked: Mapping[str, object],
    why_not: str | None = None,
) -> Row:
    """The row of one contender, measured in a process of its own."""
    why_not = why_not or unseen(device)
    if why_not:
        return task.row(contender, title, status=UNAVAILABLE, reason=why_not)
    question = {"subject": subject, "case": asdict(task.case), "contender": contender, "device": device, **asked}
    answer = _ask(question)
    if "bytes" in answer:
        return task.row(contender, title, status=MEASURED, memory=answer["bytes"])
    # a peer may fail in any way; ours may not fail at all
    status = FAILED if contender.split("/")[0] == "ours" else UNAVAILABLE
    return task.row(contender, title, status=status, reason=str(answer["error"])[:160])


def unseen(device: str) -> str | None:
    """Why the growth of a process cannot be seen on this system; many containers do not let a process restart its peak."""
    if device != "cpu":
        return None
    try:
        _restart_peak()
        _status("VmHWM")
    except OSError as error:
        return f"this system does not show the peak memory of a call ({error})"
    return None


def growth(warm: Call, run: Call, device: str) -> int:
    """Bytes by which this process grows during `run`."""
    # libraries, thread pools and compiled code are there before the call that counts
    warm()
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = run()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    _restart_peak()
    before = _status("VmRSS")
    kept = run()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def _give_back() -> None:
    """What was freed goes back to the system: kept by the allocator, it would be reused and the growth not seen."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _restart_peak() -> None:
    with open(PROCESS / "clear_refs", "w") as control:
        control.write("5")  # the high-water mark starts again at what is resident now


def _status(name: str) -> int:
    with open(PROCESS / "status") as lines:
        found = next((line for line in lines if line.startswith(f"{name}:")), None)
    if found is None:
        raise OSError(f"{PROCESS / 'status'} has no {name}")
    return int(found.split()[1]) * 1024


_SOURCE: subprocess.Popen | None = None


def _ask(question: Mapping[str, object]) -> dict[str, object]:
    global _SOURCE
    if _SOURCE is None or _SOURCE.poll() is not None:
        _SOURCE = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
            env={**os.environ, **ALLOCATOR},
        )  # fmt: skip
        atexit.register(_SOURCE.kill)
    assert _SOURCE.stdin is not None
    assert _SOURCE.stdout is not None
    try:
        _SOURCE.stdin.write(json.dumps(question) + "\n")
        _SOURCE.stdin.flush()
        return json.loads(_SOURCE.stdout.readline())
    except (OSError, json.JSONDecodeError):
        return {"error": "the process that measures memory ended"}


def _measure(question: dict) -> dict[str, object]:
    signal.alarm(PATIENCE)
    try:
        subject, device = question.pop("subject"), question["device"]
        question["case"] = Case(**question["case"])
        return {"bytes": growth(*SUBJECTS[subject](**question), device)}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        signal.alarm(0)


def _measure_in_a_child(question: dict) -> dict[str, object]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, json.dumps(_measure(question)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        said = told.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said:
        return json.loads(said)
    return {"error": f"not done after {PATIENCE} s" if ended == -signal.SIGALRM else "killed: out of memory"}


def main() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        # a GPU does not survive a fork; there the process answers itself, and its allocator counts what each call takes
        answer = _measure_in_a_child(question) if question["device"] == "cpu" else _measure(question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
