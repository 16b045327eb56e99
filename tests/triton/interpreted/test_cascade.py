"""The Triton kernels compute W1-W5 and B1-B7: interpreted on the CPU, against dense fp64 and autograd."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from difnet_kernels.backends import triton as triton_backend
from tests.triton.interpreted.bounds import assert_right
from tests.triton.interpreted.cascade import problem, run

# one below, at and above every tile, and primes; K, D and the batch rotate with coprime periods
NODES = (1, 2, 3, 7, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257)
CLASSES = (21, 1, 33, 2, 60)
EMBEDS = (16, 3, 64, 1, 65, 128, 200)
SHAPES = [(1 + (i + 1) % 2, CLASSES[i % 5], n, (EMBEDS[i % 7],) * (1 + (i % 3 == 1))) for i, n in enumerate(NODES[:-1])]
SHAPES.append((1, 21, 257, (64,)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_and_gradient_is_right(shape: tuple[int, int, int, tuple[int, ...]]) -> None:
    assert_right(problem(*shape))


@pytest.mark.parametrize("embed", (1, 3, 64, 65, 128, 200, 256))
def test_every_width_of_psi(embed: int) -> None:
    assert_right(problem(1, 5, 37, (embed,)))


@pytest.mark.parametrize("classes", (1, 2, 15, 16, 21, 31, 32, 60, 63, 64, 126))
def test_every_number_of_classes(classes: int) -> None:
    """At 15, 31, 63 the spare column is the last of its bucket; one class more opens the next."""
    assert_right(problem(1, classes, 21, (16,)))


@pytest.mark.parametrize(("classes", "embed"), [(127, 16), (128, 16), (255, 3)])
def test_more_classes_than_one_chunk_holds(classes: int, embed: int) -> None:
    assert_right(problem(2, classes, 35, (embed,), state=True))


def test_walks_of_different_widths_and_a_first_state() -> None:
    assert_right(problem(2, 21, 65, (3, 64, 17, 130, 16), state=True))


@pytest.mark.parametrize("steps", (1, 3), ids=["last", "every"])
@pytest.mark.parametrize("state", (False, True), ids=["from_seed", "from_state"])
def test_gradients_of_the_wanted_steps(steps: int, state: bool) -> None:
    assert_right(problem(2, 5, 33, (16, 3, 8), steps=steps, state=state))


@pytest.mark.parametrize("precision", ("high", "medium"))
@pytest.mark.parametrize("size", (0.5, 3.0, 8.0, 24.0))
def test_small_and_large_logits(size: float, precision: str) -> None:
    assert_right(problem(1, 5, 65, (16,), size=size, precision=precision))


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("psi_dtype", DTYPES, ids=["psi_fp32", "psi_fp16", "psi_bf16"])
@pytest.mark.parametrize("seed_dtype", DTYPES, ids=["seed_fp32", "seed_fp16", "seed_bf16"])
def test_mixed_dtypes(seed_dtype: torch.dtype, psi_dtype: torch.dtype) -> None:
    """bf16 passes through fp32 here, because the interpreter misreads it; the values are bf16's."""
    p = problem(1, 5, 35, (16, 16), size=2.0)
    p.seed, p.grad = p.seed.to(seed_dtype), p.grad.to(seed_dtype)
    p.psi = [p.psi[0].to(psi_dtype), p.psi[1]]
    answer = assert_right(p)
    assert [answer.states.dtype, answer.grad_seed.dtype, answer.grad_psi[0].dtype] == [
        seed_dtype,
        seed_dtype,
        psi_dtype,
    ]


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.mT.contiguous().mT


def _sliced(x: torch.Tensor) -> torch.Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    wide[..., 1 : 1 + 2 * x.shape[-1] : 2] = x
    return wide[..., 1 : 1 + 2 * x.shape[-1] : 2]


@pytest.mark.parametrize("layout", (_channels_last, _sliced))
def test_strides_change_nothing(layout) -> None:  # type: ignore[no-untyped-def]
    """Inputs, outputs and gradients in another layout give the same bits."""
    p = problem(2, 5, 35, (16, 3), state=True)
    q = dataclasses.replace(
        p, seed=layout(p.seed), psi=[layout(x) for x in p.psi], grad=layout(p.grad), state=layout(p.state)
    )
    ours, theirs = run(p).tensors(), run(q, out_like=layout(p.grad)).tensors()
    for name, expected in ours.items():
        assert torch.equal(expected, theirs[name]), name


