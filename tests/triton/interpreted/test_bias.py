"""A bias per column, the log-normaliser and their gradients (W1b, B4b, B8), against dense fp64 and autograd."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton import split
from tests.support.tolerances import assert_within
from tests.triton.interpreted.bounds import assert_as_plain_fp32, assert_right
from tests.triton.interpreted.cascade import biased, nearly_one_hot, problem, run, truth
from tests.triton.interpreted.faults import Fault, planted
from tests.triton.interpreted.plans import in_parts


@pytest.mark.parametrize("parts", (1, 3), ids=["alone", "parts"])
@pytest.mark.parametrize("classes", (5, 130), ids=["one_chunk", "chunks"])
def test_every_output_and_gradient_is_right(monkeypatch: pytest.MonkeyPatch, parts: int, classes: int) -> None:
    """Three walks, of which one has no bias, and one no gradient of its lse."""
    monkeypatch.setattr(split, "split_columns", in_parts(parts, all_parts=parts == 1))
    p = biased(problem(2, classes, 19, (20, 3, 8), state=True))
    p.bias[1], p.grad_lse[2] = None, None
    assert_right(p)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=["fp16", "bf16"])
def test_16_bits(dtype: torch.dtype) -> None:
    p = biased(problem(1, 5, 35, (16,), size=2.0))
    p.seed, p.grad, p.psi = p.seed.to(dtype), p.grad.to(dtype), [p.psi[0].to(dtype)]
    p.bias = [p.bias[0].to(dtype)]
    assert_right(p)


def test_medium_precision() -> None:
    assert_right(biased(problem(1, 5, 35, (16,), precision="medium")))


@pytest.mark.parametrize("size", (3.0, 30.0, 300.0), ids=["one_exp", "both_branches", "two_exps"])
def test_columns_of_any_weight(size: float) -> None:
    """Far maxima, rows that do not see themselves, and levels further apart than one exponential reaches."""
    p = biased(problem(1, 5, 51, (16,), size=1.0), size)
    answer = assert_right(p)
    spread = answer.saved[1][0, 0] + p.bias[0][0] / torch.log(torch.tensor(2.0))
    assert (spread.max() - spread.min() < 80) == (size == 3.0)


@pytest.mark.parametrize("where", ("scattered", "whole_tiles"))
def test_columns_without_weight(where: str) -> None:
    """-inf: no row looks at them, and they look at the others; rows start at a logit that exists."""
    p = biased(problem(2, 5, 51, (16, 8)))
    for number, b in enumerate(p.bias):
        hidden = torch.rand(51, generator=torch.Generator().manual_seed(number)) < 0.3
        b[:, hidden if where == "scattered" else slice(0, 40)] = -torch.inf
    answer = assert_right(p)
    for b, grad in zip(p.bias, answer.grad_bias, strict=True):
        assert (grad[b.isinf()] == 0).all()


@pytest.mark.parametrize("hidden", (slice(3, 51, 5), slice(20, 51), slice(16, 32)), ids=["scattered", "end", "tile"])
@pytest.mark.parametrize("idle", (True, False), ids=["masked", "not_masked"])
def test_masked_nodes_cost_no_second_exponential(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: slice, idle: bool
) -> None:
    """Columns of -inf whose nodes have no gradient leave a tile its one exponential; the other would be a NaN here."""
    spoilt = Fault("two", "walk.backward", "tl.exp2(above) * TRANSPOSED_SHIFT", "tl.exp2(above) * float('nan')")
    for (user, name), function in planted(spoilt, tmp_path).items():
        monkeypatch.setattr(user, name, function)
    p = biased(problem(1, 5, 51, (16, 8), size=1.0), 1.0)
    for b, grad in zip(p.bias, p.grad_lse, strict=True):
        b[:, hidden], grad[:, hidden] = -torch.inf, 0.0
    if idle:
        p.grad[..., hidden] = 0.0
        assert_right(p)
    else:
        with pytest.raises(AssertionError, match="not finite"):
            assert_right(p)


def test_an_image_whose_columns_all_have_no_weight_is_as_in_torch() -> None:
    """NaN, and lse -inf; its neighbour in the batch does not notice."""
    p = biased(problem(2, 5, 35, (16,)))
    p.bias[0][0] = -torch.inf
    answer, true = run(p), truth(p)
    assert answer.states[:, 0].isnan().all() and (answer.lse[0][0] == -torch.inf).all()
    assert true.states[:, 0].isnan().all() and (true.lse[0][0] == -torch.inf).all()
    second = dataclasses.replace(
        p, seed=p.seed[1:], psi=[p.psi[0][1:]], grad=p.grad[:, 1:], bias=[p.bias[0][1:]], grad_lse=[p.grad_lse[0][1:]]
    )
    alone = run(second)
    assert torch.equal(alone.states, answer.states[:, 1:])
    assert torch.equal(alone.grad_psi[0], answer.grad_psi[0][1:])
    assert torch.equal(alone.grad_bias[0], answer.grad_bias[0][1:])


@pytest.mark.parametrize("confidence", (0.9, 0.999))
def test_the_node_itself_is_summed_from_the_others(confidence: float) -> None:
    """With a gradient of lse its term is that gradient minus the others'."""
    assert_as_plain_fp32(nearly_one_hot(confidence))


