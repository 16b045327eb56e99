"""By how much does a process grow during one call? Every contender in a fresh process, after a small warm-up.

The processes are forked from one that has imported everything and computed nothing, so no thread is lost by a fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

from benchmarks.cascade import CascadeTask
from benchmarks.clock import Call
from benchmarks.device import Device, device
from benchmarks.projection import ProjectionTask
from benchmarks.tasks import MEASURED, UNAVAILABLE, Row, Task, failure_of, first_line

PATIENCE = 120
# pages of their own for whatever is not small, so that freeing it shows (glibc)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PROCESS = Path("/proc/self")


class Grown(Task):
    """Peak extra memory: what the process (or a card's allocator) holds more at the worst moment than before the call."""

    def measure(self, on: Device) -> list[Row]:
        return [self._row(name, on) for name in self.contenders]

    def _row(self, name: str, on: Device) -> Row:
        title = self.title_of(name)
        if reason := self.why_not(name, on) or unseen(on):
            return self.row(name, title, status=UNAVAILABLE, reason=reason)
        # a card's allocator counts what each call takes; a process keeps what it has freed
        answer = _answer(self, name, on) if on.on_gpu else _in_a_process(self, name, on.name)
        if isinstance(answer, int):
            return self.row(name, title, status=MEASURED, memory=answer)
        return self.row(name, title, status=failure_of(name), reason=answer)


class MemoryTask(Grown, CascadeTask):
    """Of a cascade."""


class ProjectionMemoryTask(Grown, ProjectionTask):
    """Of Ψ."""


def unseen(on: Device) -> str | None:
    """Why the growth of a process cannot be seen on this system; many containers do not let a process restart its peak."""
    if on.on_gpu:
        return None
    try:
        _restart_peak()
        _status("VmHWM")
    except OSError as error:
        return f"this system does not show the peak memory of a call ({error})"
    return None


def growth(warm: Call, run: Call, on: Device) -> int:
    """Bytes by which this process grows during `run`."""
    # libraries, thread pools and compiled code are there before the call that counts
    warm()
    gc.collect()
    if on.on_gpu:
        return on.growth(run)
    # what was freed goes back to the system: kept by the allocator, it would be reused and the growth not seen
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    _restart_peak()
    before = _status("VmRSS")
    kept = run()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def _restart_peak() -> None:
    with open(PROCESS / "clear_refs", "w") as control:
        control.write("5")  # the high-water mark starts again at what is resident now


def _status(name: str) -> int:
    with open(PROCESS / "status") as lines:
        found = next((line for line in lines if line.startswith(f"{name}:")), None)
    if found is None:
        raise OSError(f"{PROCESS / 'status'} has no {name}")
    return int(found.split()[1]) * 1024


def _in_a_process(task: Task, contender: str, on: str) -> int | str:
    """Bytes, or why there are none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(tell, task, contender, on))
    with mock.patch.dict(os.environ, ALLOCATOR):  # for the server, which starts with the first process
        process.start()
    tell.close()
    try:
        answer: int | str = told.recv()
    except EOFError:
        process.join()
        alarmed = process.exitcode == -signal.SIGALRM
        answer = f"not done after {PATIENCE} s" if alarmed else "killed: out of memory"
    process.join()
    return answer


def _measure(tell: Connection, task: Task, contender: str, on: str) -> None:
    signal.alarm(PATIENCE)
    tell.send(_answer(task, contender, device(on)))


def _answer(task: Task, contender: str, on: Device) -> int | str:
    try:
        return growth(*task.growing(contender, on), on)
    except Exception as error:
        return first_line(error)
