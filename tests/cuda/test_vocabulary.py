"""The host twin can be trusted: each instruction equals a plain model, and what a kernel may not do ends a run with a place."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.cuda.twin import MADE, compile_host

RIGHT = (
    "shuffles", "ldmatrix4", "ldmatrix4_transposed", "ldmatrix2_transposed", "mma", "truncation", "conversions", "copies",
    "barriers", "counters", "conflicts",
)  # fmt: skip
# what a kernel may not do, and what the machine says about it
REFUSED = {
    "dropped_arrival": "deadlock: block 1 thread 0 is in a barrier, and so wait 127 threads in all",
    "divergent_barrier": "a barrier here while others of its block are in a barrier at vocabulary.cpp",
    "divergent_collective": "divergence: shuffle here while others of its warp are in shuffle",
    "missing_lane": "is in shuffle, and so wait 31 threads in all",
    "copy_that_nobody_waits_for": "a thread ends before its copy of this line has landed",
    "copy_out_of_bounds": "is outside the 4096 bytes of shared memory",
    "copy_off_alignment": "an address is no multiple of 16",
    "matrix_out_of_bounds": "is outside the 4096 bytes of shared memory",
    "counter_that_nobody_writes": "is in a wait for a counter, and so wait 2 threads in all",
    "gives_up": "the words of a wait",
}
RACES = (
    "race_without_barrier",
    "race_of_a_copy",
    "race_of_matrices",
    "race_of_an_early_flag",
    "race_of_a_relaxed_flag",
)


@cache
def program(*flags: str) -> Path:
    return compile_host("vocabulary.cpp", MADE / "vocabulary", "-O1", *flags)


def run(name: str, schedule: int, *flags: str) -> subprocess.CompletedProcess[str]:
    command, environment = [program(*flags), name, str(schedule)], {**os.environ, "TSAN_OPTIONS": "atexit_sleep_ms=0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", RIGHT)
def test_an_instruction_equals_its_model(name: str) -> None:
    for schedule in range(1, 6):
        assert run(name, schedule).stdout.strip() == "right"


@pytest.mark.parametrize("name", REFUSED)
def test_a_defect_ends_the_run_with_its_place(name: str) -> None:
    for schedule in range(1, 6):
        told = run(name, schedule).stdout.strip()
        assert told.startswith("vocabulary.cpp:") and REFUSED[name] in told


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_found_on_every_schedule(name: str) -> None:
    for schedule in range(1, 4):
        done = run(name, schedule, "-fsanitize=thread")
        assert done.returncode == 66
        assert "ThreadSanitizer: data race" in done.stderr and "vocabulary.cpp" in done.stderr


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("truncation", "conversions")])
def test_no_race_is_found_where_there_is_none(name: str) -> None:
    done = run(name, 2, "-fsanitize=thread")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "right"
