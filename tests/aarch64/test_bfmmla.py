"""bf16 products of 64-bit ARM: taken where the processor has them and they are asked for, and nowhere else.

In an emulator, whose BFMMLA rounds as the architecture defines it without FEAT_EBF16: sums to odd, denormal numbers to zero.
"""

from __future__ import annotations

import subprocess
from functools import partial

import pytest
import torch
from torch import Tensor

from difnet_kernels.backends import BACKENDS
from tests.aarch64 import backend
from tests.kernels.test_projection_kernels import assert_true, draw
from tests.support.cases import normal
from tests.support.projections import Shape

OLD = "cortex-a57"  # 64-bit ARM of 2012
pytestmark = pytest.mark.smoke


def _walk(isa: str | None, processor: str, psi: Tensor, state: Tensor) -> Tensor:
    batch, classes, nodes = state.shape
    walked, lse = torch.full((batch, nodes, classes), float("nan")), torch.full((batch, nodes), float("nan"))
    gate = torch.tensor([0.5])
    given = (state, state, psi, None, gate, gate, torch.empty_like(state), walked, lse)
    backend.call("walk_forward", 0, given, isa, processor)
    return walked


def _project(isa: str | None, processor: str, features: Tensor, weight: Tensor) -> Tensor:
    grid = features.shape[2:]
    peak = torch.full((features.shape[0], *grid, weight.shape[0]), float("nan")).movedim(-1, 1)
    given = (features, weight, None, peak, torch.empty_like(peak, dtype=torch.int32), None, None)
    backend.call("project_pool_forward", 0, given, isa, processor)
    return peak


def _calls(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    psi, state = normal(1, 1, 40, 100).mul(0.5).to(dtype), normal(2, 1, 5, 100).to(dtype)
    features, weight = normal(3, 1, 70, 1, 5, 9).to(dtype), normal(4, 20, 70)
    return partial(_walk, psi=psi, state=state), partial(_project, features=features, weight=weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_bf16_fields_take_it(dtype: torch.dtype) -> None:
    for call in _calls(dtype):
        vectors, unit = call("baseline", "max"), call("bfmmla", "max")
        assert torch.equal(vectors, unit) == (dtype != torch.bfloat16)
        assert (vectors - unit).abs().max() < 2e-2 * vectors.abs().max()


def test_nobody_gets_it_unasked() -> None:
    """It has not been measured on a processor."""
    for call in _calls(torch.bfloat16):
        chosen = call(None, "max")
        assert torch.equal(chosen, call("baseline", "max"))
        assert torch.equal(chosen, call(None, OLD))


def test_a_processor_without_it_refuses_it(capfd: pytest.CaptureFixture[str]) -> None:
    """By name: an emulated one that ran it all the same would die of an illegal instruction."""
    for call in _calls(torch.bfloat16):
        with pytest.raises(subprocess.CalledProcessError):
            call("bfmmla", OLD)
        assert "DIFNET_KERNELS_ISA=bfmmla does not run on this processor, which runs baseline" in capfd.readouterr().err


def test_psi_is_right_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and both gradients; of the walks the tests of tests/kernels have a case."""
    monkeypatch.setitem(BACKENDS, backend.NAME, backend.BACKEND)
    assert_true(backend.NAME, draw(Shape(2, 70, 40, (1, 9, 13), (1, 4, 6)), "bf16"))
