"""Classes and channels that are small beside others keep their own accuracy: errors are measured per class and channel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels import random_walk
from tests.support.cases import Case, Inputs, make, normal
from tests.support.tolerances import PSI_GRADIENT, SEED_GRADIENT, assert_each
from tests.support.truth import Result, assert_forward, assert_gradients, both, setting, truth_of

CASE = Case(2, (40,), 16, 6, 2, "smooth")
SCALES = {"1e-8": 1e-8, "1e-10": 1e-10, "1e-20": 1e-20, "1e10": 1e10}


def _scaled(x: Tensor, scale: float) -> Tensor:
    """Every other class times scale."""
    factors = torch.where(torch.arange(x.shape[1]) % 2 == 0, 1.0, scale).to(x.dtype)
    return x * factors.view(-1, *(1,) * (x.dim() - 2))


def _checked(inputs: Inputs, backend: str) -> Result:
    result, truth = both(inputs, backend), truth_of(inputs)
    assert_forward(result.state, inputs, truth)
    assert_gradients(result, inputs, truth)
    return result


@pytest.mark.smoke
@pytest.mark.parametrize("what", ["seed", "gradient", "both", "against each other"])
@pytest.mark.parametrize("scale", SCALES)
def test_classes_of_very_different_sizes(backend: str, scale: str, what: str) -> None:
    """Softmax probabilities have classes at 1e-10 of the largest; so have gradients."""
    inputs, factor = make(CASE), SCALES[scale]
    if what != "gradient":
        inputs = replace(inputs, seed=_scaled(inputs.seed, factor))
    if what != "seed":
        inputs = replace(inputs, grad=_scaled(inputs.grad, 1 / factor if what == "against each other" else factor))
    _checked(inputs, backend)


@pytest.mark.smoke
def test_probabilities_with_classes_that_are_hardly_there(backend: str) -> None:
    logits = normal(3, 2, 6, 40)
    logits[:, 3:] -= 18.0
    _checked(replace(make(CASE), seed=logits.softmax(1)), backend)


def test_a_state_with_small_classes(backend: str) -> None:
    inputs = make(CASE)
    state, seed = _scaled(normal(5, 2, 6, 40), 1e-10), _scaled(inputs.seed, 1e-10)

    def run(kind: torch.dtype, name: str) -> list[Tensor]:
        leaves = [x.to(kind).requires_grad_() for x in (state, inputs.psi[0], seed)]
        y = random_walk(*leaves, 0.7, 0.6, backend=name)
        return [y.detach(), *torch.autograd.grad(y, leaves, inputs.grad.to(kind))]

    bound = setting(replace(inputs, psi=inputs.psi[:1])).walk
    factors = {"state": 1, "grad_state": SEED_GRADIENT, "grad_psi": PSI_GRADIENT, "grad_seed": SEED_GRADIENT}
    for (name, factor), a, b in zip(
        factors.items(), run(torch.float32, backend), run(torch.float64, "reference"), strict=True
    ):
        assert_each(name, 1, a, b, factor * bound)


@pytest.mark.smoke
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5, 1e-8])
def test_tiny_embeddings(backend: str, size: float) -> None:
    """P is nearly uniform, and ∂ψ as small as ψ: no floor hides it."""
    inputs = make(Case(2, (40,), 16, 6, 1))
    inputs = replace(inputs, psi=[normal(7, 2, 16, 40) * size])
    result, truth = both(inputs, backend), truth_of(inputs)
    assert_each("state", 1, result.state, truth.state, setting(inputs).walk)
    # a sum of N products of either sign leaves some times its own rounding
    assert_each("grad_psi", 1, result.grad_psi[0], truth.grad_psi[0], 2e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("length", [1e2, 1e4])
def test_an_outlier_takes_nothing_from_the_others(backend: str, length: float) -> None:
    """One node of 1e4 beside norms of half: every other node's error is that of its own logits."""
    inputs = make(Case(1, (60,), 16, 5, 1))
    psi = normal(9, 1, 16, 60) * 0.125
    psi[..., 31] *= length / psi[..., 31].norm()
    inputs = replace(inputs, psi=[psi])
    result, truth = both(inputs, backend), truth_of(inputs)
    # a logit with the outlier is as large as its length, and exp makes of its rounding an error of the weight
    logits = 8 * 2.0**-24 * length
    others = torch.arange(60) != 31
    assert_each("state", 1, result.state[..., others], truth.state[..., others], 2e-6 + logits)
    assert_each("grad_seed", 1, result.grad_seed, truth.grad_seed, 2 * (2e-6 + logits))


@pytest.mark.parametrize("channel", [0, 7, 15])
def test_a_small_channel_of_psi(backend: str, channel: int) -> None:
    """Its gradient is as small as it is, and measured against itself."""
    inputs = make(Case(2, (40,), 16, 6, 1, "smooth"))
    psi = inputs.psi[0].clone()
    psi[:, channel] *= 1e-3
    _checked(replace(inputs, psi=[psi]), backend)
