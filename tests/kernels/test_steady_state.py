"""Eq. 2 to a tolerance, against a dense solve in fp64: the state, every gradient, the stop, and what an image may depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from difnet_kernels import diffuse, iteration
from tests.support import embeddings
from tests.support.cases import normal, placed

GRID, K, D = (9, 13), 3, 6
NODES = math.prod(GRID)
KINDS = (embeddings.smooth, embeddings.photo, embeddings.one_hot, embeddings.brightening, embeddings.shuffled)


def _made(kind: Callable[..., Tensor], batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """seed, psi and bias in fp64, the same on every device; the classes of the seed differ by 1e-6."""
    chance = torch.Generator().manual_seed(3)
    with torch.device("cpu"):
        seed = torch.randn((batch, K, *GRID), generator=chance, dtype=torch.float64)
        seed *= torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64).view(1, K, 1, 1)
        psi = kind(chance, batch, D, GRID)
        bias = torch.randn((batch, *GRID), generator=chance, dtype=torch.float64)
    return placed(seed), placed(psi), placed(bias)


def _solved(seed: Tensor, psi: Tensor, mu: Tensor, bias: Tensor | None = None) -> Tensor:
    """(I - μP)⁻¹ (1 - μ) s by torch.linalg: stands alone, so that no line of the library can be wrong in both."""
    nodes = psi.flatten(2).mT
    logits = nodes @ nodes.mT
    if bias is not None:
        logits = logits + bias.flatten(1).unsqueeze(1)
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype)
    y = torch.linalg.solve(identity - mu * logits.softmax(-1), (1 - mu) * seed.flatten(2).mT)
    return y.mT.reshape(seed.shape)


def _leaves(*fields: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [x.detach().to(dtype).requires_grad_() for x in fields]


@pytest.mark.smoke
@pytest.mark.needs(dtype="fp64", bias=True)
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_state_and_every_gradient_are_those_of_a_solve(
    backend: str, kind: Callable[..., Tensor], mu: float
) -> None:
    """Per class to tol: the state by its maximum, ∂seed by its sum. ψ, μ and bias to what tol leaves of them."""
    tol = 1e-7
    ours = _leaves(*_made(kind), torch.tensor(mu))
    theirs = _leaves(*_made(kind), torch.tensor(mu))
    y = diffuse(ours[0], ours[1], ours[3], bias=ours[2], tol=tol, backend=backend)
    true = _solved(theirs[0], theirs[1], theirs[3], theirs[2])
    largest = theirs[0].detach().abs().amax((2, 3))
    assert ((y - true).detach().abs().amax((2, 3)) <= tol * largest + 1e-15).all()
    upstream = normal(5, *y.shape, dtype=torch.float64)
    grads, truths = torch.autograd.grad(y, ours, upstream), torch.autograd.grad(true, theirs, upstream)
    summed = (grads[0] - truths[0]).abs().sum((2, 3))
    assert (summed <= tol * upstream.abs().sum((2, 3)) + 1e-13).all()
    for name, got, truth in zip(("psi", "bias", "mu"), grads[1:], truths[1:], strict=True):
        torch.testing.assert_close(got, truth, rtol=0, atol=1e-4 * truth.abs().max().item() + 1e-12, msg=name)


@pytest.mark.smoke
@pytest.mark.parametrize("dtypes", ["fp32", "bf16"])
def test_narrower_fields_reach_the_tolerance(backend: str, dtypes: str) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtypes]
    seed, psi, _ = (x.to(dtype) for x in _made(embeddings.smooth))
    y, true = (
        diffuse(seed, psi, 0.9, tol=1e-4, backend=backend),
        _solved(seed.double(), psi.double(), torch.tensor(0.9)),
    )
    assert y.dtype == dtype
    error = (y.double() - true).abs().amax((2, 3)) / seed.double().abs().amax((2, 3))
    assert error.max() <= (2e-4 if dtype == torch.float32 else 1e-2)


def _counted(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and how many walks its forward made."""
    from difnet_kernels.ops import steady_state

    made, step = [0], steady_state._Walks.step

    def counted(*arguments: Any) -> Tensor:
        made[0] += 1
        return step(*arguments)

    monkeypatch.setattr(steady_state._Walks, "step", counted)
    result = call()
    monkeypatch.undo()
    return result, made[0]


