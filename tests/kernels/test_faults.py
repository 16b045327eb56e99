"""The tests can fail: every seeded fault of the C++ kernels is caught by the truth it offends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.faults import FAULTS, Fault, build, judge


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Fault | None, Future[CompletedProcess[str]]]]:
    """One build, and a process for each selected fault, as many at a time as there are cores."""
    folder: Path = tmp_path_factory.mktemp("faults")
    build(folder)
    selected = [item.callspec.params.get("fault") for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {fault: pool.submit(judge, folder, fault) for fault in selected}


def test_without_a_fault_the_truths_hold(
    native: str, verdicts: dict[Fault | None, Future[CompletedProcess[str]]]
) -> None:
    """Else the others would prove nothing."""
    done = verdicts[None].result()
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_caught(
    native: str, verdicts: dict[Fault | None, Future[CompletedProcess[str]]], fault: Fault
) -> None:
    """By a failing test, or by a crash where the fault reads memory that is not there."""
    done = verdicts[fault].result()
    caught = (done.returncode == 1 and " failed" in done.stdout) or done.returncode < 0
    assert caught, f"{fault.name}: tests/test_{fault.truth} says {done.returncode}\n{done.stdout[-2000:]}"
