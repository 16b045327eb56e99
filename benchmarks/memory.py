"""By how much does a process grow during one call? Every contender in a fresh process, after a small warm-up.

The processes are forked from one that has imported everything and computed nothing, so no thread is lost by a fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import cascade, projection
from benchmarks.clock import Call
from benchmarks.device import Device, device
from benchmarks.peers import CONTENDERS, Setting
from benchmarks.tasks import DTYPES, MEASURED, UNAVAILABLE, Row, Task, failure_of, first_line

PATIENCE = 120
# pages of their own for whatever is not small, so that freeing it shows (glibc)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class MemoryTask(Task):
    """Peak extra memory of a cascade: what the process (or the GPU's allocator) holds more at the worst moment than
    before the call."""

    def measure(self, on: Device) -> list[Row]:
        setting = Setting(self.case, DTYPES[self.dtype], on, self.direction)
        asked = {name: CONTENDERS[name].why_not(setting) for name in self.contenders}
        return [grown(self, name, CONTENDERS[name].title, cascade.growing, on, asked[name]) for name in asked]


@dataclass(frozen=True)
class ProjectionMemoryTask(projection.ProjectionTask):
    """The same of Ψ."""

    def measure(self, on: Device) -> list[Row]:
        return [grown(self, name, projection.title_of(name), projection.growing, on) for name in self.contenders]


def grown(
    task: Task,
    contender: str,
    title: str,
    growing: Callable[..., tuple[Call, Call]],
    on: Device,
    why_not: str | None = None,
) -> Row:
    """The row of one contender, measured in a process of its own. growing: gives a small call, and the one that counts."""
    why_not = why_not or unseen(on)
    if why_not:
        return task.row(contender, title, status=UNAVAILABLE, reason=why_not)
    # a GPU's allocator counts what each call takes; a process keeps what it has freed
    answer = _answer(growing, task, contender, on) if on.on_gpu else _in_a_process(growing, task, contender, on.name)
    if isinstance(answer, int):
        return task.row(contender, title, status=MEASURED, memory=answer)
    return task.row(contender, title, status=failure_of(contender), reason=answer)


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


def _in_a_process(growing: Callable[..., tuple[Call, Call]], task: Task, contender: str, name: str) -> int | str:
    """Bytes, or why there are none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = {key: os.environ.get(key) for key in ALLOCATOR}
    os.environ.update(ALLOCATOR)  # for the server, which starts with the first process
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(tell, growing, task, contender, name))
    try:
        process.start()
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    tell.close()
    try:
        answer = told.recv()
    except EOFError:
        process.join()
        alarmed = process.exitcode == -signal.SIGALRM
        answer = f"not done after {PATIENCE} s" if alarmed else "killed: out of memory"
    process.join()
    return answer


def _measure(
    tell: Connection, growing: Callable[..., tuple[Call, Call]], task: Task, contender: str, name: str
) -> None:
    signal.alarm(PATIENCE)
    tell.send(_answer(growing, task, contender, device(name)))


def _answer(growing: Callable[..., tuple[Call, Call]], task: Task, contender: str, on: Device) -> int | str:
    try:
        return growth(*growing(task, contender, on), on)
    except Exception as error:
        return first_line(error)