@pytest.mark.smoke
def test_chebyshev_steps_serve_where_they_converge_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the plain walks on mild embeddings; on a network's at most one look wasted, and the right state."""
    tol, mu = 1e-6, torch.tensor(0.95, dtype=torch.float64)
    plain = iteration.plain_walks(0.95, tol)
    seed, psi, _ = _made(embeddings.smooth)
    _, walks = _counted(monkeypatch, lambda: diffuse(seed, 0.3 * psi, mu, tol=tol))
    assert walks <= plain / 4
    for kind in (embeddings.photo, embeddings.brightening):
        seed, psi, _ = _made(kind)
        y, walks = _counted(monkeypatch, lambda seed=seed, psi=psi: diffuse(seed, psi, mu, tol=tol))
        assert walks <= plain + iteration.EVERY
        worst = (y - _solved(seed, psi, mu)).abs().amax((2, 3)) / seed.abs().amax((2, 3))
        assert worst.max() <= tol


@pytest.mark.smoke
def test_chebyshev_alone_would_fail_on_a_networks_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the choice of method is there for: the residual grows a thousandfold, and fp32 does not forget it."""
    seed, psi = (x.float() for x in _made(embeddings.photo)[:2])
    y, true = diffuse(seed, psi, 0.95), _solved(seed.double(), psi.double(), torch.tensor(0.95))
    assert ((y - true).abs().amax((2, 3)) / seed.abs().amax((2, 3))).max() <= 1e-4
    monkeypatch.setattr(iteration, "_pays", lambda error, reached, mu: torch.ones_like(error, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="did not converge"):
        diffuse(seed, psi, 0.95)


@pytest.mark.smoke
def test_an_image_has_the_bits_that_it_has_alone(kernel: str) -> None:
    """The images stop after different numbers of walks, and choose different methods."""
    kinds = (embeddings.smooth, embeddings.brightening, embeddings.photo)
    made = [[x.float() for x in _made(kind, batch=1)[:2]] for kind in kinds]
    seed, psi = (torch.cat(fields).requires_grad_() for fields in zip(*made, strict=True))
    upstream = normal(7, *seed.shape)
    y = diffuse(seed, psi, 0.9, tol=1e-5, backend=kernel)
    grads = torch.autograd.grad(y, (seed, psi), upstream)
    for image, fields in enumerate(made):
        alone = [x.requires_grad_() for x in fields]
        single = diffuse(*alone, 0.9, tol=1e-5, backend=kernel)
        assert torch.equal(single, y[image : image + 1])
        singles = torch.autograd.grad(single, alone, upstream[image : image + 1])
        for ours, theirs in zip(grads, singles, strict=True):
            assert torch.equal(ours[image : image + 1], theirs)


@pytest.mark.smoke
@pytest.mark.needs(dtype="fp64", bias=True)
def test_a_masked_image_is_a_smaller_image(backend: str) -> None:
    """Whatever stands behind the mask; a masked node returns its seed, and its gradient is that of its state."""
    seed, psi, _ = _made(embeddings.smooth)
    mask = torch.zeros(2, *GRID, dtype=torch.bool)
    mask[:, 1:7, 2:12] = True
    hidden = [torch.where(mask.unsqueeze(1), x, torch.nan) for x in (seed, psi)]
    hidden[0] = torch.where(mask.unsqueeze(1), seed, 5.0)
    ours = _leaves(*hidden)
    y = diffuse(*ours, 0.9, mask=mask, tol=1e-8, backend=backend)
    cropped = _leaves(seed[:, :, 1:7, 2:12], psi[:, :, 1:7, 2:12])
    small = diffuse(*cropped, 0.9, tol=1e-8, backend=backend)
    torch.testing.assert_close(y[:, :, 1:7, 2:12], small, rtol=0, atol=1e-7)
    assert (y[:, :, 0] == 5).all()
    upstream = normal(1, *y.shape, dtype=torch.float64)
    grads = torch.autograd.grad(y, ours, upstream)
    singles = torch.autograd.grad(small, cropped, upstream[:, :, 1:7, 2:12])
    for got, expected in zip(grads, singles, strict=True):
        torch.testing.assert_close(got[:, :, 1:7, 2:12], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(grads[0][:, :, 0], upstream[:, :, 0]) and not grads[1][:, :, 0].any()


@pytest.mark.smoke
def test_a_stored_matrix_gives_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes no walk forward; a budget that is one byte short stores nothing."""
    made = _leaves(*_made(embeddings.smooth))
    size = 2 * NODES**2 * 8
    results = []
    for store in (0, size, size - 1):
        calls, forward = [0], torch.ops.difnet_kernels.cascade_forward.default

        def counted(*arguments: Any, forward: Any = forward, calls: list[int] = calls) -> Any:
            calls[0] += 1
            return forward(*arguments)

        monkeypatch.setattr(torch.ops.difnet_kernels.cascade_forward, "default", counted)
        y = diffuse(made[0], made[1], 0.9, bias=made[2], tol=1e-9, store=store)
        monkeypatch.undo()
        assert (calls[0] == 0) == (store == size)
        results.append([y, *torch.autograd.grad(y.square().sum(), made)])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.smoke
