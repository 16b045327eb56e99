"""The judge of the benchmarks: its truth is the reference's, it passes the right and catches the wrong."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.cascade import runner
from benchmarks.cases import CASES, Case
from benchmarks.device import device
from benchmarks.inputs import KINDS, make_inputs
from benchmarks.peers import CONTENDERS, Setting, cascade_of, dense_walk
from benchmarks.truth import judge, truth_of
from difnet_kernels import cascaded_random_walk

SMALL = Case("small", 2, 169, 16, 5, walks=3)
PEERS = ("ours", "dense", "sdpa")


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_that_of_the_reference_backend(kind: str):
    """Two independent forms of the backward: generic and blocked here, symmetric and dense there."""
    inputs = make_inputs(SMALL, kind, torch.float64)
    truth = truth_of(inputs, backward=True)
    leaves = inputs.leaves()
    state = cascaded_random_walk(leaves.seed, leaves.psi, leaves.mu, leaves.beta, backend="reference")
    torch.testing.assert_close(state.flatten(2).mT, truth.state, rtol=1e-11, atol=1e-12)
    assert truth.grads is not None
    for ours, true in zip(torch.autograd.grad(state, leaves.differentiable, leaves.grad), truth.grads, strict=True):
        ours = ours.flatten(2).mT if ours.dim() > 2 else ours
        torch.testing.assert_close(ours.double(), true, rtol=1e-6, atol=1e-9)


def test_row_blocks_do_not_change_the_truth(monkeypatch: pytest.MonkeyPatch):
    inputs = make_inputs(SMALL, "network", torch.float32)
    whole = truth_of(inputs, backward=True)
    monkeypatch.setattr("benchmarks.truth._row_blocks", lambda psi: [slice(i, i + 7) for i in range(0, 169, 7)])
    blocked = truth_of(inputs, backward=True)
    torch.testing.assert_close(whole.state, blocked.state, rtol=1e-12, atol=1e-13)
    for a, b in zip(whole.grads or [], blocked.grads or [], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_contenders_pass(name: str, kind: str, dtype: torch.dtype, direction: str):
    inputs = make_inputs(SMALL, kind, dtype)
    contender = CONTENDERS[name]
    state, grads = runner(contender.build(Setting(SMALL, dtype, device("cpu"), direction)), inputs, direction)()
    assert (grads is None) == (direction == "forward")
    verdict = judge(inputs, truth_of(inputs, backward=True), state, grads, fp32_logits=contender.fp32_logits)
    assert verdict.passed, verdict


def _scaled(psi: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return dense_walk(psi * 1.01, state)


def _rounded(psi: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return dense_walk(psi.to(torch.bfloat16).float(), state)


def _without_one_node(psi: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return torch.softmax((psi @ psi.mT)[..., :-1], -1) @ state[..., :-1, :]


@pytest.mark.parametrize("wrong", [_scaled, _rounded, _without_one_node], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_walk_does_not_get_a_time(wrong, kind: str):
    """A slightly different scale, 16-bit logits, a forgotten last column: each is told from fp32 rounding."""
    inputs = make_inputs(SMALL, kind, torch.float32)
    state, grads = runner(cascade_of(wrong), inputs, "forward+backward")()
    assert not judge(inputs, truth_of(inputs, backward=True), state, grads).passed


def test_nan_does_not_pass():
    inputs = make_inputs(SMALL, "smooth", torch.float32)
    assert not judge(inputs, truth_of(inputs, backward=False), torch.full_like(inputs.seed, torch.nan), None).passed


def test_smooth_inputs_leave_no_pair_out_and_network_inputs_look_like_a_network():
    smooth = make_inputs(CASES["train321_one"], "smooth", torch.float32)
    for psi in smooth.psi:
        nodes = psi.flatten(2)[0].mT
        logits = nodes @ nodes.mT
        off_diagonal = logits[~torch.eye(len(logits), dtype=torch.bool)]
        assert 0.9 < off_diagonal.std() < 1.1
        # no tile of 16 columns is below fp32 rounding beside the largest weight of its row
        tiles = logits[:, : 16 * (len(logits) // 16)].unflatten(1, (-1, 16)).amax(-1)
        assert (tiles - logits.amax(-1, keepdim=True)).amin() > -24 * math.log(2)
    network = make_inputs(CASES["train321_one"], "network", torch.float32)
    norms = [psi.square().sum(1).mean().item() for psi in network.psi]
    assert all(50 < norm < 550 for norm in norms), norms
    assert max(norms) > 2 * min(norms), norms
    for x in (*smooth.psi, *network.psi, smooth.seed, smooth.grad):
        assert bool((x != 0).any(1).all())


def test_maps_have_the_norms_of_a_network_and_weights_that_fade_through_the_denormals():
    """Between e⁻⁸⁷ and e⁻¹⁰⁴ of its row's largest, a weight in fp32 is a denormal number."""
    for psi in make_inputs(CASES["eval505"], "maps", torch.float32).psi:
        nodes = psi.flatten(2)[0].mT
        norms = nodes.square().sum(1)
        assert norms.min() > 59 and norms.max() < 551 and norms.max() > 4 * norms.min()
        logits = nodes @ nodes.mT
        below = logits - logits.amax(-1, keepdim=True)
        assert ((below < -87) & (below > -104)).float().mean() > 0.02


def test_inputs_are_the_same_every_time():
    for first, second in zip(make_inputs(SMALL, "network", torch.float32).psi,
                             make_inputs(SMALL, "network", torch.float32).psi, strict=True):  # fmt: skip
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_medium_allows_one_product_and_not_anything(kind: str):
    """Logits of one fp16 product pass as "medium" alone; a quarter of y passes as neither."""
    inputs = make_inputs(SMALL, kind, torch.float32)
    truth = truth_of(inputs, backward=False)
    state = cascade_of(lambda psi, y: dense_walk(psi.half().float(), y))(
        inputs.seed, inputs.psi, inputs.mu, inputs.beta
    )
    assert judge(inputs, truth, state, None, precision="medium").passed
    assert not judge(inputs, truth, state, None).passed
    assert not judge(inputs, truth, state * 1.25, None, precision="medium").passed
