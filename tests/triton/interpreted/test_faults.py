"""The comparison with fp64 can fail: every seeded fault of the Triton kernels is caught by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from difnet_kernels.backends.triton import split
from tests.triton.interpreted.bounds import assert_right
from tests.triton.interpreted.faults import FAULTS, Fault, planted
from tests.triton.interpreted.plans import in_parts


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in three parts, so that the combining kernels take part."""
    monkeypatch.setattr(split, "split_columns", in_parts(3))


@pytest.mark.parametrize("truth", sorted({fault.truth for fault in FAULTS}, key=lambda truth: truth.__name__))
def test_without_a_fault_the_truths_hold(truth) -> None:  # type: ignore[no-untyped-def]
    """Else the others would prove nothing."""
    assert_right(truth())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault) -> None:
    kernels = planted(fault, tmp_path)
    assert kernels, f"nothing launches what {fault.stem}.py defines"
    for (launcher, name), kernel in kernels.items():
        monkeypatch.setattr(launcher, name, kernel)
    with pytest.raises(AssertionError, match=r"exceeds|not finite"):
        assert_right(fault.truth())
