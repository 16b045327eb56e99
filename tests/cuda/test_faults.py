"""The tests of the CUDA kernels can fail: every seeded fault is stopped by the check that is named for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.cuda.faults import BANKS, BITS, FAULTS, IN_TURN, LAUNCHES, MAPS, Fault
from tests.cuda.programs import CHECKS, CORES, Job, caught, chosen, planted, runs, tell

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
    """As many programs at a time as there are cores."""
    jobs: dict[object, tuple[str, Job]] = {
        fault: (fault.check, Job(runs(fault.case, fault.check), fault.way, FAULTS.index(fault)))
        for fault in chosen(request, FAULTS)
    }
    jobs |= {(check, case): (check, Job(runs(case, check), WAY.get(case, "backward"))) for check, case in SILENT}
    with ThreadPoolExecutor(CORES) as pool:
        yield tell(pool, planted(tmp_path_factory.mktemp("faults")), jobs)


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
