"""The kernels under the race detector and the memory sanitizers: every shape, every forced cut.

The race detector sees an order that is missing whatever the schedule: each seeded race of test_faults.py is found on the
first. `--schedules 5` looks at more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.programs import CORES, TRAPS, run
from tests.cuda.twin import MADE, compile_host, driver

RACE, MEMORY = "race", "memory"
# Left out of "undefined" is what the address sanitizer stops as well, and what the kernels have none of: it would be half
# of the build.
ELSEWHERE = "null,object-size,pointer-overflow,vptr,return,unreachable,nonnull-attribute,returns-nonnull-attribute"
FLAGS = {RACE: ["-fsanitize=thread"], MEMORY: [*TRAPS, f"-fno-sanitize={ELSEWHERE}"]}
# images classes nodes embed walks dtype (0 fp32, 2 fp16, 3 bf16) high parts all_parts workers
SHAPES = (
    "1 1 1 1 1 0 1 0 0 2", "1 5 7 3 3 0 1 0 0 4", "2 5 63 16 2 0 1 0 0 4", "2 5 64 16 2 0 1 0 0 4", "2 5 65 16 2 0 1 0 0 8",
    "1 21 129 64 2 0 1 0 0 8", "1 23 100 64 2 0 1 0 0 2", "1 24 100 64 2 0 1 0 0 8", "1 63 70 64 1 0 1 0 0 8",
    "1 5 100 65 2 0 1 0 0 8", "1 21 70 128 1 0 1 0 0 8", "1 60 40 128 2 0 1 0 0 4", "3 5 33 16 3 0 1 0 0 3",
    "1 5 130 16 2 0 0 0 0 8", "1 21 130 64 2 2 1 0 0 8", "1 21 130 64 2 3 1 0 0 8", "1 40 70 100 2 3 1 0 0 4",
    "1 5 130 16 3 0 1 2 0 8", "1 5 190 16 2 0 1 3 0 8", "1 5 160 65 2 0 1 5 0 8", "1 5 130 16 2 0 1 2 1 8",
    "1 5 190 16 2 3 1 3 1 5", "1 30 150 64 2 0 1 5 0 7", "2 5 130 16 3 0 1 2 0 1",
)  # fmt: skip
# forward, then backward with every gradient: all eight kernels, two walks or more with a bias in the last. Two stages
# are filled three times where nothing is cut (column tiles of 64, 32 or 16 nodes).
BACKWARD = (
    "1 1 1 1 1 0 1 0 0 2", "2 5 65 16 2 0 1 0 0 4", "1 21 190 64 2 0 1 0 0 4", "1 5 130 16 3 0 1 2 0 8",
    "1 5 190 16 2 0 1 3 1 5", "1 24 100 64 2 0 1 2 0 4", "1 60 70 128 2 0 1 2 0 4", "1 21 100 128 2 0 1 0 0 8",
    "2 21 130 64 2 3 1 2 0 5", "1 40 70 100 2 2 1 0 0 4", "1 5 130 100 2 3 1 0 0 8", "1 40 130 64 2 3 1 2 1 4",
)  # fmt: skip
# a launch for every walk, and a gradient of every step
LAUNCHES = ("2 5 70 16 3 0 1 0 0 4",)
# Ψ in the launch: images classes grid (three) embed walks ... as above
PROJECTED = (
    "1 1 1 1 1 1 1 0 1 0 0 2", "2 5 1 5 9 16 4 0 1 0 0 4", "1 5 1 4 33 16 3 0 1 2 0 8", "1 21 1 1 150 64 2 0 1 3 1 5",
    "2 3 2 3 4 3 4 2 1 0 0 4", "1 23 1 9 17 64 2 3 1 2 0 7", "1 4 1 3 20 5 3 0 0 0 0 3",
    "1 60 1 5 17 64 2 0 1 2 0 4",
)  # fmt: skip
ALL = [
    f"{way} {shape}"
    for way, shapes in {"forward": SHAPES, "backward": BACKWARD, "launches": LAUNCHES, "projected": PROJECTED}.items()
    for shape in shapes
]
Said = dict[str, list[Future[dict[str, list[str]]]]]


def answers(program: Path, shapes: Sequence[str], schedules: int) -> dict[str, list[str]]:
    """What the program says to every shape, a line per schedule. One process runs them all, because fibers cost the race
    detector more than a small walk; where it stops, another goes on behind that shape."""
    said, left = {}, list(shapes)
    while left:
        lines = [f"{shape} {schedule + 1}" for shape in left for schedule in range(schedules)]
        told = run(program, lines).splitlines()
        right = next((n for n, line in enumerate(told) if not line.startswith("right")), len(told)) // schedules
        for n, shape in enumerate(left[:right]):
            said[shape] = told[n * schedules : (n + 1) * schedules]
        if right < len(left):
            said[left[right]] = told[right * schedules :]
        left = left[right + 1 :]
    return said


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> Iterator[Said]:
    """One build per detector, and a process for every core."""
    schedules = {RACE: request.config.getoption("schedules"), MEMORY: 1}
    program = driver("alone.cpp")

    def build(detector: str) -> Path:
        return compile_host("cascades.cpp", MADE / "alone", "-O1", *FLAGS[detector], program)

    with ThreadPoolExecutor(CORES) as pool:
        programs = dict(zip(schedules, pool.map(build, schedules), strict=True))
        yield {
            detector: [
                pool.submit(answers, programs[detector], ALL[first::CORES], schedules[detector])
                for first in range(CORES)
            ]
            for detector in schedules
        }


def test_there_are_enough() -> None:
    assert len(SHAPES) >= 20
    assert {shape.split()[7] for shape in SHAPES} >= {"0", "2", "3", "5"}
    assert {kernel(shape) for shape in BACKWARD} == {(p, d, k) for p in (1, 3) for d in (64, 128) for k in (24, 64)}


def kernel(shape: str) -> tuple[int, int, int]:
    """Products, embed and width of the kernel that is compiled for a shape."""
    _, classes, _, embed, _, dtype, high, *_ = map(int, shape.split())
    return 3 if dtype == 0 and high else 1, 64 if embed <= 64 else 128, 24 if classes < 24 else 64


@pytest.mark.parametrize("detector", [RACE, MEMORY])
@pytest.mark.parametrize("shape", ALL, ids=lambda text: text.replace(" ", "-"))
def test_no_detector_finds_anything(request: pytest.FixtureRequest, said: Said, shape: str, detector: str) -> None:
    """And the results are right, with the same bits on every schedule and without conflicts of banks."""
    lines = said[detector][ALL.index(shape) % CORES].result()[shape]
    assert len(lines) == (request.config.getoption("schedules") if detector == RACE else 1), "\n".join(lines[-60:])
    assert all(line.startswith("right") and " 0 bank conflicts" in line for line in lines), "\n".join(lines[-60:])
    assert len({line.rpartition(" ")[2] for line in lines}) == 1