def test_a_loss_of_lse_alone() -> None:
    p = biased(problem(1, 5, 35, (16,)))
    p.grad.zero_()
    answer = assert_right(p)
    assert (answer.grad_seed == 0).all()


@pytest.mark.parametrize("scale", (1e-20, 1e20))
def test_gradients_of_lse_of_any_unit(scale: float) -> None:
    """Beside those of the scores, and alone."""
    p = biased(problem(1, 5, 35, (16,)))
    p.grad_lse[0] *= scale
    p.grad *= scale if scale > 1 else 0.0
    assert_right(p)


def test_a_constant_changes_nothing_but_lse() -> None:
    p = problem(1, 5, 35, (16,))
    without = run(dataclasses.replace(p, grad_lse=[torch.zeros(1, 35)]))
    added = run(dataclasses.replace(p, bias=[torch.full((1, 35), 3.0)], grad_lse=[torch.zeros(1, 35)]))
    assert_within("states", added.states, without.states, 2e-6)
    assert_within("grad_psi", added.grad_psi[0], without.grad_psi[0], 2e-5)
    assert_within("lse", added.lse[0], without.lse[0] + 3.0, 2e-6)


def test_strides_change_nothing() -> None:
    """Expanded over the batch, and every second number of a wider field."""
    p = biased(problem(2, 5, 35, (16,)))
    p.bias, p.grad_lse = [p.bias[0][:1].expand(2, -1)], [p.grad_lse[0][:1].expand(2, -1)]
    wide = torch.full((2, 73), float("nan"))
    wide[:, 1:71:2] = p.bias[0]
    q = dataclasses.replace(p, bias=[wide[:, 1:71:2]], grad_lse=[p.grad_lse[0].contiguous()])
    p.bias = [p.bias[0].contiguous()]
    theirs = run(q).tensors()
    for name, expected in run(p).tensors().items():
        assert torch.equal(expected, theirs[name]), name


def test_the_gradient_of_the_bias_alone() -> None:
    p = biased(problem(1, 5, 35, (16, 8), steps=1))
    full = run(p)
    grad_bias = torch.full_like(p.bias[1], float("nan"))
    triton_backend.cascade_backward(
        list(p.grad),
        *(None, p.seed, p.psi, p.mu, p.beta, *full.saved, "high"),
        grad_state=None,
        grad_seed=None,
        grad_psi=[None, None],
        grad_mu=None,
        grad_beta=None,
        bias=p.bias,
        grad_lse=p.grad_lse,
        grad_bias=[None, grad_bias],
    )
    assert torch.equal(grad_bias, full.grad_bias[1])
