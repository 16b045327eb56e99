"""The forward kernels under the race detector and the memory sanitizers: every shape on five schedules, every forced cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.faults import run
from tests.cuda.twin import ROOT, compile_host

SCHEDULES = 5
RACE, MEMORY = "-fsanitize=thread", "-fsanitize=address,undefined"
# images classes nodes embed walks dtype (0 fp32, 2 fp16, 3 bf16) high parts all_parts workers
SHAPES = (
    "1 1 1 1 1 0 1 0 0 8", "1 5 7 3 3 0 1 0 0 8", "2 5 63 16 2 0 1 0 0 8", "2 5 64 16 2 0 1 0 0 8", "2 5 65 16 2 0 1 0 0 8",
    "1 21 129 64 2 0 1 0 0 8", "1 23 100 64 2 0 1 0 0 2", "1 24 100 64 2 0 1 0 0 8", "1 63 70 64 1 0 1 0 0 8",
    "1 5 100 65 2 0 1 0 0 8", "1 21 70 128 1 0 1 0 0 8", "1 60 40 128 2 0 1 0 0 8", "3 5 33 16 3 0 1 0 0 3",
    "1 5 130 16 2 0 0 0 0 8", "1 21 130 64 2 2 1 0 0 8", "1 21 130 64 2 3 1 0 0 8", "1 40 70 100 2 3 1 0 0 8",
    "1 5 130 16 3 0 1 2 0 8", "1 5 190 16 2 0 1 3 0 8", "1 5 160 65 2 0 1 5 0 8", "1 5 130 16 2 0 1 2 1 8",
    "1 5 190 16 2 3 1 3 1 5", "1 30 150 64 2 0 1 5 0 7", "2 5 130 16 3 0 1 2 0 1",
)  # fmt: skip


@pytest.fixture(scope="module")
def said() -> Iterator[dict[tuple[str, str], Future[str]]]:
    """One build per detector, and as many runs at a time as there are cores."""

    def build(detector: str) -> Path:
        return compile_host("alone.cpp", ROOT / "build" / "twin" / "alone", "-O1", detector)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = dict(zip((RACE, MEMORY), pool.map(build, (RACE, MEMORY)), strict=True))
        yield {
            (detector, shape): pool.submit(
                run,
                program,
                [f"{shape} {schedule}" for schedule in range(1, 1 + (SCHEDULES if detector == RACE else 1))],
            )
            for detector, program in programs.items()
            for shape in SHAPES
        }


def test_there_are_enough() -> None:
    assert len(SHAPES) >= 20
    assert {shape.split()[7] for shape in SHAPES} >= {"0", "2", "3", "5"}


@pytest.mark.parametrize("detector", [RACE, MEMORY], ids=["race", "memory"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.replace(" ", "-"))
def test_no_detector_finds_anything(said: dict[tuple[str, str], Future[str]], shape: str, detector: str) -> None:
    """And the results are right, with the same bits on every schedule and without conflicts of banks."""
    lines = said[detector, shape].result().splitlines()
    assert len(lines) == (SCHEDULES if detector == RACE else 1), "\n".join(lines[-60:])
    assert all(line.startswith("right") and " 0 bank conflicts" in line for line in lines), lines
    assert len({line.rpartition(" ")[2] for line in lines}) == 1
