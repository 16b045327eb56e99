"""The tests can fail: every seeded fault of the C++ kernels is caught by the truth it offends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from difnet_kernels.backends.native import instruction_set
from tests.support.faults import FAULTS, Fault, build, judge
from tests.support.forked import Ended, Pytest


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Fault | None, Future[Ended]]]:
    """One build; every core takes one selected fault after the other."""
    folder: Path = tmp_path_factory.mktemp("faults")
    build(folder, instruction_set())
    selected = [item.callspec.params.get("fault") for item in request.session.items if item.path == request.path]
    idle: SimpleQueue[Pytest] = SimpleQueue()
    cores = os.cpu_count() or 1
    for _ in range(cores):
        idle.put(Pytest(folder, {"OMP_NUM_THREADS": "1"}))

    def judged(fault: Fault | None) -> Ended:
        one = idle.get()
        try:
            return judge(one, fault)
        finally:
            idle.put(one)

    with ThreadPoolExecutor(cores) as pool:
        yield {fault: pool.submit(judged, fault) for fault in selected}
    for _ in range(cores):
        idle.get().close()


def test_without_a_fault_the_truths_hold(native: str, verdicts: dict[Fault | None, Future[Ended]]) -> None:
    """Else the others would prove nothing."""
    done = verdicts[None].result()
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_caught(native: str, verdicts: dict[Fault | None, Future[Ended]], fault: Fault) -> None:
    """By a failing test, by a crash where the fault reads memory that is not there, or by a kernel that never ends."""
    done = verdicts[fault].result()
    caught = (done.returncode == 1 and " failed" in done.stdout) or done.returncode < 0
    assert caught, f"{fault.name}: tests/test_{fault.truth} says {done.returncode}\n{done.stdout[-2000:]}"
