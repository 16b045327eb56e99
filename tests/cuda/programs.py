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

from tests.cuda.faults import BANKS, BITS, BOUNDS, FAULTS, NUMBERS, RACE, WORDS, Fault
from tests.cuda.twin import KERNELS, MADE, compile_host, driver, sources

# an access calls the address sanitizer: the program is compiled in half of the time, and runs long enough to tell
BY_CALLS = "--param=asan-instrumentation-with-call-threshold=0"
SANITIZERS = {RACE: ["-fsanitize=thread"], BOUNDS: ["-fsanitize=address", BY_CALLS]}
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


def build(kernels: Path, check: str, source: str = "cascades.cpp", program: str = "alone.cpp") -> Path:
    """The program that runs one kind of kernel with the detector of `check`."""
    flags = ["-O1", "-DTWIN_ONE_KIND", "-include", str(kernels / "fault.h")]
    flags += SANITIZERS.get(check, [])
    return compile_host(source, MADE / "faults", *flags, driver(program), kernels=kernels)


def run(program: Path, lines: Sequence[str]) -> str:
    """What the program says to the runs, `way shape schedule`, up to the first that is wrong."""
    environment = {**os.environ, "TSAN_OPTIONS": TSAN}
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        program,
        input=text,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit status {done.returncode}")


def run_apart(program: Path, jobs: Sequence[Job]) -> list[str]:
    """What the program says to each job: all from one process, so that fibers are made once."""
    text = "".join(f"{job.fault} {job.way} {line}\n" for job in jobs for line in job.lines)
    done = subprocess.run(
        [program, "apart"],
        input=text,
        env={**os.environ, "TSAN_OPTIONS": f"{TSAN}:symbolize=0"},  # that it is found is enough; nobody reads where
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    said = done.stdout.split("---- apart\n")[1:]
    assert done.returncode == 0 and len(said) == text.count("\n"), f"{done.returncode}\n{done.stdout[-3000:]}"
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