def test_nothing_of_n_by_n_is_kept(kernel: str) -> None:
    seed, psi = (x.float().requires_grad_() for x in _made(embeddings.smooth)[:2])
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        diffuse(seed, psi, 0.9, backend=kernel)
    assert sum(kept) <= 3 * seed.numel() + psi.numel()


@pytest.mark.smoke
@pytest.mark.needs(dtype="fp64")
def test_classes_without_seeds_and_images_that_are_not_finite(backend: str) -> None:
    seed, psi, _ = _made(embeddings.smooth)
    seed[:, 1] = 0
    seed[1, 0, 0, 0] = torch.nan
    y = diffuse(seed, psi, 0.9, backend=backend)
    assert not y[0, 1].any() and y[0].isfinite().all()
    assert y[1, 0].isnan().all()


@pytest.mark.smoke
@pytest.mark.parametrize("most", [1, 5, 11])
def test_the_last_walk_that_is_allowed_counts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is none at which the residual is usually read; the seed alone is near the state where μ is small."""
    seed, psi, _ = _made(embeddings.smooth)
    mu = torch.tensor(1e-3 if most == 1 else 0.3, dtype=torch.float64)
    tol = 1e-2 if most < 11 else 1e-6
    y, walks = _counted(monkeypatch, lambda: diffuse(seed, psi, mu, tol=tol, max_walks=most))
    assert walks <= most
    worst = (y - _solved(seed, psi, mu)).abs().amax((2, 3)) / seed.abs().amax((2, 3))
    assert worst.max() <= tol
    with pytest.raises(RuntimeError, match=f"after {most} walks the residual of an image is [0-9]"):
        diffuse(seed, psi, 0.99, tol=1e-9, max_walks=most)


@pytest.mark.smoke
def test_too_few_walks_raise_with_the_residual() -> None:
    seed, psi, _ = _made(embeddings.smooth)
    with pytest.raises(RuntimeError, match=r"did not converge: after 16 walks the residual of an image is \S+ times"):
        diffuse(seed, psi, 0.99, tol=1e-9, max_walks=16)
    for mu in (1.0, torch.ones(()), -0.1, torch.tensor(-0.1)):
        with pytest.raises(ValueError, match="mu"):
            diffuse(seed, psi, mu)


@pytest.mark.smoke
def test_walks_that_diverge_raise_and_numbers_that_were_not_finite_return() -> None:
    """A row of P whose rounding exceeds 1 - μ makes walks grow until they overflow, which is no result."""
    start = torch.ones(2, 1, 3)
    start[1] = torch.nan

    def solve(x: Tensor) -> Tensor:
        def step(y: Tensor, images: Tensor | None) -> Tensor:
            return 1e9 * y + 1

        return iteration.fixed_point(step, x, lambda r, _: r.abs().amax(2), torch.ones(len(x), 1), 0.9, 400)

    assert bool(solve(start[1:]).isnan().all())
    for x in (start[:1], start):
        with pytest.raises(RuntimeError, match="did not converge"):
            solve(x)


@pytest.mark.smoke
def test_gradients_by_differences_and_the_operators_as_torch_sees_them() -> None:
    seed, psi, bias = _leaves(*(x[..., :3, :4] for x in _made(embeddings.smooth)))
    mu = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda s, p, m, b: diffuse(s, p, m, bias=b, tol=1e-13), (seed, psi, mu, bias), eps=1e-6, atol=1e-5
    )
    given = (seed, psi, mu.detach().view(1), [bias], None, 1e-6, None, 0, "high", "")
    torch.library.opcheck(torch.ops.difnet_kernels.steady_state_forward.default, given)


def test_it_compiles_and_exports() -> None:
    seed, psi = (x.float() for x in _made(embeddings.smooth)[:2])

    class Net(torch.nn.Module):
        def forward(self, seed: Tensor, psi: Tensor) -> Tensor:
            return diffuse(seed * 2, psi, 0.9)

    expected = Net()(seed, psi)
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True)(seed, psi), expected)
    torch.testing.assert_close(torch.export.export(Net(), (seed, psi)).module()(seed, psi), expected)
