"""The truth in fp64, and running a backend beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk
from tests.support.cases import Case, Inputs, make
from tests.support.tolerances import (
    CANCELLATION,
    HALF_ULP,
    PSI_GRADIENT,
    SEED_GRADIENT,
    Setting,
    assert_each,
    assert_typical,
    assert_within,
)


@dataclass(frozen=True)
class Result:
    """yᵀ and the gradients of ⟨grad, yᵀ⟩."""

    state: Tensor
    grad_seed: Tensor
    grad_psi: list[Tensor]
    grad_mu: Tensor
    grad_beta: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.state, self.grad_seed, *self.grad_psi, self.grad_mu, self.grad_beta]


def forward(inputs: Inputs, backend: str, precision: str = "high") -> Tensor:
    with torch.no_grad():
        return cascaded_random_walk(
            inputs.seed, inputs.psi, inputs.mu, inputs.beta, backend=backend, precision=precision
        )  # type: ignore[return-value]


def both(inputs: Inputs, backend: str, precision: str = "high") -> Result:
    """Forward and backward on leaves that share the strides of the inputs."""
    leaves = [x.detach().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    state = cascaded_random_walk(seed, psi, mu, beta, backend=backend, precision=precision)
    assert isinstance(state, Tensor)
    grads = torch.autograd.grad(state, leaves, inputs.grad.to(state.dtype))
    return Result(state.detach(), grads[0], list(grads[1:-2]), grads[-2], grads[-1])


def truth_of(inputs: Inputs) -> Result:
    """The reference backend in fp64 on the same rounded numbers (kernels/test_reference.py is why it may be trusted)."""
    return both(inputs.to(torch.float64), "reference")


def known(case: Case, dtype: torch.dtype, number: int = 0) -> tuple[Inputs, Result]:
    """Inputs of a case and their truth, shared between the backends of a device; treat both as read-only."""
    return _known(case, dtype, number, torch.get_default_device())


@lru_cache(maxsize=512)
def _known(case: Case, dtype: torch.dtype, number: int, device: torch.device) -> tuple[Inputs, Result]:
    inputs = make(case, dtype, number)
    return inputs, truth_of(inputs)


def setting(inputs: Inputs, precision: str = "high") -> Setting:
    dtypes = frozenset(x.dtype for x in (inputs.seed, *inputs.psi))
    return Setting(dtypes, len(inputs.psi), inputs.largest_logit, precision)


def assert_forward(state: Tensor, inputs: Inputs, truth: Result, precision: str = "high") -> None:
    at = setting(inputs, precision)
    assert state.dtype == inputs.seed.dtype
    assert_each("state", 1, state, truth.state, at.walk)
    assert_typical("state", state, truth.state, at.typical)


def gate_scales(inputs: Inputs) -> tuple[float, float]:
    """√Σ of the squared terms of d mu and d beta (B7) of the last walk: what their rounding is measured against."""
    exact = inputs.to(torch.float64)
    spread = max(exact.seed.std().item() if exact.seed.numel() > 1 else 0.0, exact.seed.abs().max().item() / 4)
    scale = exact.grad.square().sum().sqrt().item() * spread
    return scale, scale


def assert_gradients(result: Result, inputs: Inputs, truth: Result, precision: str = "high") -> None:
    at = setting(inputs, precision)
    assert_each("grad_seed", 1, result.grad_seed, truth.grad_seed, SEED_GRADIENT * at.walk)
    noise = CANCELLATION * HALF_ULP[at.product] * _cancelling(inputs, truth)
    for t, (ours, true) in enumerate(zip(result.grad_psi, truth.grad_psi, strict=True)):
        assert ours.dtype == inputs.psi[t].dtype
        assert_each(f"grad_psi[{t}]", 1, ours, true, PSI_GRADIENT * at.walk, floor=noise)
    for name, ours, true, scale in zip(
        ("grad_mu", "grad_beta"),
        (result.grad_mu, result.grad_beta),
        (truth.grad_mu, truth.grad_beta),
        gate_scales(inputs),
        strict=True,
    ):
        assert_within(name, ours, true, at.gate, floor=at.gate * scale)


def _cancelling(inputs: Inputs, truth: Result) -> float:
    """About max Σ_k|h_ik||w_ik| · max‖psi_i‖: the size of the terms that B4 subtracts from each other. The gradient of
    a node that many look at grows from walk to walk, and shows in that of the seed."""
    if inputs.grad.numel() == 0:
        return 0.0
    h = max(g.double().abs().sum(1).max().item() for g in (inputs.grad, truth.grad_seed))
    return h * inputs.seed.double().abs().max().item() * inputs.largest_logit**0.5


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Bit for bit."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"tensor {number}: {int((a != b).sum())} of {a.numel()} places differ"
