"""The forward kernels under the race detector and the memory sanitizers: every shape, every forced cut.

The race detector sees an order that is missing whatever the schedule: each seeded race of test_faults.py is found on the
first. `--schedules 5` looks at more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.faults import run
from tests.cuda.twin import ROOT, compile_host

RACE, MEMORY = "-fsanitize=thread", "-fsanitize=address,undefined"
# images classes nodes embed walks dtype (0 fp32, 2 fp16, 3 bf16) high parts all_parts workers
SHAPES = (
    "1 1 1 1 1 0 1 0 0 2", "1 5 7 3 3 0 1 0 0 4", "2 5 63 16 2 0 1 0 0 4", "2 5 64 16 2 0 1 0 0 4", "2 5 65 16 2 0 1 0 0 8",
    "1 21 129 64 2 0 1 0 0 8", "1 23 100 64 2 0 1 0 0 2", "1 24 100 64 2 0 1 0 0 8", "1 63 70 64 1 0 1 0 0 8",
    "1 5 100 65 2 0 1 0 0 8", "1 21 70 128 1 0 1 0 0 8", "1 60 40 128 2 0 1 0 0 4", "3 5 33 16 3 0 1 0 0 3",
    "1 5 130 16 2 0 0 0 0 8", "1 21 130 64 2 2 1 0 0 8", "1 21 130 64 2 3 1 0 0 8", "1 40 70 100 2 3 1 0 0 4",
    "1 5 130 16 3 0 1 2 0 8", "1 5 190 16 2 0 1 3 0 8", "1 5 160 65 2 0 1 5 0 8", "1 5 130 16 2 0 1 2 1 8",
    "1 5 190 16 2 3 1 3 1 5", "1 30 150 64 2 0 1 5 0 7", "2 5 130 16 3 0 1 2 0 1",
)  # fmt: skip


CORES = os.cpu_count() or 1


def answers(program: Path, shapes: Sequence[str], schedules: int) -> dict[str, list[str]]:
    """What the program says to every shape, a line per schedule. One process runs them all, because fibers cost the race
    detector more than a small walk; where it stops, another goes on behind that shape."""
    said, left = {}, list(shapes)
    while left:
        told = run(program, [f"{shape} {schedule + 1}" for shape in left for schedule in range(schedules)]).splitlines()
        right = next((n for n, line in enumerate(told) if not line.startswith("right")), len(told)) // schedules
        for n, shape in enumerate(left[:right]):
            said[shape] = told[n * schedules : (n + 1) * schedules]
        if right < len(left):
            said[left[right]] = told[right * schedules :]
        left = left[right + 1 :]
    return said


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> Iterator[dict[str, list[Future[dict[str, list[str]]]]]]:
    """One build per detector, and a process for every core."""
    schedules = {RACE: request.config.getoption("schedules"), MEMORY: 1}

    def build(detector: str) -> Path:
        return compile_host("alone.cpp", ROOT / "build" / "twin" / "alone", "-O1", detector)

    with ThreadPoolExecutor(CORES) as pool:
        programs = dict(zip(schedules, pool.map(build, schedules), strict=True))
        yield {
            detector: [
                pool.submit(answers, programs[detector], SHAPES[first::CORES], schedules[detector])
                for first in range(CORES)
            ]
            for detector in schedules
        }


def test_there_are_enough() -> None:
    assert len(SHAPES) >= 20
    assert {shape.split()[7] for shape in SHAPES} >= {"0", "2", "3", "5"}


@pytest.mark.parametrize("detector", [RACE, MEMORY], ids=["race", "memory"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.replace(" ", "-"))
def test_no_detector_finds_anything(
    request: pytest.FixtureRequest, said: dict[str, list[Future[dict[str, list[str]]]]], shape: str, detector: str
) -> None:
    """And the results are right, with the same bits on every schedule and without conflicts of banks."""
    lines = said[detector][SHAPES.index(shape) % CORES].result()[shape]
    assert len(lines) == (request.config.getoption("schedules") if detector == RACE else 1), "\n".join(lines[-60:])
    assert all(line.startswith("right") and " 0 bank conflicts" in line for line in lines), "\n".join(lines[-60:])
    assert len({line.rpartition(" ")[2] for line in lines}) == 1
