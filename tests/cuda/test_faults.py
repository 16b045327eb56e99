"""The tests of the CUDA kernels can fail: every seeded fault is stopped by the check that is named for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.cuda.faults import BANKS, BITS, FAULTS, IN_TURN, LAUNCHES, MAPS, NUMBERS, Fault
from tests.cuda.programs import SANITIZERS, Job, build, caught, planted, runs, submit
from tests.cuda.twin import driver

CHECKS = (*SANITIZERS, NUMBERS)
CASES = sorted({fault.case for fault in FAULTS})
BITS_CASES = sorted({fault.case for fault in FAULTS if fault.check == BITS})
WAY = {
    LAUNCHES: "launches",
    MAPS: "projected",
    IN_TURN: "projected",
}  # the others run backwards, which begins with the forward
SILENT = [(check, case) for check in CHECKS for case in CASES] + [(BITS, case) for case in BITS_CASES]


@pytest.fixture(scope="module")
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[object, Future[str]]]:
    """One build per detector, and as many programs at a time as there are cores."""
    driver("alone.cpp")
    kernels = planted(tmp_path_factory.mktemp("faults"))
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = [x["fault"] for x in parameters if x.get("fault") in FAULTS]  # other files have faults of their own
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(CHECKS, pool.map(lambda check: build(kernels, check), CHECKS), strict=True))
        found: dict[object, Future[str]] = {}
        for check in CHECKS:
            jobs: dict[object, Job] = {
                fault: Job(runs(fault.case, fault.check), fault.way, FAULTS.index(fault))
                for fault in selected
                if (fault.check if fault.check in CHECKS else NUMBERS) == check
            }
            jobs |= {(check, case): Job(runs(case), WAY.get(case, "backward")) for case in CASES}
            if check == NUMBERS:
                jobs |= {(BITS, case): Job(runs(case, BITS), "backward") for case in BITS_CASES}
            found |= submit(pool, made[check], jobs)
        yield found


def test_there_are_enough() -> None:
    for ways, least in ((("forward",), 25), (("backward", "launches"), 25), (("projected",), 20)):
        assert sum(fault.way in ways for fault in FAULTS) >= least


@pytest.mark.parametrize(("check", "case"), SILENT, ids=lambda x: x.replace(" ", "-"))
def test_without_a_fault_every_check_is_silent(said: dict[object, Future[str]], check: str, case: str) -> None:
    """Else the others would prove nothing."""
    told = said[check, case].result()
    assert len(told.splitlines()) == len(runs(case, check)), told
    assert all(line.startswith("right") for line in told.splitlines()), told
    assert not caught(BANKS, told) and not caught(BITS, told)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_stopped(said: dict[object, Future[str]], fault: Fault) -> None:
    told = said[fault].result()
    assert caught(fault.check, told), f"{fault.name}: {fault.check} saw nothing\n{told[-3000:]}"
