"""How a task becomes pytest-benchmark rows: measured once with all its contenders taking turns, then played back.

pytest-benchmark times one function after another, so a machine that slows down half way would decide who wins. Here the
first test of a task measures all of its contenders alternately (`benchmarks.clock`), and each test hands its own
samples to pytest-benchmark through a clock that is a tape of them.
"""

from __future__ import annotations

import time

import pytest

from benchmarks import show
from benchmarks.device import device, here
from benchmarks.questions import RECORD
from benchmarks.record import header, not_measured
from benchmarks.results import machine_of
from benchmarks.tasks import FAILED, TIMED, Row, Task

MINUTES = 5.0
_ROWS: dict[str, dict[str, Row]] = {}
_START = time.monotonic()


class Tape:
    """A clock that stands still until it is moved by one recorded sample."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, seconds: float) -> None:
        self.now += seconds


TAPE = Tape()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=MINUTES, help="begin no benchmark after this time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        if item.path.name == "test_smoke.py":
            return RECORD + 1  # gates on what the others measure anyway
        task = item.callspec.params.get("task") if hasattr(item, "callspec") else None
        return task.turn if isinstance(task, Task) else 0

    items.sort(key=turn)
    for item in items:
        if "play" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=TAPE))


@pytest.fixture
def measured(request: pytest.FixtureRequest):
    """The rows of a task, by contender; measured when first asked for, unless the time is over."""
    minutes = request.config.getoption("--minutes")

    def rows_of(task: Task) -> dict[str, Row]:
        if str(task) not in _ROWS:
            over = time.monotonic() - _START > 60 * minutes
            rows = not_measured(task, minutes) if over else task.measure(device(here()))
            _ROWS[str(task)] = {row.contender: row for row in rows}
        return _ROWS[str(task)]

    return rows_of


@pytest.fixture
def play(benchmark, measured):
    """Give the row of one contender to pytest-benchmark: its times, or a visible reason why there are none."""

    def played(task: Task, contender: str) -> Row:
        row = measured(task)[contender]
        benchmark.group = str(task)
        benchmark.extra_info.update({key: value for key, value in row.as_dict().items() if value not in (None, "", {})})
        if row.status == FAILED:
            pytest.fail(f"{row.title}: {row.reason}; no time is reported", pytrace=False)
        if row.status not in TIMED:
            pytest.skip(f"{row.title}: {row.reason}")
        # memory: bytes, which pytest-benchmark shows among the extra info and our own table below
        tape = iter(row.samples or (1e-9,))
        benchmark.pedantic(lambda: TAPE.play(next(tape)), rounds=len(row.samples) or 1, iterations=1)
        return row

    return played


def pytest_terminal_summary(terminalreporter) -> None:
    """Every task with all of its rows, also those without a time."""
    if _ROWS:
        terminalreporter.section("benchmarks: peers side by side")
        machine = machine_of(header(device(here())))
        for name, rows in _ROWS.items():
            terminalreporter.write_line("\n" + show.task(name, list(rows.values()), machine))
