"""What only a card can show of the one launch: that it is right there, streams, graphs, devices, the same bits 250 times.

`pytest --backends cuda tests/kernels` runs there what every backend promises of a forward.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, random_walk
from tests.cuda.projected import assert_right, inputs_of, truth, walk_of
from tests.support.cases import DTYPES, Case, Inputs, make, normal
from tests.support.dense import dense
from tests.support.tolerances import assert_within
from tests.support.truth import assert_forward, assert_gradients, assert_same, both, setting, truth_of

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("card", range(torch.cuda.device_count()))]
WIDTHS = ((16, 5), (64, 21), (64, 60), (128, 21), (128, 60))
SMALL = Case(2, (613,), 64, 21, 3)


def on(card: int, case: Case, dtype: str = "fp32") -> Inputs:
    inputs, device = make(case, DTYPES[dtype]), torch.device("cuda", card)
    psi = [p.to(device) for p in inputs.psi]
    return Inputs(inputs.seed.to(device), psi, inputs.mu.to(device), inputs.beta.to(device), inputs.grad.to(device))


def walk(inputs: Inputs, precision: str = "high") -> Tensor:
    with torch.no_grad():
        y = cascaded_random_walk(inputs.seed, inputs.psi, inputs.mu, inputs.beta, precision=precision, backend="cuda")
    assert isinstance(y, Tensor)
    return y


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_small_cascade_is_right(card: int, dtype: str) -> None:
    """Also under compute-sanitizer."""
    inputs = on(card, Case(2, (130,), 64, 21, 2), dtype)
    assert_forward(walk(inputs), inputs, truth_of(inputs))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("nodes", [130, 1100])
def test_gradients_are_right(card: int, dtype: str, nodes: int) -> None:
    """And the same bits the second time; 1,100 nodes are cut into parts."""
    inputs = on(card, Case(2, (nodes,), 64, 21, 2), dtype)
    result = both(inputs, "cuda")
    assert_gradients(result, inputs, truth_of(inputs))
    assert_same(both(inputs, "cuda").tensors(), result.tensors())


def test_a_bias_and_lse(card: int) -> None:
    """(W1b) lse has the error of the logits themselves, which the matrix units truncate."""
    inputs = on(card, SMALL)
    draw = torch.randn(2, 613, generator=torch.Generator().manual_seed(5)).to(inputs.seed.device)
    biases = [draw, None, torch.where(draw > 0.3, -torch.inf, draw)]
    with torch.no_grad():
        steps = cascaded_random_walk(
            inputs.seed, inputs.psi, inputs.mu, inputs.beta, bias=biases, backend="cuda", return_steps=True
        )
        _, lse = random_walk(
            inputs.seed, inputs.psi[0], inputs.seed, 0.5, 0.5, bias=draw, backend="cuda", return_lse=True
        )
    fields = (inputs.seed.double(), [p.double() for p in inputs.psi], inputs.mu.double(), inputs.beta.double())
    true, true_lse = dense(*fields, bias=[None if b is None else b.double() for b in biases])
    at = setting(inputs)
    for ours, exact in zip(steps, true, strict=True):
        assert (ours.double() - exact).abs().max() <= at.walk * inputs.seed.abs().max()
    assert (lse.double() - true_lse[0]).abs().max() <= at.walk + 2e-6 * at.largest_logit


def test_the_host_waits_for_nothing(card: int) -> None:
    inputs = on(card, SMALL)
    walk(inputs)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        walk(inputs)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("embed", "classes"), WIDTHS)
def test_every_kernel_is_right(card: int, embed: int, classes: int, dtype: str, precision: str) -> None:
    for nodes in (1, 65, 1681, 4096):
        inputs = on(card, Case(1, (nodes,), embed, classes, 2), dtype)
        assert_forward(walk(inputs, precision), inputs, truth_of(inputs), precision)


def test_250_runs_agree(card: int) -> None:
    """At a batch that fills the card and at one that does not."""
    for case in (SMALL, SMALL.with_(batch=16, grid=(1681,)), SMALL.with_(batch=1, grid=(4096,))):
        inputs = on(card, case)
        first = walk(inputs)
        for _ in range(250):
            assert torch.equal(walk(inputs), first)


def test_side_streams_beside_each_other(card: int) -> None:
    """Two streams at once, each with its own counters."""
    inputs = on(card, SMALL)
    expected = walk(inputs)
    torch.cuda.synchronize(card)
    streams = [torch.cuda.Stream(card) for _ in range(2)]
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(walk(inputs))
    torch.cuda.synchronize(card)
    assert all(torch.equal(y, expected) for y in found)


def test_a_graph_replays_the_same_bits(card: int) -> None:
    inputs = on(card, SMALL)
    expected = walk(inputs)
    with torch.cuda.device(card):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = walk(inputs)
        for _ in range(3):
            y.zero_()
            graph.replay()
            walk(inputs)  # eager, beside the graph
            torch.cuda.synchronize(card)
            assert torch.equal(y, expected)


def test_a_compiler_that_captures(card: int) -> None:
    """It warms up, captures and replays; eager calls stand between."""
    inputs = on(card, SMALL)
    expected = walk(inputs)
    compiled = torch.compile(walk, mode="reduce-overhead")
    with torch.cuda.device(card):
        for _ in range(4):
            assert torch.equal(compiled(inputs).clone(), expected)
            assert torch.equal(walk(inputs), expected)


def test_the_current_device_stays(card: int) -> None:
    """The launch goes where the tensors are, whatever device is current."""
    before = torch.cuda.current_device()
    inputs = on(card, SMALL)
    assert_forward(walk(inputs), inputs, truth_of(inputs))
    assert torch.cuda.current_device() == before


@pytest.mark.smoke
@pytest.mark.parametrize("channels", [3, 70])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_projection_is_right(card: int, dtype: str, channels: int) -> None:
    """Ψ in training, forward and backward, beside the reference in fp64 at the same winners; the same bits again."""
    device = torch.device("cuda", card)
    x = normal(1, 2, channels, 1, 41, 53).to(device, DTYPES[dtype])
    weight, slope = normal(2, 64, channels).to(device), normal(3, 64).to(device)
    upstream = (normal(4, 2, 64, 1, 20, 27).to(device), normal(5, 64).to(device), normal(6, 64).to(device))
    project, back = torch.ops.difnet_kernels.projection_forward, torch.ops.difnet_kernels.projection_backward

    def made(name: str, x: Tensor, weight: Tensor, position: Tensor | None = None) -> list[Tensor]:
        peak, found, *moments = project(x, weight, slope.to(weight), (1, 20, 27), True, name)
        given = [g.to(weight) for g in upstream]
        grads = back(*given, x, weight, found if position is None else position, None, moments[0], True, True, name)
        return [found, peak, *moments, *grads]

    ours = made("cuda", x, weight)
    true = made("reference", x.double(), weight.double(), ours[0])
    bounds = {"peak": 1e-5, "mean": 1e-5, "variance": 1e-5, "features": 4e-5, "weight": 4e-5}
    for (name, bound), a, b in zip(bounds.items(), ours[1:], true[1:], strict=True):
        assert_within(name, a, b, bound)
    assert_same(made("cuda", x, weight), ours)


@pytest.mark.smoke
@pytest.mark.parametrize("classes", [21, 60])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_maps_to_scores_in_one_launch(card: int, dtype: str, classes: int) -> None:
    """Ψ in the launch of the walks beside the two operators of the reference in fp64; the same bits again."""
    sizes = (2, classes, (33, 35), 64, ((3, (131, 140)), (70, (41, 45)), (256, (33, 35))))
    device = torch.device("cuda", card)
    seed, features = inputs_of(sizes, dtype)
    seed, features = seed.to(device), [x.to(device) for x in features]
    module = walk_of(sizes, backend="cuda").to(device, DTYPES[dtype])
    with torch.no_grad():
        steps = module(seed, features, return_steps=True)
        assert_same(module(seed, features, return_steps=True), steps)
    assert_right(steps, *truth(module, seed, features), {DTYPES[dtype]})
