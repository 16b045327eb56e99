"""The steady state of a walk (Eq. 2, W6) as two torch operators, made of walks and their transposes: no N x N numbers unless
`store` allows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from difnet_kernels import backends
from difnet_kernels.checks import check_mask, check_solver
from difnet_kernels.iteration import EVERY, fixed_point, plain_walks
from difnet_kernels.ops import autograd
from difnet_kernels.ops.checks import check_cascade, check_solved
from difnet_kernels.ops.library import TAGS, fresh_library
from difnet_kernels.problem import Problem, empty_field_like, flat

LIBRARY = fresh_library("steady_state")
LIBRARY.define(
    "steady_state_forward(Tensor seed, Tensor psi, Tensor mu, Tensor[] bias, Tensor? mask, float tol, int? max_walks, "
    "int store, str precision, str backend) -> Tensor",
    tags=TAGS,
)
LIBRARY.define(
    "steady_state_backward(Tensor grad, Tensor y, Tensor seed, Tensor psi, Tensor mu, Tensor[] bias, float tol, "
    "int? max_walks, int store, str precision, str backend, bool[] wanted) -> (Tensor grad_seed, Tensor grad_psi, "
    "Tensor grad_mu, Tensor[] grad_bias)",
    tags=TAGS,
)

# from how many walks on a stored P is faster than to make it again in every walk, by D up to: measured at N = 4096, K = 21,
# fp32, on an AMD EPYC (Zen 4) with two threads. The limit of the walks stands for their number, which nobody knows before
STORED_PAYS = ((64, 64), (128, 14), (256, 8), (math.inf, 3))


class _Walks:
    """y ↦ (1 - μ) s + μ P y and g ↦ (1 - μ) g₀ + μ Pᵀ g for chosen images, by a backend or with P stored."""

    def __init__(
        self,
        seed: Tensor,
        psi: Tensor,
        mu: Tensor,
        bias: Sequence[Tensor],
        most: int,
        store: int,
        precision: str,
        backend: str,
    ) -> None:
        self.seed, self.psi, self.mu = seed, psi, mu
        self.bias, self.one = [b.flatten(1) for b in bias], torch.ones_like(mu)
        self.precision = precision
        self.backend = backends.resolve(backend, Problem.of(seed, [psi], precision, bias=bias))
        self.stored = _transitions(psi, self.bias, mu) if _pays(seed, psi, mu, most, store) else None

    def _fields(self, images: Tensor | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        if images is None:
            return self.seed, [self.psi], self.bias
        return self.seed[images], [self.psi[images]], [b[images] for b in self.bias]

    def forward(self, y: Tensor, images: Tensor | None, gradients: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The next state (B, K, N), and what a backward of the walk needs."""
        seed, psi, bias = self._fields(images)
        (following,), walked, row_lse, _ = torch.ops.difnet_kernels.cascade_forward.default(
            y, seed, psi, self.mu, self.one, self.precision, self.backend, False, gradients, bias or None
        )
        return following, walked, row_lse

    def step(self, y: Tensor, images: Tensor | None) -> Tensor:
        if self.stored is None:
            return self.forward(y, images)[0]
        P, seed = (x if images is None else x[images] for x in (self.stored, self.seed))
        return self.mu * (P @ y.mT).mT + (1 - self.mu) * seed  # (W2, W3)

    def transposed(self, grad: Tensor, saved: tuple[Tensor, Tensor], images: Tensor | None) -> Tensor:
        """μ Pᵀ grad (B6): the gradient of the state of a walk with β = 1."""
        if self.stored is not None:
            P = self.stored if images is None else self.stored[images]
            return self.mu * (P.mT @ grad.mT).mT  # (B6)
        walked, row_lse = (x if images is None else x[:, images] for x in saved)
        seed, psi, bias = self._fields(images)
        wanted = [True, False, False, *[False] * len(bias), False, False]
        return torch.ops.difnet_kernels.cascade_backward.default(
            [grad], [], grad, seed, psi, bias, self.mu, self.one, walked, row_lse, self.precision, self.backend, wanted
        )[0]

    def gradients(
        self, grad: Tensor, y: Tensor, saved: tuple[Tensor, Tensor], wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Those of ψ, μ and bias of the walk that starts and ends at y."""
        want_psi, want_mu, *want_bias = wanted
        asked = [False, False, want_psi, *want_bias, want_mu, False]
        _, _, (grad_psi,), grad_bias, grad_mu, _ = torch.ops.difnet_kernels.cascade_backward.default(
            [grad],
            [],
            y,
            self.seed,
            [self.psi],
            self.bias,
            self.mu,
            self.one,
            *saved,
            self.precision,
            self.backend,
            asked,
        )
        return grad_psi, grad_mu, grad_bias


def _pays(seed: Tensor, psi: Tensor, mu: Tensor, most: int, store: int) -> bool:
    batch, nodes = seed.shape[0], seed.shape[2]
    from_walks = next(walks for widest, walks in STORED_PAYS if psi.shape[1] <= widest)
    return batch * nodes**2 * mu.element_size() <= store and most >= from_walks


def _transitions(psi: Tensor, bias: Sequence[Tensor], like: Tensor) -> Tensor:
    """(W1, W1b) P (B, N, N)."""
    nodes = psi.to(like.dtype)
    logits = nodes.mT @ nodes
    for b in bias:
        logits = logits + b.unsqueeze(1)
    return logits.softmax(-1)


def _check(
    seed: Tensor, psi: Tensor, mu: Tensor, bias: Sequence[Tensor], precision: str, mask: Tensor | None = None
) -> None:
    check_cascade(None, seed, [psi], bias, mu, mu, precision)
    if mask is not None:
        check_mask(mask, seed)


def _limits(mu: Tensor, tol: float, max_walks: int | None) -> tuple[float, int]:
    """μ as a number, and the most walks: for Chebyshev steps that do not pay, EVERY more than plain ones need."""
    value = float(mu)
    check_solver(value, tol, max_walks)
    return value, plain_walks(value, tol) + EVERY if max_walks is None else max_walks


def _node_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As walks have their states: (B, K, N), the classes of a node side by side."""
    return x.to(dtype).mT.contiguous().mT


@torch.library.impl(LIBRARY, "steady_state_forward", "CompositeExplicitAutograd")
def _forward(
    seed: Tensor,
    psi: Tensor,
    mu: Tensor,
    bias: Sequence[Tensor],
    mask: Tensor | None,
    tol: float,
    max_walks: int | None,
    store: int,
    precision: str,
    backend: str,
) -> Tensor:
    _check(seed, psi, mu, bias, precision, mask)
    value, most = _limits(mu, tol, max_walks)
    y = empty_field_like(seed)
    if seed.numel() == 0:
        return y
    source = flat(seed)
    walks = _Walks(source, flat(psi), mu, bias, most, store, precision, backend)
    valid = None if mask is None else mask.flatten(1).unsqueeze(1)
    first = _node_major(source, mu.dtype)

    def largest(x: Tensor, images: Tensor | None = None) -> Tensor:
        seen = x if valid is None else torch.where(valid if images is None else valid[images], x, 0)
        return seen.abs().amax(2)

    bound = tol * (1 - value) * largest(first)
    flat(y).copy_(fixed_point(walks.step, first, largest, bound, value, most))  # (W6)
    return y


@torch.library.register_fake("difnet_kernels::steady_state_forward", lib=LIBRARY)
def _forward_fake(seed, psi, mu, bias, mask, tol, max_walks, store, precision, backend):  # type: ignore[no-untyped-def]
    _check(seed, psi, mu, bias, precision, mask)
    return empty_field_like(seed)


@torch.library.impl(LIBRARY, "steady_state_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    y: Tensor,
    seed: Tensor,
    psi: Tensor,
    mu: Tensor,
    bias: Sequence[Tensor],
    tol: float,
    max_walks: int | None,
    store: int,
    precision: str,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check(seed, psi, mu, bias, precision)
    check_solved(grad, y, seed, bias, wanted)
    value, most = _limits(mu, tol, max_walks)
    _, *others = wanted
    grad_seed = empty_field_like(seed)
    grad_psi, grad_mu, grad_bias = torch.zeros_like(psi), torch.zeros_like(mu), [torch.zeros_like(b) for b in bias]
    if seed.numel() == 0:
        return grad_seed, grad_psi, grad_mu, grad_bias
    source, at = flat(seed), _node_major(flat(y), mu.dtype)
    walks = _Walks(source, flat(psi), mu, bias, most, store, precision, backend)
    _, *saved = walks.forward(at, None, gradients=True)
    constant = (1 - value) * _node_major(flat(grad), mu.dtype)

    def step(x: Tensor, images: Tensor | None) -> Tensor:
        return walks.transposed(x, (saved[0], saved[1]), images) + (constant if images is None else constant[images])

    # Pᵀ contracts in the 1-norm, not in the maximum norm
    bound = tol * constant.abs().sum(2)
    adjoint = fixed_point(step, constant, lambda x, _: x.abs().sum(2), bound, value, most)
    flat(grad_seed).copy_(adjoint)
    if any(others):
        of_psi, of_mu, of_bias = walks.gradients(adjoint / (1 - value), at, (saved[0], saved[1]), others)
        if others[0]:
            grad_psi = of_psi.view(psi.shape)
        if others[1]:
            grad_mu = of_mu
        grad_bias = [
            g.view(b.shape) if want else z for g, b, z, want in zip(of_bias, bias, grad_bias, others[2:], strict=True)
        ]
    return grad_seed, grad_psi, grad_mu, grad_bias


@torch.library.register_fake("difnet_kernels::steady_state_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad, y, seed, psi, mu, bias, tol, max_walks, store, precision, backend, wanted
):
    _check(seed, psi, mu, bias, precision)
    check_solved(grad, y, seed, bias, wanted)
    return empty_field_like(seed), torch.empty_like(psi), torch.empty_like(mu), [torch.empty_like(b) for b in bias]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    seed, psi, mu, bias, _, *ctx.options = inputs
    ctx.save_for_backward(output, seed, psi, mu, *bias)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    y, seed, psi, mu, *bias = ctx.saved_tensors
    of_seed, of_psi, of_mu, of_bias, *_ = ctx.needed
    of_bias = of_bias if bias else []
    wanted = [of_seed, of_psi, of_mu, *of_bias]
    grad_seed, grad_psi, grad_mu, grad_bias = torch.ops.difnet_kernels.steady_state_backward.default(
        grad, y, seed, psi, mu, bias, *ctx.options, wanted
    )
    return (
        grad_seed if of_seed else None,
        grad_psi if of_psi else None,
        grad_mu if of_mu else None,
        [g if want else None for g, want in zip(grad_bias, of_bias, strict=True)],
        *(None,) * 6,
    )


def _refuse_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "diffuse is differentiable once; a second derivative was asked for (create_graph=True). For small grids, "
        "difnet_kernels.backends.reference.closed_form is plain torch and differentiable any number of times."
    )


autograd.register(LIBRARY, "steady_state_forward", _differentiate, _save)
autograd.register(LIBRARY, "steady_state_backward", _refuse_second_derivative)
