"""The same bits every time: run to run, whatever the threads, whatever else is in the batch, one call or several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from difnet_kernels import cascaded_random_walk, random_walk
from tests.support.cases import DTYPES, Case, Inputs, make
from tests.support.truth import assert_same, both, forward

LARGE = Case(5, (193,), 32, 21, 2, "smooth")
# one tile, a ragged one, several; one image or more images than threads
CASES = (Case(1, (65,), 16, 5, 2), Case(1, (385,), 64, 21, 1, "smooth"), LARGE, Case(3, (257,), 16, 5, 2, "shuffled"))
EVERY_DTYPE = pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.smoke), "bf16", "fp16", "fp64"])


def _image(inputs: Inputs, b: int) -> Inputs:
    part = slice(b, b + 1)
    return replace(inputs, seed=inputs.seed[part], psi=[p[part] for p in inputs.psi], grad=inputs.grad[part])


def test_fifty_runs_agree(backend: str) -> None:
    inputs = make(LARGE)
    first = both(inputs, backend).tensors()
    for _ in range(50):
        assert_same(both(inputs, backend).tensors(), first)


def test_250_runs_agree_at_a_large_batch(kernel: str, threads: None) -> None:
    """More threads than cores, so that they are interrupted anywhere: a missing barrier shows as a rare difference."""
    torch.set_num_threads(7)
    inputs = make(Case(16, (130,), 16, 5, 1, "smooth"))
    first = both(inputs, kernel).tensors()
    for _ in range(250):
        assert_same(both(inputs, kernel).tensors(), first)


def test_interrupted_workers_change_no_bit(kernel: str, threads: None) -> None:
    """Sixteen threads on a few cores: most of them lose their core in the middle of a step, somebody else makes it in the
    meantime, and what comes too late must be dropped. It is chance, and twenty calls may pass without it."""
    inputs = make(Case(1, (4097,), 32, 5, 1, "smooth"))  # longer than a thread may keep its core
    torch.set_num_threads(1)
    alone = forward(inputs, kernel)
    torch.set_num_threads(16)
    for _ in range(200):
        assert_same([forward(inputs, kernel)], [alone])


def test_this_comparison_can_fail() -> None:
    """The twin: the same sums in another order differ in their last bit, and that is enough."""
    a, b, c, *_ = make(LARGE).seed
    ahead, astray = (a + b) + c, a + (b + c)
    assert torch.allclose(ahead, astray, atol=1e-5)
    with pytest.raises(AssertionError, match="places differ"):
        assert_same([ahead], [astray])


@EVERY_DTYPE
@pytest.mark.parametrize("case", CASES, ids=str)
def test_thread_counts_agree(kernel: str, threads: None, case: Case, dtype: str) -> None:
    """Also the gradients: each thread owns its sums, and they are merged in a fixed order."""
    inputs = make(case, DTYPES[dtype])
    torch.set_num_threads(1)
    alone = both(inputs, kernel).tensors()
    for count in (2, 3, 4, 16):
        torch.set_num_threads(count)
        assert_same(both(inputs, kernel).tensors(), alone)


@EVERY_DTYPE
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_image_alone_equals_itself_in_a_batch(kernel: str, threads: None, dtype: str, count: int) -> None:
    torch.set_num_threads(count)
    inputs = make(LARGE, DTYPES[dtype])
    together = both(inputs, kernel)
    for b in range(LARGE.batch):
        apart = both(_image(inputs, b), kernel)
        part = slice(b, b + 1)
        pick = [together.state[part], together.grad_seed[part], *(g[part] for g in together.grad_psi)]
        assert_same([apart.state, apart.grad_seed, *apart.grad_psi], pick)


@EVERY_DTYPE
def test_the_last_step_is_the_result(backend: str, dtype: str) -> None:
    """return_steps only keeps more: y^T and the gradients of a loss on it do not change."""
    inputs = make(Case(2, (70,), 16, 5, 4, "smooth"), DTYPES[dtype])
    leaves = [x.clone().requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]
    seed, *psi, mu, beta = leaves
    steps = cascaded_random_walk(seed, psi, mu, beta, backend=backend, return_steps=True)
    plain = both(inputs, backend)
    grads = torch.autograd.grad(steps[-1], leaves, inputs.grad)
    assert_same([steps[-1].detach(), *grads], plain.tensors())


@pytest.mark.parametrize("walks", [1, 2, 5])
def test_one_call_equals_as_many_single_walks(kernel: str, walks: int) -> None:
    """fp32, where a state between two calls is not rounded: every step bit for bit. The gradients agree to a rounding,
    because one call makes the states between its walks again where single walks have them."""
    inputs = make(Case(2, (70,), 16, 5, walks, "smooth"))
    seed = inputs.seed
    psi = [p.clone().requires_grad_() for p in inputs.psi]
    mu, beta = inputs.mu.clone().requires_grad_(), inputs.beta.clone().requires_grad_()
    steps = cascaded_random_walk(seed, inputs.psi, inputs.mu, inputs.beta, backend=kernel, return_steps=True)
    state = seed
    for t in range(walks):
        state = random_walk(state, psi[t], seed, mu[t], beta[t], backend=kernel)
        assert torch.equal(state, steps[t])
    grads = torch.autograd.grad(state, [*psi, mu, beta], inputs.grad)
    together = both(inputs, kernel)
    for ours, theirs in zip(grads, [*together.grad_psi, together.grad_mu, together.grad_beta], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("grad_mode", ["no_grad", "inference_mode", "recorded"])
def test_recording_does_not_change_the_result(backend: str, grad_mode: str) -> None:
    inputs = make(LARGE)
    expected = forward(inputs, backend)
    if grad_mode == "recorded":
        assert torch.equal(both(inputs, backend).state, expected)
        return
    with torch.no_grad() if grad_mode == "no_grad" else torch.inference_mode():
        psi = [p.clone() for p in inputs.psi]
        ours = cascaded_random_walk(inputs.seed, psi, inputs.mu, inputs.beta, backend=backend)
    assert torch.equal(ours, expected)
    assert not ours.requires_grad