@pytest.mark.parametrize("keep", (0, 1, 2, 3), ids=["steps", "batch", "classes", "nodes"])
def test_an_expanded_gradient_is_read_with_stride_zero(keep: int) -> None:
    p = problem(2, 5, 17, (16, 3))
    p.grad = p.grad.narrow(keep, 0, 1).expand_as(p.grad)
    q = dataclasses.replace(p, grad=p.grad.contiguous())
    ours, theirs = run(p).tensors(), run(q).tensors()
    for name, expected in ours.items():
        assert torch.equal(expected, theirs[name]), name
    if keep == 0:
        p.grad = torch.ones(()).expand(2, 2, 5, 17)
        assert_right(p)


def test_a_batch_is_its_images_one_by_one() -> None:
    p = problem(3, 5, 19, (16, 3))
    whole = run(p)
    for b in range(3):
        one = run(
            dataclasses.replace(p, seed=p.seed[b : b + 1], psi=[x[b : b + 1] for x in p.psi], grad=p.grad[:, b : b + 1])
        )
        assert torch.equal(one.states, whole.states[:, b : b + 1])
        assert torch.equal(one.grad_seed, whole.grad_seed[b : b + 1])
        assert torch.equal(one.grad_psi[0], whole.grad_psi[0][b : b + 1])


@pytest.mark.parametrize("classes", (5, 130))
def test_walks_in_one_call_are_single_walks(classes: int) -> None:
    """fp32, where a state between two calls is not rounded: every step, and the gradients of psi, mu, beta and y⁰, because
    the backward makes the states between its walks again with the forward's own bits."""
    p = problem(2, classes, 19, (16, 3, 8), steps=1, state=True)
    together = run(p)
    state, grad, given, answers = p.state, p.grad, [], []
    for t in range(3):
        given.append(state)
        one = dataclasses.replace(p, psi=[p.psi[t]], mu=p.mu[t : t + 1], beta=p.beta[t : t + 1], state=state)
        state = run(one).states[0]
    assert torch.equal(state, together.states[0])
    for t in reversed(range(3)):
        one = dataclasses.replace(
            p, psi=[p.psi[t]], mu=p.mu[t : t + 1], beta=p.beta[t : t + 1], state=given[t], grad=grad
        )
        answers.append(run(one))
        grad = answers[-1].grad_state[None]
    assert torch.equal(grad[0], together.grad_state)
    for t, answer in zip(reversed(range(3)), answers, strict=True):
        assert torch.equal(answer.grad_psi[0], together.grad_psi[t]), t
        assert torch.equal(answer.grad_mu, together.grad_mu[t : t + 1]), t
        assert torch.equal(answer.grad_beta, together.grad_beta[t : t + 1]), t


@pytest.mark.parametrize("classes", (5, 130), ids=["one_chunk", "chunks"])
@pytest.mark.parametrize("wanted", ("seed", "psi", "gates"))
def test_what_is_not_wanted_changes_nothing_else(wanted: str, classes: int) -> None:
    """Gradients of the seed alone (no T), of the last psi alone (one walk backwards), of the gates alone; and a forward that
    keeps nothing."""
    p = problem(1, classes, 21, (20, 8), steps=1)
    full = run(p)
    kept = torch.full_like(full.states, float("nan"))
    triton_backend.cascade_forward(
        None, p.seed, p.psi, p.mu, p.beta, "high", states=list(kept), walked=None, row_lse=None
    )
    assert torch.equal(kept, full.states)
    seed, psi, mu, beta = (torch.full_like(x, float("nan")) for x in (p.seed, p.psi[1], p.mu, p.beta))
    triton_backend.cascade_backward(
        list(p.grad),
        *(None, p.seed, p.psi, p.mu, p.beta, *full.saved, "high"),
        grad_state=None,
        grad_seed=seed if wanted == "seed" else None,
        grad_psi=[None, psi if wanted == "psi" else None],
        grad_mu=mu if wanted == "gates" else None,
        grad_beta=beta if wanted == "gates" else None,
    )
    pairs = {
        "seed": [(seed, full.grad_seed)],
        "psi": [(psi, full.grad_psi[1])],
        "gates": [(mu, full.grad_mu), (beta, full.grad_beta)],
    }
    for ours, theirs in pairs[wanted]:
        assert torch.equal(ours, theirs)
