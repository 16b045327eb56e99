"""Sizes at their ends: nothing, one of everything, very many images, and more nodes than int32 can index squared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from difnet_kernels import cascaded_random_walk, random_walk, transition_rows
from tests.support.cases import Case, Inputs, make, normal
from tests.support.tolerances import SEED_GRADIENT, assert_within
from tests.support.truth import assert_forward, assert_gradients, both, forward, truth_of


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
@pytest.mark.parametrize(("batch", "grid"), [(0, (5,)), (2, (0,)), (2, (4, 0)), (0, (0, 3)), (0, (2, 3, 4))], ids=str)
def test_nothing_in_nothing_out(backend: str, batch: int, grid: tuple[int, ...], steps: bool) -> None:
    """B = 0 or N = 0: results and gradients are empty or zero, with the right shapes and dtypes."""
    leaves = [torch.randn(batch, 4, *grid), torch.randn(batch, 6, *grid), torch.randn(batch, 2, *grid)]
    leaves += [torch.tensor([0.5, 0.25]), torch.tensor([0.75, 0.5])]
    seed, first, second, mu, beta = (x.requires_grad_() for x in leaves)
    y = cascaded_random_walk(seed, [first, second], mu, beta, backend=backend, return_steps=steps)
    results = y if steps else (y,)
    assert len(results) == (2 if steps else 1)
    assert all(result.shape == seed.shape and result.dtype == seed.dtype for result in results)
    sum(result.sum() for result in results).backward()
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)
    assert not mu.grad.any() and not beta.grad.any()


def test_nothing_walks_nowhere(backend: str) -> None:
    """random_walk and transition_rows with B = 0, N = 0 and no nodes asked for."""
    empty = torch.empty(0, 3, 5)
    assert random_walk(empty, torch.empty(0, 2, 5), empty, 0.5, 0.5, backend=backend).shape == (0, 3, 5)
    assert transition_rows(torch.empty(0, 2, 5), torch.empty(0, 4, dtype=torch.long)).shape == (0, 4, 5)
    assert transition_rows(torch.randn(2, 2, 5), torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, 5)


@pytest.mark.parametrize(("embed", "classes"), [(1, 1), (1, 7), (7, 1), (200, 150), (257, 3), (3, 300)], ids=str)
@pytest.mark.parametrize("nodes", [1, 2, 70])
def test_narrow_and_wide(backend: str, nodes: int, embed: int, classes: int) -> None:
    inputs = make(Case(2, (nodes,), embed, classes, 2, "smooth"))
    truth = truth_of(inputs)
    result = both(inputs, backend)
    assert_forward(result.state, inputs, truth)
    assert_gradients(result, inputs, truth)


def test_twenty_walks(backend: str) -> None:
    inputs = make(Case(1, (37,), 4, 3, 20, "smooth"))
    truth = truth_of(inputs)
    result = both(inputs, backend)
    assert_forward(result.state, inputs, truth)
    assert_gradients(result, inputs, truth)


def test_one_node_is_its_own_seed(backend: str) -> None:
    """N = 1: P = 1, so the seed comes back, exactly, and psi has no say."""
    inputs = make(Case(3, (1,), 5, 4, 3))
    result = both(inputs, backend)
    assert_within("state", result.state, inputs.seed, 1e-6)
    assert_within("grad_seed", result.grad_seed, inputs.grad, 1e-6)
    assert all(gradient.abs().max() < 1e-4 for gradient in result.grad_psi)


def test_65536_images(backend: str) -> None:
    """More images than a grid dimension of a GPU holds, each its own problem."""
    seed, psi, grad = (normal(number, 16, 2, 3) for number in range(3))
    few = Inputs(seed, [psi], torch.tensor([0.5]), torch.tensor([0.5]), grad)
    many = replace(
        few, seed=few.seed.repeat(4096, 1, 1), psi=[few.psi[0].repeat(4096, 1, 1)], grad=few.grad.repeat(4096, 1, 1)
    )
    small, large = both(few, backend), both(many, backend)
    for ours, true in ((large.state, small.state), (large.grad_psi[0], small.grad_psi[0])):
        assert_within("image", ours.reshape(4096, 16, 2, 3), true.expand(4096, -1, -1, -1), 1e-6)


def test_more_nodes_than_int32_can_square(kernel: str) -> None:
    """N = 46,400: row * N + column passes 2³¹. The truth of 64 rows, spread to the last one, is cheap."""
    nodes = 46_400
    seed, psi = normal(1, 1, 1, nodes), normal(2, 1, 2, nodes)
    y = cascaded_random_walk(seed, [psi], [1.0], [1.0], backend=kernel)
    rows = torch.linspace(0, nodes - 1, 64).long()
    true = torch.softmax(psi[0, :, rows].double().T @ psi[0].double(), dim=-1) @ seed[0, 0].double()
    # the mean of 46,400 scores of size one is about 1/200: the bound is relative to the scores, as a sum's rounding is
    assert_within("state", y[0, 0, rows], true, 0.0, floor=4e-6 * seed.abs().max().item())


@pytest.mark.parametrize("axis", ["images", "channels", "nodes"])
def test_strides_beyond_int32(backend: str, axis: str) -> None:
    """Neighbours 2³¹ elements apart, in a tensor whose pages are never touched."""
    gap = 2**31 + 64
    strides = {"images": (gap, 3, 1), "channels": (8, gap, 1), "nodes": (16, 4, gap)}[axis]
    shape = {"images": (2, 2, 3), "channels": (1, 2, 5), "nodes": (1, 2, 2)}[axis]
    inputs = make(Case(shape[0], (shape[2],), 2, 2, 1, "smooth"), torch.float16)
    far = torch.empty(2 * gap + 64, dtype=torch.float16).as_strided(shape, strides)
    expected = both(inputs, backend)
    for role in ("seed", "psi", "grad"):
        far.copy_(inputs.psi[0] if role == "psi" else getattr(inputs, role))
        moved = replace(inputs, psi=[far]) if role == "psi" else replace(inputs, **{role: far})
        ours = both(moved, backend)
        assert_within(role, ours.state, expected.state, 2.0**-11)
        assert_within(role, ours.grad_seed, expected.grad_seed, SEED_GRADIENT * 2.0**-11)
        assert_within(role, ours.grad_psi[0], expected.grad_psi[0], SEED_GRADIENT * 2.0**-11)


def test_out_of_memory_is_torchs_own_error_and_leaves_the_next_call_working(backend: str) -> None:
    """Sizes no machine holds, out of expanded inputs that cost nothing."""
    small = make(Case(1, (8,), 3, 2, 1, "smooth"))
    before = forward(small, backend)
    vast = torch.zeros(1, 1, 1).expand(1 << 34, 1 << 14, 64)
    with pytest.raises((RuntimeError, MemoryError), match=r"(?i)memory|alloc|overflow"):
        cascaded_random_walk(vast, [vast[:, :1]], [0.5], [0.5], backend=backend)
    assert torch.equal(forward(small, backend), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("embed", "classes"), [(1280, 3), (8, 1000)], ids=str)
def test_the_widest_that_are_promised(native: str, embed: int, classes: int, dtype: torch.dtype) -> None:
    """Embeddings of vision transformers, and as many classes as ImageNet has."""
    inputs = make(Case(1, (70,), embed, classes, 1, "smooth"), dtype)
    truth = truth_of(inputs)
    ours = both(inputs, "cpu")
    assert_forward(ours.state, inputs, truth)
    assert_gradients(ours, inputs, truth)
