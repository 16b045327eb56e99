"""Ψ's kernels under the race detector and the memory sanitizers; and every seeded fault of them is stopped by the check that is
named for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.cuda.faults import BANKS, BOUNDS, COUNTERS, DEADLOCK, LANDED, NUMBERS, RACE, Fault
from tests.cuda.programs import CORES, TRAPS, Job, caught, chosen, planted, run, tell
from tests.cuda.projection_faults import FAULTS, NARROW, WIDE
from tests.cuda.twin import MADE, compile_host, driver

SOURCE, PROGRAM, WAY = "projections.cpp", "projection_alone.cpp", "both"
DETECTORS = {RACE: ["-fsanitize=thread"], BOUNDS: TRAPS}
# images channels embed Z Y X OZ OY OX dtype (0 fp32, 2 fp16, 3 bf16) statistics round_tiles workers
SHAPES = (
    "1 1 1 1 1 1 1 1 1 0 1 0 2", "2 6 16 1 13 17 1 5 6 0 1 2 4", "1 40 64 1 12 17 1 6 9 0 1 1 4",
    "2 70 64 1 9 13 1 9 13 0 1 2 3", "1 33 100 2 5 7 2 3 4 3 1 1 4", "1 100 65 1 8 11 1 4 3 0 0 2 4",
    "1 17 20 1 1 200 1 1 41 2 1 1 8", "1 300 20 1 6 6 1 7 9 0 0 1 8", "1 9 128 1 9 14 1 4 4 3 1 2 4",
)  # fmt: skip
CASES = (WIDE, NARROW)


def _one(shapes: tuple[str, ...]) -> list[str]:
    return [f"{shape} 1" for shape in shapes]


@pytest.fixture(scope="module")
def clean() -> Iterator[dict[str, Future[str]]]:
    """What every detector says to all shapes, and to the cases of the faults."""
    driver(PROGRAM)

    def tell(detector: str) -> str:
        program = compile_host(SOURCE, MADE / "projection_alone", "-O1", *DETECTORS[detector], driver(PROGRAM))
        return run(program, [f"{WAY} {line}" for line in _one((*SHAPES, *CASES))])

    with ThreadPoolExecutor(CORES) as pool:
        yield {detector: pool.submit(tell, detector) for detector in DETECTORS}


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_detector_finds_anything(clean: dict[str, Future[str]], detector: str) -> None:
    """And the results are right, without conflicts of banks."""
    told = clean[detector].result()
    lines = told.splitlines()
    assert len(lines) == len(SHAPES) + len(CASES), told[-3000:]
    assert all(line.startswith("right") and " 0 bank conflicts" in line for line in lines), told[-3000:]


def test_nothing_depends_on_who_runs_when(clean: dict[str, Future[str]]) -> None:
    """Schedules, and the number of blocks."""
    program = compile_host(SOURCE, MADE / "projection_alone", "-O1", "-DTWIN_ONE_KIND", driver(PROGRAM))
    told = [
        run(program, [f"{WAY} {case.rpartition(' ')[0]} {workers} {schedule}" for case in CASES])
        for workers, schedule in ((1, 1), (3, 2), (8, 3))
    ]
    bits = [[line.rpartition(" ")[2] for line in one.splitlines()] for one in told]
    assert len(bits[0]) == len(CASES)
    assert bits[1] == bits[0] == bits[2]


@pytest.fixture(scope="module")
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Fault, Future[str]]]:
    """As many programs at a time as there are cores."""
    jobs = {
        fault: (fault.check, Job(_one((fault.case,)), WAY, FAULTS.index(fault))) for fault in chosen(request, FAULTS)
    }
    with ThreadPoolExecutor(CORES) as pool:
        yield tell(pool, planted(tmp_path_factory.mktemp("faults"), FAULTS), jobs, SOURCE, PROGRAM)


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 30
    assert {fault.check for fault in FAULTS} == {NUMBERS, RACE, BOUNDS, DEADLOCK, LANDED, COUNTERS, BANKS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_stopped(said: dict[Fault, Future[str]], fault: Fault) -> None:
    told = said[fault].result()
    assert caught(fault.check, told), f"{fault.name}: {fault.check} saw nothing\n{told[-3000:]}"
