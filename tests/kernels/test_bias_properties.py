"""Truths about a bias and its log-normaliser that need no second implementation of the walk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difnet_kernels import random_walk
from tests.support.cases import DTYPES, FEW, Case, make, normal
from tests.support.tolerances import HALF_ULP, PSI_GRADIENT, SEED_GRADIENT, Setting, assert_each, assert_within
from tests.support.truth import assert_same

pytestmark = [
    pytest.mark.needs(bias=True, lse=True),
    pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.smoke), "fp64"]),
    pytest.mark.parametrize("case", [case.with_(walks=1) for case in FEW[1:5]], ids=str),
]


def _made(case: Case, dtype: str) -> tuple[Tensor, Tensor, Setting]:
    """Scores, ψ, and what rounding may do."""
    inputs = make(case, DTYPES[dtype])
    return inputs.seed, inputs.psi[0], Setting(frozenset({DTYPES[dtype]}), 1, inputs.largest_logit)


def _walk(y: Tensor, psi: Tensor, backend: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """P y and lse."""
    return random_walk(y, psi, y, 1.0, 1.0, bias=bias, backend=backend, return_lse=True)


def test_a_constant_changes_nothing_and_shifts_lse(backend: str, case: Case, dtype: str) -> None:
    """Forward, and the gradients of a loss on y; that of the bias sums to zero in every image, and to Σ g for lse."""
    y, psi, at = _made(case, dtype)
    bias = normal(1, case.batch, *case.grid, dtype=y.dtype)
    found = []
    for shift in (0.0, 40.0):
        leaves = [x.detach().clone().requires_grad_() for x in (y, psi, bias)]
        walked, lse = _walk(leaves[0], leaves[1], backend, leaves[2] + shift)
        upstream = normal(2, *walked.shape, dtype=y.dtype)
        grads = torch.autograd.grad(walked, leaves, upstream, retain_graph=True)
        (of_bias,) = torch.autograd.grad(lse, leaves[2], torch.ones_like(lse))
        found.append((walked.detach(), lse.detach(), *grads, of_bias))
    at = Setting(at.dtypes, 1, at.largest_logit + 42)
    (one, other), room = found, 2 * at.walk
    assert_each("P y", 1, other[0], one[0], room)
    assert_within("lse", other[1], one[1] + 40, 0.0, floor=room)
    assert_each("grad_y", 1, other[2], one[2], SEED_GRADIENT * room)
    scale = upstream.abs().sum(1).max().item() * y.abs().max().item()
    assert_each("grad_psi", 1, other[3], one[3], PSI_GRADIENT * room, floor=room * scale)
    total = other[4].double().flatten(1).sum(1)
    assert_within("Σ grad_bias", total, torch.zeros_like(total), 0.0, floor=room * scale * case.nodes)
    mass = other[5].double().flatten(1).sum(1)
    assert_within("Σ of lse", mass, torch.full_like(mass, case.nodes), PSI_GRADIENT * room)


def test_the_gaussian_kernel_equals_its_direct_formula(backend: str, case: Case, dtype: str) -> None:
    """b = -‖ψ‖²/2: P_ij ∝ exp(-‖ψ_i - ψ_j‖²/2), and lse_i - ‖ψ_i‖²/2 is the log of the row sum of that kernel."""
    y, psi, at = _made(case, dtype)
    squares = psi.square().sum(1)
    walked, lse = _walk(y, psi, backend, -squares / 2)
    p = psi.double().flatten(2).mT
    kernel = (-(p.unsqueeze(1) - p.unsqueeze(2)).square().sum(-1) / 2).exp()
    expected = (y.double().flatten(2) @ (kernel / kernel.sum(-1, keepdim=True)).mT).view(y.shape)
    # the squares are rounded to the dtype of the bias before anything else
    room = at.walk + 4 * HALF_ULP[at.accumulate] * at.largest_logit
    assert_each("P y", 1, walked, expected, room)
    density = kernel.sum(-1).log().view(lse.shape)
    assert_within("lse", lse.double() - squares.double() / 2, density, 0.0, floor=2 * room)


def test_the_symmetric_normalisation_in_log_space(backend: str, case: Case, dtype: str) -> None:
    """D^-½ W D^-½ x from two walks, where exp(lse/2) itself has left fp32."""
    x, psi, at = _made(case, dtype)
    _, lse = _walk(x, psi, backend)
    walked, other = _walk(x, psi, backend, -lse / 2)
    ours = (other - lse / 2).exp().unsqueeze(1) * walked
    logits = psi.double().flatten(2).mT @ psi.double().flatten(2)
    half = logits.logsumexp(-1) / 2
    symmetric = (logits - half.unsqueeze(1) - half.unsqueeze(2)).exp()
    expected = (x.double().flatten(2) @ symmetric).view(x.shape)
    assert_each("D^-½ W D^-½ x", 1, ours, expected, 4 * at.walk, floor=at.walk * x.abs().max().item())


def test_sinkhorn_makes_the_kernel_doubly_stochastic(backend: str, case: Case, dtype: str) -> None:
    """b ← (b - lse)/2: rows and columns of exp(S_ij + b_i + b_j) sum to one."""
    x, psi, _ = _made(case.with_(regime="smooth"), dtype)
    bias = torch.zeros(psi.shape[0], *psi.shape[2:], dtype=x.dtype)
    for _ in range(40):
        _, lse = _walk(x, psi, backend, bias)
        bias = (bias - lse) / 2
    logits = psi.double().flatten(2).mT @ psi.double().flatten(2)
    flat = bias.double().flatten(1)
    sums = (logits + flat.unsqueeze(1) + flat.unsqueeze(2)).exp().sum(-1)
    assert_within("row sums", sums, torch.ones_like(sums), 0.0, floor=1e-4)


def test_an_image_has_the_bits_it_has_alone(kernel: str, case: Case, dtype: str) -> None:
    """y, lse and all gradients, whatever the batch."""
    case = case.with_(batch=3)
    y, psi, _ = _made(case, dtype)
    bias = normal(1, 3, *case.grid, dtype=y.dtype)
    bias.flatten(1)[1, 0] = -torch.inf

    def run(images: slice) -> list[Tensor]:
        leaves = [x[images].clone().requires_grad_() for x in (y, psi, bias)]
        results = _walk(leaves[0], leaves[1], kernel, leaves[2])
        upstream = [normal(2 + n, 3, *x.shape[1:], dtype=y.dtype)[images] for n, x in enumerate(results)]
        return [*results, *torch.autograd.grad(results, leaves, upstream)]

    together = run(slice(0, 3))
    for image in range(3):
        assert_same(run(slice(image, image + 1)), [x[image : image + 1] for x in together])
