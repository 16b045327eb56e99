"""Bias, mask and lse as torch sees them: schema, fake kernels, compilation, export, tracing, autocast, FLOPs."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from difnet_kernels import cascaded_random_walk, random_walk, transition_rows
from tests.support.cases import Case, make, normal, placed

OPS = torch.ops.difnet_kernels
CASE = Case(3, (5, 7), 6, 4, 2, "smooth")
pytestmark = pytest.mark.needs(bias=True, lse=True)


def _given(case: Case = CASE) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """seed, ψ, μ and β; two biases; a mask with every kind of image."""
    inputs = make(case)
    biases = [normal(20 + t, case.batch, *case.grid) for t in range(2)]
    biases[0].flatten(1)[:, 2] = -torch.inf
    mask = normal(7, case.batch, *case.grid) > -0.5
    mask[-1] = False
    return [inputs.seed, *inputs.psi, inputs.mu, inputs.beta], biases, mask


@pytest.mark.smoke
@pytest.mark.parametrize("lse", [False, True], ids=["", "lse"])
@pytest.mark.parametrize("kind", ["both", "one", "strided"])
def test_the_operator(backend: str, kind: str, lse: bool) -> None:
    (seed, *psi, mu, beta), biases, _ = _given()
    if kind == "one":
        biases[0] = placed(torch.empty(0))
    elif kind == "strided":
        biases[0] = biases[0].mT.contiguous().mT
        biases[1] = biases[1][:1].expand_as(biases[1])
    leaves = [x.detach().requires_grad_() for x in (seed, *psi, mu, beta, *biases)]
    given = (None, leaves[0], leaves[1:3], *leaves[3:5], "high", backend, True, True, leaves[5:], lse)
    torch.library.opcheck(OPS.cascade_forward.default, given)
    bare = [x.detach() for x in leaves]
    with torch.no_grad():
        states, walked, row_lse, of_lse = OPS.cascade_forward(*given)
    ahead = ([torch.randn_like(y) for y in states], [torch.randn_like(x) for x in of_lse])
    saved = (None, bare[0], bare[1:3], bare[5:], *bare[3:5], walked, row_lse, "high", backend)
    for wanted in ([True] * 8, [False] * 5 + [True, False, False]):
        torch.library.opcheck(OPS.cascade_backward.default, (*ahead, *saved, wanted))


def _all(backend: str, rows: bool = True) -> Any:
    """Every argument at once, of both functions."""

    def run(
        seed: Tensor, first: Tensor, second: Tensor, mu: Tensor, beta: Tensor, bias: Tensor, mask: Tensor
    ) -> Tensor:
        y = cascaded_random_walk(2 * seed, [first, second], mu, beta, bias=[bias, None], mask=mask, backend=backend)
        z, lse = random_walk(y, first, seed, mu[0], beta[0], bias=bias, mask=mask, backend=backend, return_lse=True)
        loss = z.square().sum() + torch.where(mask, lse, 0).sin().sum()
        if rows:
            nodes = torch.zeros(seed.shape[0], 1, dtype=torch.long, device=seed.device)
            loss = loss + transition_rows(second, nodes, bias=bias, mask=mask).square().sum()
        return loss

    return run


def _equal(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def _compiled_equals_eager(backend: str, compiler: str) -> None:
    torch.compiler.reset()
    leaves, (bias, _), mask = _given()
    leaves = [x.requires_grad_() for x in (*leaves, bias)]
    compiled = torch.compile(_all(backend), fullgraph=True, backend=compiler)
    ours, theirs = compiled(*leaves, mask), _all(backend)(*leaves, mask)
    _equal((ours, *torch.autograd.grad(ours, leaves)), (theirs, *torch.autograd.grad(theirs, leaves)))
    torch.compiler.reset()


@pytest.mark.smoke
def test_compiled_equals_eager(backend: str) -> None:
    """One graph without breaks, forward and backward."""
    _compiled_equals_eager(backend, "aot_eager")


def test_the_default_compiler(kernel: str) -> None:
    """Inductor, which may fuse or lay out the mask around the operator as it likes."""
    _compiled_equals_eager(kernel, "inductor")


def test_one_graph_serves_all_sizes(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(_all(backend), fullgraph=True, dynamic=True, backend="aot_eager")
    cases = (Case(5, (9, 4), 6, 3, 2, "smooth"), Case(3, (5, 7), 5, 4, 2, "smooth"))
    for case in cases:
        leaves, (bias, _), mask = _given(case)
        leaves = [x.requires_grad_() for x in (*leaves, bias)]
        with torch.compiler.set_stance("fail_on_recompile" if case != cases[0] else "default"):
            ours = compiled(*leaves, mask)
        theirs = _all(backend)(*leaves, mask)
        _equal((ours, *torch.autograd.grad(ours, leaves)), (theirs, *torch.autograd.grad(theirs, leaves)))
    torch.compiler.reset()


class Net(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = cascaded_random_walk(x, [x.sin(), x], [0.5, 0.25], [0.75, 0.5], bias=bias, mask=mask, backend=self.backend)
        return random_walk(y, x, x, 0.5, 0.5, bias=bias, mask=mask, backend=self.backend, return_lse=True)


def test_an_exported_program_takes_any_mask(backend: str) -> None:
    """After a round trip through a file, for any batch and grid."""
    seed, bias, mask = normal(1, 3, 4, 5, 7), normal(2, 3, 5, 7), normal(3, 3, 5, 7) > 0
    b, h, w = (torch.export.Dim(name) for name in "bhw")
    sizes = ({0: b, 2: h, 3: w}, {0: b, 1: h, 2: w}, {0: b, 1: h, 2: w})
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Net(backend), (seed, bias, mask), dynamic_shapes=sizes), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for shape in ((3, 5, 7), (2, 4, 3)):
        given = normal(4, shape[0], 4, *shape[1:]), normal(5, *shape), normal(6, *shape) > 0
        for ours, theirs in zip(program(*given), Net(backend)(*given), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_program_without_them_still_runs(backend: str) -> None:
    """Its call ends with gradients: what came later has defaults."""
    seed, psi, gate = normal(1, 1, 2, 5), normal(2, 1, 3, 5), placed(torch.tensor([0.5]))
    (y,), *_ = OPS.cascade_forward(None, seed, [psi], gate, gate, "high", backend, False, False)
    assert torch.equal(y, cascaded_random_walk(seed, [psi], gate, gate, backend=backend))


@pytest.mark.smoke
def test_a_tracer_records_the_calls(backend: str) -> None:
    given = normal(1, 2, 4, 5, 7), normal(2, 2, 5, 7), normal(3, 2, 5, 7) > 0
    traced = torch.fx.symbolic_trace(Net(backend))
    names = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert {cascaded_random_walk, random_walk} <= names
    for ours, theirs in zip(traced(*given), Net(backend)(*given), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_them_alone(backend: str, dtype: torch.dtype) -> None:
    leaves, (bias, _), mask = _given()
    leaves = [x.requires_grad_() for x in (*leaves, bias)]
    # rows are plain torch, whose own backward is cast where it runs under autocast
    plain = torch.autograd.grad(_all(backend, rows=False)(*leaves, mask), leaves)
    with torch.autocast(leaves[0].device.type, dtype):
        cast = torch.autograd.grad(_all(backend, rows=False)(*leaves, mask), leaves)
    assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


@pytest.mark.smoke
def test_flops_of_a_bias_that_learns(backend: str) -> None:
    """W1, B6 and B4 in the walks from the first that learns on; B5 is for ψ alone."""
    (seed, *psi, mu, beta), biases, _ = _given()
    biases[1].requires_grad_()
    y = cascaded_random_walk(seed, psi, mu, beta, bias=biases, backend=backend)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * CASE.batch * CASE.nodes**2 * (CASE.embed + 2 * CASE.classes)


def test_a_second_derivative_is_refused(backend: str) -> None:
    (seed, *psi, mu, beta), biases, _ = _given()
    bias = biases[1].requires_grad_()
    y = cascaded_random_walk(seed, psi, mu, beta, bias=bias, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), bias, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()
