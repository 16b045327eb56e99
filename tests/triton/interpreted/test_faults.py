"""The comparison with fp64 can fail: every seeded fault of the Triton kernels is caught by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from difnet_kernels.backends.triton import split
from tests.triton.interpreted.faults import FAULTS, Fault, planted
from tests.triton.interpreted.plans import in_parts


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in three parts, so that the last of them adds."""
    monkeypatch.setattr(split, "split_columns", in_parts(3))


JUDGED = sorted({(fault.truth, fault.judge) for fault in FAULTS}, key=lambda pair: pair[0].__name__)


@pytest.mark.parametrize(("truth", "judge"), JUDGED)
def test_without_a_fault_the_truths_hold(truth, judge) -> None:  # type: ignore[no-untyped-def]
    """Else the others would prove nothing."""
    judge(truth())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault) -> None:
    functions = planted(fault, tmp_path)
    assert functions, f"nothing uses what {fault.stem} defines"
    for (user, name), function in functions.items():
        monkeypatch.setattr(user, name, function)
    with pytest.raises(AssertionError, match=r"exceeds|not finite"):
        fault.judge(fault.truth())
