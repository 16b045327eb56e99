"""How far it is from the public function to an equation: a reader follows every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import difnet_kernels
from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends.triton import split
from difnet_kernels.backends.triton.rows import Launch
from difnet_kernels.backends.triton.walk import forward, rows
from tests.triton.interpreted.plans import in_parts

PACKAGE = Path(difnet_kernels.__file__).parent
DISPATCHER = PACKAGE / "ops" / "autograd.py"  # how torch comes from an operator's name to its kernel


class Reached(Exception):
    """The line of W3, with the functions of the package that were called to come there, the outermost first."""


@pytest.mark.parametrize("parts", (1, 3), ids=["alone", "parts"])
def test_six_calls_lead_to_w3(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Whoever adds the parts: operator, cascade, walk, launcher, kernel, and the last step with its line of W3."""

    def reached(*args: object) -> None:
        frame, called = sys._getframe(1), list[str]()
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE) and file != DISPATCHER:
                called.insert(0, frame.f_code.co_name)
            frame = frame.f_back
        raise Reached(*called)

    monkeypatch.setattr(forward, "mix", reached)
    monkeypatch.setattr(split, "split_columns", in_parts(parts, all_parts=parts == 1))
    monkeypatch.setattr(rows, "select", lambda case: Launch(32, 16, 4, 2))
    with pytest.raises(RuntimeError, match="did not run") as raised:
        cascaded_random_walk(torch.randn(1, 3, 67), torch.randn(1, 1, 4, 67), [0.5], [0.5], backend="triton")
    found: BaseException | None = raised.value
    while found is not None and not isinstance(found, Reached):
        found = found.__cause__
    assert found is not None
    outermost, *calls = found.args
    assert outermost == "cascaded_random_walk" and calls[-1] == "finish_walk" and len(calls) <= 6, calls


@pytest.mark.smoke
def test_the_kernels_are_imported_by_the_first_call_alone() -> None:
    """Importing them takes longer than the rest of the package, and needs Triton; the choice of a backend does without."""
    program = (
        "import sys, difnet_kernels.backends as backends; backends.triton.unusable(); kept = set(sys.modules); "
        "backends.BACKENDS['triton'].direction('cascade_forward'); print(*sorted(set(sys.modules) - kept))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "difnet_kernels.backends.triton.walk.host" in done.stdout.split(), done
