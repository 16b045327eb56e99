"""Random valid calls of every public function against a dense fp64 truth that shares no code with the package.

200 cases; more by `pytest tests/kernels/test_fuzz.py --fuzz 2000`. A failure prints its number, and `--fuzz-from NUMBER
--fuzz 1` is that case again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d

from difnet_kernels import cascaded_random_walk, psi_projection, random_walk, transition_rows
from tests.support.capability import takes
from tests.support.cases import DTYPES, placed
from tests.support.dense import dense
from tests.support.tolerances import (
    CANCELLATION,
    HALF_ULP,
    PROJECTION,
    PSI_GRADIENT,
    SEED_GRADIENT,
    Setting,
    assert_each,
    assert_within,
)

POOLS = {1: adaptive_max_pool1d, 2: adaptive_max_pool2d, 3: adaptive_max_pool3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Draw:
    """The numbers of one case."""

    def __init__(self, number: int, backend: str) -> None:
        self.choose, self.chance = random.Random(number), torch.Generator().manual_seed(number)
        allowed = [name for name in DTYPES if takes(backend, placed(torch.empty(0)).device.type, DTYPES[name])]
        # a quarter of the fields differ from the others
        self.usual, self.dtypes = self.choose.choice(allowed), allowed

    def dtype(self) -> torch.dtype:
        return DTYPES[self.usual if self.choose.random() < 0.75 else self.choose.choice(self.dtypes)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.chance, dtype=torch.float64, device="cpu")

    def grid(self, most: int) -> tuple[int, ...]:
        axes = self.choose.choice((1, 2, 2, 3))
        longest = {1: most, 2: int(most**0.5), 3: round(most ** (1 / 3))}[axes]
        return tuple(self.choose.randint(1, longest) for _ in range(axes))

    def field(self, channels: int, batch: int, grid: tuple[int, ...], values: Tensor | None = None) -> Tensor:
        """Any strides: permuted, sliced, flipped through a copy, expanded over the batch or a class."""
        x = self.normal(batch, channels, *grid) if values is None else values
        x = placed(x.to(self.dtype()))
        kind = self.choose.choice(("plain", "plain", "last", "sliced", "padded", "permuted", "batch"))
        if kind == "last":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        if kind == "sliced":
            return torch.stack([x, x + 1], -1)[..., 0]
        if kind == "padded":
            return torch.cat([x[:, :1], x, x[:, :1]], 1)[:, 1:-1]
        if kind == "permuted":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return x[:1].expand_as(x) if kind == "batch" else x

    def psi(self, batch: int, grid: tuple[int, ...]) -> Tensor:
        """Random, smooth over the grid, nearly one-hot, tiny, or around a common centre."""
        width = self.choose.choice((1, 2, 3, 8, 16, 33, 64))
        x = self.normal(batch, width, *grid)
        kind = self.choose.choice(("normal", "smooth", "one-hot", "tiny", "offset"))
        if kind == "smooth":
            nodes = torch.linspace(0, 3, x[0, 0].numel(), dtype=torch.float64, device="cpu").view(grid)
            x = 4 * (nodes * x[(..., *(slice(0, 1),) * len(grid))]).sin() + 0.05 * x
        scale = {"one-hot": 6.0, "tiny": 1e-4}.get(kind, 1.0) * width**-0.25
        return self.field(width, batch, grid, x * scale + (2.0 if kind == "offset" else 0.0))

    def scores(self, classes: int, batch: int, grid: tuple[int, ...]) -> Tensor:
        """A third of the time with classes whose sizes differ by 1e-3."""
        x = 2 * self.normal(batch, classes, *grid) + 0.5
        if self.choose.random() < 0.33:
            x[:, classes // 2 :] *= 1e-3
        return self.field(classes, batch, grid, x)

    def bias(self, batch: int, grid: tuple[int, ...]) -> Tensor:
        """Of a few units; a third of the time with columns that are gone."""
        x = 2 * self.normal(batch, *grid)
        gone = self.normal(batch, *grid) > 0.5
        gone.flatten(1)[:, 0] = False
        if self.choose.random() < 0.33:
            x[gone] = -torch.inf
        x = placed(x.to(self.dtype()))
        return x[:1] if self.choose.random() < 0.2 else x

    def mask(self, batch: int, grid: tuple[int, ...]) -> Tensor:
        """Scattered nodes, or a corner; now and then an image has none. Column 0 is there, so that no row is without."""
        mask = self.normal(batch, *grid) > (0.0 if self.choose.random() < 0.5 else -1.5)
        mask.flatten(1)[:, 0] = True
        if self.choose.random() < 0.2:
            mask[-1] = False
        return placed(mask)

    def wanted(self, leaves: list[Tensor]) -> list[Tensor]:
        """A subset of the leaves requires a gradient, at least one."""
        chosen = [x for x in leaves if self.choose.random() < 0.7] or leaves[:1]
        for x in chosen:
            x.requires_grad_()
        return chosen


def _compare(
    draw: Draw,
    run: Callable[..., Any],
    true: Callable[..., Any],
    fields: list[Tensor],
    gates: list[Tensor],
    names: list[str],
    biases: list[Tensor],
    lse: bool = False,
) -> None:
    """The same call on the same rounded numbers in fp64, and a random subset of its gradients. `biases` come after the fields
    in what `run` and `true` are called with, and the gates last; with `lse` the last result is that."""
    psi = [x for name, x in zip(names, fields, strict=False) if name.startswith("psi")]
    names = [*names[: len(fields)], *["bias"] * len(biases), *names[len(fields) :]]
    leaves = [x.detach() for x in (*fields, *biases, *gates)]
    wide = [x.double() for x in leaves]
    chosen = draw.wanted(leaves)
    for a, b in zip(leaves, wide, strict=True):
        b.requires_grad_(a.requires_grad)
    ours, truth = run(*leaves), true(*wide)
    ours, truth = ([x] if isinstance(x, Tensor) else list(x) for x in (ours, truth))
    upstream = [placed(draw.normal(*y.shape)) for y in ours]
    largest = max((p.double().square().sum(1).max().item() for p in psi if p.numel()), default=0.0)
    shift = max((b[b.isfinite()].double().abs().max().item() for b in biases), default=0.0)
    at = Setting(frozenset(x.dtype for x in (*fields, *biases)), max(1, len(psi)), largest + shift)
    for number, (a, b) in enumerate(zip(ours, truth, strict=True)):
        # what comes out of a class may be smaller than what went in, and has the rounding of that
        for k in range(a.shape[1]):
            inside = [x.detach()[:, k] for name, x in zip(names, wide, strict=True) if name in ("seed", "state")]
            went_in = max(x.abs().max().item() for x in inside)
            if lse and number == len(ours) - 1:
                went_in = 1.0  # the log of a sum: its error is that of the weights
            assert_within(f"y{number}, class {k}", a.detach()[:, k], b.detach()[:, k], at.walk, floor=at.walk * went_in)
    grads = torch.autograd.grad(ours, chosen, [u.to(y.dtype) for u, y in zip(upstream, ours, strict=True)])
    wide_chosen = [b for a, b in zip(leaves, wide, strict=True) if a.requires_grad]
    rounded = [u.to(y.dtype).double() for u, y in zip(upstream, ours, strict=True)]
    # an early step may not depend on what was chosen; the operator has one graph for all of them
    reached = [(y, u) for y, u in zip(truth, rounded, strict=True) if y.requires_grad]
    true_grads = torch.autograd.grad([y for y, _ in reached], wide_chosen, [u for _, u in reached])
    told = [name for name, x in zip(names, leaves, strict=True) if x.requires_grad]
    states = rounded[: len(rounded) - lse]
    # about max Σ_k |h||y| ‖ψ‖: the terms that B4 subtracts, and the squares of those that B7 adds
    sizes = sum(u.abs().sum(1).max().item() for u in rounded) * max(x.double().abs().max().item() for x in fields)
    noise = CANCELLATION * HALF_ULP[at.product] * sizes * max(1.0, largest) ** 0.5 * max(1, len(psi))
    for name, a, b in zip(told, grads, true_grads, strict=True):
        if name.startswith("psi"):
            assert_each(name, 1, a, b, PSI_GRADIENT * at.walk, floor=noise)
        elif name == "bias":
            assert_each(name, 0, a, b, PSI_GRADIENT * at.walk, floor=noise)
        elif name in ("mu", "beta"):
            scale = sum(u.square().sum().sqrt().item() for u in rounded) * fields[0].double().abs().max().item()
            assert_within(name, a, b, 2 * at.gate, floor=2 * at.gate * scale)
        else:
            for k in range(a.shape[1]):  # B6 sums terms of either sign, each with the rounding of its own size
                came_in = sum(u[:, k].abs().max().item() for u in states)
                bound = SEED_GRADIENT * at.walk
                assert_within(f"{name}, class {k}", a[:, k], b[:, k], bound, floor=bound * came_in)


def _cascade(draw: Draw, backend: str) -> None:
    batch, classes, walks, grid = (
        draw.choose.randint(1, 3),
        draw.choose.choice((1, 2, 5, 17, 21, 33)),
        draw.choose.randint(1, 4),
        draw.grid(200),
    )
    steps = draw.choose.random() < 0.3
    fields = [draw.scores(classes, batch, grid), *(draw.psi(batch, grid) for _ in range(walks))]
    accumulate = torch.float64 if any(x.dtype == torch.float64 for x in fields) else torch.float32
    gates = [
        placed(torch.rand(walks, generator=draw.chance, dtype=torch.float64, device="cpu").to(accumulate))
        for _ in range(2)
    ]

    biases, mask = _more(draw, backend, walks, batch, grid)

    def split(rest: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor | None], Tensor, Tensor]:
        return list(rest[:walks]), [*rest[walks:-2], *[None] * (walks - len(biases))], rest[-2], rest[-1]

    def run(seed: Tensor, *rest: Tensor) -> Any:
        psi, bias, mu, beta = split(rest)
        return cascaded_random_walk(seed, psi, mu, beta, bias=bias, mask=mask, backend=backend, return_steps=steps)

    def true(seed: Tensor, *rest: Tensor) -> Any:
        psi, bias, mu, beta = split(rest)
        states, _ = dense(seed, psi, mu, beta, bias=bias, mask=mask)
        return states if steps else states[-1]

    _compare(draw, run, true, fields, gates, ["seed", *(f"psi{t}" for t in range(walks)), "mu", "beta"], biases)


def _more(
    draw: Draw, backend: str, walks: int, batch: int, grid: tuple[int, ...]
) -> tuple[list[Tensor], Tensor | None]:
    """Half of the time a bias of the first walks, and a third of it a mask, on a backend that takes them."""
    if not takes(backend, placed(torch.empty(0)).device.type, bias=True, lse=True):
        return [], None
    biases = [draw.bias(batch, grid) for _ in range(draw.choose.choice((0, 0, 1, walks)))]
    return biases, draw.mask(batch, grid) if draw.choose.random() < 0.33 else None


def _walk(draw: Draw, backend: str) -> None:
    batch, classes, grid = draw.choose.randint(1, 3), draw.choose.choice((1, 2, 5, 21)), draw.grid(200)
    fields = [draw.scores(classes, batch, grid), draw.psi(batch, grid), draw.scores(classes, batch, grid)]
    gates = [placed(torch.rand((), generator=draw.chance, device="cpu")) for _ in range(2)]
    biases, mask = _more(draw, backend, 1, batch, grid)
    lse = takes(backend, placed(torch.empty(0)).device.type, lse=True) and draw.choose.random() < 0.5

    def run(y: Tensor, psi: Tensor, s: Tensor, *rest: Tensor) -> Any:
        *bias, mu, beta = rest
        given = random_walk(
            y, psi, s, mu, beta, bias=bias[0] if bias else None, mask=mask, backend=backend, return_lse=lse
        )
        return (given[0], known(given[1])) if isinstance(given, tuple) else given

    def true(y: Tensor, psi: Tensor, s: Tensor, *rest: Tensor) -> Any:
        *bias, mu, beta = rest
        (state,), (of_rows,) = dense(s, [psi], mu[None], beta[None], state=y, bias=bias, mask=mask)
        return (state, known(of_rows)) if lse else state

    def known(of_rows: Tensor) -> Tensor:
        """lse where it is finite, as a field."""
        return of_rows.masked_fill(of_rows.isinf(), 0).unsqueeze(1)

    _compare(draw, run, true, fields, gates, ["state", "psi", "seed", "mu", "beta"], biases, lse)


def _projection(draw: Draw, backend: str) -> None:
    batch, channels, width = (
        draw.choose.randint(1, 3),
        draw.choose.choice((2, 3, 17, 40)),
        draw.choose.choice((1, 3, 16, 33)),
    )
    size = draw.grid(300)
    size = size if batch * torch.Size(size).numel() > 1 else (*size[:-1], 2)
    grid = tuple(draw.choose.choice((n, draw.choose.randint(1, n + 2))) for n in size)
    x = draw.field(channels, batch, size)
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (placed(draw.normal(*shape).to(accumulate)) for shape in ((width, channels), (width,)))
    norm = None
    if draw.choose.random() < 0.8:
        norm = NORMS[len(size)](width).to(x.device, accumulate)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(draw.normal(width))
        norm.train(draw.choose.random() < 0.5)
    twin = None if norm is None else NORMS[len(size)](width).to(x.device, torch.float64).train(norm.training)
    if norm is not None and twin is not None:
        twin.load_state_dict(norm.state_dict())
    leaves = [x.detach(), weight, bias]
    wide = [leaf.double() for leaf in leaves]
    chosen = draw.wanted(leaves)
    for a, b in zip(leaves, wide, strict=True):
        b.requires_grad_(a.requires_grad)
    ours = psi_projection(*leaves, norm, grid, backend=backend)
    z = torch.einsum("dc,bc...->bd...", wide[1], wide[0]) + wide[2].view(-1, *(1,) * len(size))
    true = POOLS[len(size)](z if twin is None else twin(z), grid)
    bound = 4 * PROJECTION[accumulate]
    scale = 1.0 if twin is None else twin.weight.abs().max().item() / twin.running_var.min().clamp_max(1).item() ** 0.5
    assert_within("psi", ours.detach(), true.detach(), bound, floor=bound * scale)
    upstream = placed(draw.normal(*true.shape)).to(ours.dtype)
    grads = torch.autograd.grad(ours, chosen, upstream)
    true_grads = torch.autograd.grad(true, [b for b in wide if b.requires_grad], upstream.double())
    values = batch * torch.Size(size).numel()
    for number, (a, b) in enumerate(zip(grads, true_grads, strict=True)):
        floor = bound * values**0.5 * max(1.0, scale) * max(1.0, upstream.abs().max().item())
        assert_within(f"gradient {number}", a, b, bound, floor=floor)


def _rows(draw: Draw, backend: str) -> None:
    batch, grid, chosen = draw.choose.randint(1, 3), draw.grid(200), draw.choose.randint(1, 4)
    psi, nodes = draw.psi(batch, grid), torch.Size(grid).numel()
    flat = torch.randint(nodes, (batch, chosen), generator=draw.chance, device="cpu")
    given = flat if draw.choose.random() < 0.5 else torch.stack(torch.unravel_index(flat, grid), -1)
    rows = transition_rows(psi, placed(given)).flatten(2)
    p = psi.double().flatten(2)
    P = torch.softmax(p.mT @ p, dim=-1)
    true = P.gather(1, placed(flat).unsqueeze(-1).expand(-1, -1, nodes))
    largest = p.square().sum(1).max().item()
    assert_within("rows", rows, true, Setting(frozenset({psi.dtype}), 1, largest).walk)


KINDS = (_cascade, _cascade, _walk, _projection, _rows)


def test_a_random_call_is_right(backend: str, fuzzed: int) -> None:
    torch.manual_seed(fuzzed)
    draw = Draw(fuzzed, backend)
    KINDS[fuzzed % len(KINDS)](draw, backend)
