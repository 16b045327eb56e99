"""Programs that run kernels of the twin with a detector: as they are shipped, or a copy of them with seeded faults.

All faults go into one copy of csrc/cuda, each behind a switch, so that one build per detector holds every one of them and
a number picks it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cuda.faults import BANKS, BITS, BOUNDS, FAULTS, NUMBERS, RACE, WORDS, Fault
from tests.cuda.twin import KERNELS, MADE, compile_host, driver, sources

# an access calls the address sanitizer: the program is compiled in half of the time, and runs long enough to tell
BY_CALLS = "--param=asan-instrumentation-with-call-threshold=0"
SANITIZERS = {RACE: ["-fsanitize=thread"], BOUNDS: ["-fsanitize=address", BY_CALLS]}
CHECKS = (*SANITIZERS, NUMBERS)  # that have a program of their own
# Undefined behaviour is an illegal instruction, without words: `gdb` shows its line. With words, half of the build.
TRAPS = ["-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error", BY_CALLS]
# stop at the first; wait for nobody at the end; keep a short history, which the price of a fiber depends on
TSAN = "halt_on_error=1:atexit_sleep_ms=0:history_size=0"
CORES = os.cpu_count() or 1
PATIENCE = 900  # seconds; a run takes a few, on a machine that does nothing else

SWITCH = """
#include "machine.h"
extern "C" const int twin_fault;  // the program sets it before kernels run; what is const, no detector looks at
// An addition that orders nothing.
inline uint32_t add_relaxed(uint32_t* counter, uint32_t value) {
  const uint32_t before = __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
  twin::Machine::now->wrote_a_counter();
  return before;
}
"""


@dataclass(frozen=True)
class Job:
    """Runs with one fault; -1: with none."""

    lines: Sequence[str]
    way: str
    fault: int = -1


def planted(folder: Path, faults: Sequence[Fault] = FAULTS) -> Path:
    """A copy of the kernels with every fault, each behind its number."""
    texts = {str(path.relative_to(KERNELS)): path.read_text() for path in sources(KERNELS)}
    for number, one in enumerate(faults):
        for file, old, new in one.edits:
            count = texts[file].count(old)
            assert count == 1, f"{one.name}: {file} holds {old!r} {count} times, not once; adjust tests/cuda/faults.py"
            texts[file] = texts[file].replace(old, new.replace("FAULT", f"(twin_fault == {number})"))
    copy = folder / "cuda"
    for name, text in texts.items():
        if name != "device.h" and not name.endswith(".cu"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_text(text)
    (copy / "fault.h").write_text(SWITCH)
    return copy


def build(kernels: Path, check: str, source: str, program: str) -> Path:
    """The program that runs one kind of kernel with the detector of `check`."""
    flags = ["-O1", "-DTWIN_ONE_KIND", "-include", str(kernels / "fault.h")]
    flags += SANITIZERS.get(check, [])
    return compile_host(source, MADE / "faults", *flags, driver(program), kernels=kernels)


def _ended(command: Sequence[str], lines: Sequence[str], tsan: str = TSAN) -> subprocess.CompletedProcess[str]:
    """A program that has read its lines; it says everything on stdout."""
    return subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        env={**os.environ, "TSAN_OPTIONS": tsan},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def run(program: Path, lines: Sequence[str]) -> str:
    """What the program says to the runs, `way shape schedule`, up to the first that is wrong."""
    done = _ended([str(program)], lines)
    return done.stdout + ("" if done.returncode == 0 else f"exit status {done.returncode}")


def run_apart(program: Path, jobs: Sequence[Job]) -> list[str]:
    """What the program says to each job: all from one process, so that fibers are made once."""
    lines = [f"{job.fault} {job.way} {line}" for job in jobs for line in job.lines]
    # that a race is found is enough; nobody reads where
    done = _ended([str(program), "apart"], lines, f"{TSAN}:symbolize=0")
    said = done.stdout.split("---- apart\n")[1:]
    assert done.returncode == 0 and len(said) == len(lines), f"{done.returncode}\n{done.stdout[-3000:]}"
    return ["".join(said.pop(0) for _ in job.lines) for job in jobs]


def submit(pool: Executor, program: Path, jobs: Mapping[Any, Job]) -> dict[Any, Future[str]]:
    """What the program will have said to each job, from a process for every core; those of few blocks first, because a
    process parts the faster the fewer fibers it has."""
    found: dict[Any, Future[str]] = {key: Future() for key in jobs}
    keys = sorted(jobs, key=lambda key: int(jobs[key].lines[0].split()[-2]))

    def tell(keys: list[Any]) -> None:
        try:
            for key, said in zip(keys, run_apart(program, [jobs[key] for key in keys]), strict=True):
                found[key].set_result(said)
        except BaseException as wrong:
            for key in keys:
                found[key].set_exception(wrong)

    for first in range(CORES):
        pool.submit(tell, keys[first::CORES])
    return found


def tell(
    pool: Executor,
    kernels: Path,
    jobs: Mapping[Any, tuple[str, Job]],
    source: str = "cascades.cpp",
    program: str = "alone.cpp",
) -> dict[Any, Future[str]]:
    """What will have been said to each job, which is named with its check: one build for every detector, and one without,
    which does for the other checks."""
    driver(program)
    made = dict(zip(CHECKS, pool.map(lambda check: build(kernels, check, source, program), CHECKS), strict=True))
    found: dict[Any, Future[str]] = {}
    for built, path in made.items():
        own = {key: job for key, (check, job) in jobs.items() if (check if check in CHECKS else NUMBERS) == built}
        found |= submit(pool, path, own)
    return found


def chosen(request: pytest.FixtureRequest, faults: Sequence[Fault]) -> list[Fault]:
    """Those that this run of pytest selects; other files have faults of their own."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    return [x["fault"] for x in parameters if x.get("fault") in faults]


def runs(case: str, check: str = NUMBERS) -> list[str]:
    """A case on one schedule, because the detectors do not wait for luck; bits that depend on it need several."""
    return [f"{case} {schedule}" for schedule in range(1, 9 if check == BITS else 2)]


def caught(check: str, told: str) -> bool:
    """Whether `check` stopped what was told."""
    if check == BANKS:
        return any(" 0 bank conflicts" not in line for line in told.splitlines() if line.startswith("right"))
    if check == BITS:
        return len({line.rpartition(" ")[2] for line in told.splitlines() if line.startswith("right")}) > 1
    return WORDS[check] in told or (check == BOUNDS and "a copy reads outside" in told)
