"""The operators as torch sees them: schema, fake kernels, autograd registration, ahead-of-time dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import difnet_kernels
from difnet_kernels.backends import BACKENDS, native
from tests.support.cases import DTYPES, Case, make, normal

OPS = torch.ops.difnet_kernels
# every operator of the namespace, and what of opcheck concerns it; an operator that is added must be added here
NATIVE = {
    *native.KERNELS,
    "instruction_set",
    "instruction_sets",
    "matrix_unit_counts",
    "matrix_unit_multiply",
    "matrix_unit_spin",
}
CHECKED = {"cascade_forward", "cascade_backward", "projection_forward", "projection_backward", *NATIVE}
CHECKED |= {"projected_cascade"}  # in tests/cuda, with the one backend that brings it
CHECKED |= {"steady_state_forward", "steady_state_backward"}
# in a library with CUDA kernels; they need a card, and tests/cuda tests what can be tested without one
CUDA = {"cuda_cascade_forward", "cuda_cascade_backward", "cuda_projected_cascade", "why_no_cuda_device"}
CUDA |= {"cuda_projection_forward", "cuda_projection_backward"}
MUTABLE = ("test_schema", "test_faketensor")


def _registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1].split(".")[0] for name in names if name.startswith("difnet_kernels::")}


def _inputs(layout: str, dtype: str, walks: int, grad: bool) -> tuple[list[torch.Tensor], Any]:
    made = make(Case(3, (5, 7), 6, 4, walks, "smooth"), DTYPES[dtype])
    tensors = [made.seed, *made.psi]
    if layout == "channels_last":
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    elif layout == "odd":
        tensors = [x.new_zeros(3, x.shape[1] + 1, 7, 12)[:, 1:, :, ::2][..., :5].copy_(x.mT).mT for x in tensors]
    tensors = [x.detach().requires_grad_(grad) for x in tensors]
    return tensors, made


def test_every_operator_is_checked_here() -> None:
    expected = CHECKED if BACKENDS["cpu"].unusable() is None else CHECKED - NATIVE
    assert _registered() - CUDA == expected
    assert _registered() & CUDA in (set(), CUDA)
    assert difnet_kernels.__version__


@pytest.mark.smoke
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "odd"])
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from_seed", "from_state"])
def test_cascade_forward(backend: str, with_state: bool, steps: bool, layout: str) -> None:
    (seed, *psi), made = _inputs(layout, "fp32", 2, grad=True)
    state = torch.randn_like(seed).requires_grad_() if with_state else None
    gates = made.mu.requires_grad_(), made.beta.requires_grad_()
    torch.library.opcheck(OPS.cascade_forward.default, (state, seed, psi, *gates, "high", backend, steps, True))


@pytest.mark.parametrize("dtype", ["fp64", "bf16", "fp16"])
def test_cascade_forward_in_other_dtypes(backend: str, dtype: str) -> None:
    (seed, *psi), made = _inputs("channels_last", dtype, 1, grad=True)
    gates = made.mu.requires_grad_(), made.beta.requires_grad_()
    torch.library.opcheck(OPS.cascade_forward.default, (None, seed, psi, *gates, "high", backend, False, True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "odd"])
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from_seed", "from_state"])
def test_cascade_backward(backend: str, with_state: bool, steps: bool, layout: str) -> None:
    (seed, *psi), made = _inputs(layout, "fp32", 2, grad=False)
    state = torch.randn_like(seed) if with_state else None
    gates = made.mu, made.beta
    states, walked, row_lse, _ = OPS.cascade_forward(state, seed, psi, *gates, "high", backend, steps, True)
    grads = [torch.randn_like(y) for y in states]
    arguments = (grads, [], state, seed, psi, [], *gates, walked, row_lse)
    for wanted in ([True] * 6, [False, True, False, True, False, True]):
        torch.library.opcheck(OPS.cascade_backward.default, (*arguments, "high", backend, wanted))


@pytest.mark.parametrize("grad_layout", ["contiguous", "expanded"])
def test_cascade_backward_of_strange_gradients(backend: str, grad_layout: str) -> None:
    (seed, *psi), made = _inputs("channels_last", "fp32", 1, grad=False)
    states, walked, row_lse, _ = OPS.cascade_forward(None, seed, psi, made.mu, made.beta, "high", backend, False, True)
    shape = states[0].shape
    grad = torch.ones(shape) if grad_layout == "contiguous" else torch.ones(1).expand(shape)
    torch.library.opcheck(
        OPS.cascade_backward.default,
        ([grad], [], None, seed, psi, [], made.mu, made.beta, walked, row_lse, "high", backend, [True] * 5),
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_native_walks(native: str, layout: str) -> None:
    """They write into their arguments, as their schemas say, and into no other."""
    (seed, psi), made = _inputs(layout, "fp32", 1, grad=False)
    fields = [x.flatten(2) for x in (seed, psi)]
    new = seed.new_empty
    after, walked, row_lse = torch.zeros_like(fields[0]), torch.zeros(3, 35, 4), torch.zeros(3, 35)
    bias = torch.randn(3, 35)
    forward = (fields[0], fields[0], fields[1], bias, made.mu, made.beta, 0, after, walked, row_lse)
    torch.library.opcheck(OPS.walk_forward.default, forward, test_utils=MUTABLE)
    OPS.walk_forward(*forward)
    backward = (
        torch.randn_like(fields[0]),
        torch.randn(3, 35),
        fields[0],
        fields[0],
        fields[1],
        bias,
        made.mu,
        made.beta,
        0,
        walked,
        row_lse,
        new(3, 35, 4).zero_(),
        new(3, 35, 4).zero_(),
        torch.zeros_like(fields[1]),
        torch.zeros_like(bias),
        new(1).zero_(),
        new(1).zero_(),
    )
    torch.library.opcheck(OPS.walk_backward.default, backward, test_utils=MUTABLE)


@pytest.mark.parametrize("empty", ["batch", "nodes"])
def test_nothing(backend: str, empty: str) -> None:
    shape = (0, 3, 5) if empty == "batch" else (2, 3, 0)
    seed, psi = torch.randn(shape).requires_grad_(), torch.randn(shape).requires_grad_()
    gates = torch.tensor([0.5]).requires_grad_(), torch.tensor([0.5]).requires_grad_()
    torch.library.opcheck(OPS.cascade_forward.default, (None, seed, [psi], *gates, "high", backend, False, True))


def _projected(layout: str, dtype: str = "fp32") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Features (3, 6, 1, 5, 7), weight (4, 6) and slopes of both signs, for a grid of 3x4."""
    (_, features), _ = _inputs(layout, dtype, 1, grad=True)
    accumulate = torch.promote_types(DTYPES[dtype], torch.float32)
    weight = normal(5, 4, 6, dtype=accumulate).requires_grad_()
    return features.detach().unsqueeze(2).requires_grad_(), weight, weight.detach()[:, 0].clone(), [1, 3, 4]


@pytest.mark.smoke
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "odd"])
@pytest.mark.parametrize("statistics", [False, True], ids=["eval", "train"])
def test_projection_forward(backend: str, statistics: bool, layout: str) -> None:
    torch.library.opcheck(OPS.projection_forward.default, (*_projected(layout), statistics, backend))


@pytest.mark.parametrize("dtype", ["fp64", "bf16", "fp16"])
def test_projection_forward_in_other_dtypes(backend: str, dtype: str) -> None:
    torch.library.opcheck(OPS.projection_forward.default, (*_projected("channels_last", dtype), True, backend))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "odd"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("statistics", [False, True], ids=["eval", "train"])
def test_projection_backward(backend: str, statistics: bool, wanted: tuple[bool, bool], layout: str) -> None:
    features, weight, slope, grid = (x.detach() if isinstance(x, torch.Tensor) else x for x in _projected(layout))
    peak, position, mean, variance = OPS.projection_forward(features, weight, slope, grid, statistics, backend)
    grads = (torch.randn_like(mean), torch.randn_like(variance)) if statistics else (None, None)
    torch.library.opcheck(
        OPS.projection_backward.default,
        (torch.randn_like(peak), *grads, features, weight, position, None, mean, *wanted, backend),
    )
