"""The cascade as two torch operators: schema, kernels, fake kernels, autograd and FLOPs, once for all backends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from difnet_kernels import backends
from difnet_kernels.ops import autograd
from difnet_kernels.ops.checks import check_cascade, check_saved
from difnet_kernels.ops.library import TAGS, fresh_library
from difnet_kernels.problem import Problem, empty_field_like, flat

LIBRARY = fresh_library("cascade")
# bias and return_lse stand last and have defaults, so that a program that was exported without them still reaches the checks.
# bias is None where no walk has one, and holds an empty tensor for a walk that has none beside one that does: autograd goes
# through no list that holds None. walked and row_lse are private to the backend, lse is for the caller
LIBRARY.define(
    "cascade_forward(Tensor? state, Tensor seed, Tensor[] psi, Tensor mu, Tensor beta, str precision, str backend, "
    "bool all_steps, bool? gradients=None, Tensor[]? bias=None, bool return_lse=False) "
    "-> (Tensor[] states, Tensor walked, Tensor row_lse, Tensor[] lse)",
    tags=TAGS,
)
LIBRARY.define(
    "cascade_backward(Tensor?[] grad_states, Tensor?[] grad_lse, Tensor? state, Tensor seed, Tensor[] psi, Tensor[] bias, "
    "Tensor mu, Tensor beta, Tensor walked, Tensor row_lse, str precision, str backend, bool[] wanted) -> (Tensor grad_state, "
    "Tensor grad_seed, Tensor[] grad_psi, Tensor[] grad_bias, Tensor grad_mu, Tensor grad_beta)",
    tags=TAGS,
)


def _check_program(gradients: bool | None) -> None:
    """An exported program of version 0.1 has no such argument, and would take the list of states for a tensor."""
    if gradients is None:
        raise RuntimeError(
            "cascade_forward must be told by gradients whether a backward may come; got nothing, as in a program that was "
            "exported with difnet_kernels 0.1. Export it again with this version."
        )


# Whose `walked` and `row_lse` they are: on the tensor itself, because no shape tells; a copy has it no more. Autograd keeps
# the name beside the tensors, so this is for calls of the operators by hand.
LEFT_BY = "_left_by"


def _check_left_by(row_lse: Tensor, backend: str) -> None:
    by = getattr(row_lse, LEFT_BY, backend)
    if by != backend:
        raise ValueError(
            f"walked and row_lse are private to the backend whose cascade_forward returned them; got those of {by!r} for "
            f"{backend!r}. Pass backend={by!r}."
        )


def _empty_forward(
    state: Tensor | None, seed: Tensor, psi: Sequence[Tensor], mu: Tensor, all_steps: bool, gradients: bool, lse: bool
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """T states like the first one, or the last of them; for a backward walked (T, B, N, K) and row_lse (T, B, N), else memory
    for those of one walk; T times lse (B, *S), or none. mu has the accumulation dtype."""
    first = seed if state is None else state
    states = [empty_field_like(first) for _ in range(len(psi) if all_steps else 1)]
    sizes = (len(psi) if gradients else 1, seed.shape[0], math.prod(seed.shape[2:]))
    walked = mu.new_empty((*sizes, seed.shape[1]))
    given = [mu.new_empty((seed.shape[0], *seed.shape[2:])) for _ in psi] if lse else []
    return states, walked, mu.new_empty(sizes), given


def _empty_backward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    bias: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    """Gradients like their inputs, those of bias contiguous; what is not wanted, or has no input, is empty."""
    want_state, want_seed, want_psi, want_bias, want_mu, want_beta = _by_input(wanted, len(psi))
    return (
        empty_field_like(state) if want_state and state is not None else seed.new_empty((0,)),
        empty_field_like(seed) if want_seed else seed.new_empty((0,)),
        [empty_field_like(p) if want else p.new_empty((0,)) for p, want in zip(psi, want_psi, strict=True)],
        [mu.new_empty(b.shape if want else (0,)) for b, want in zip(bias, want_bias, strict=True)],
        torch.empty_like(mu) if want_mu else mu.new_empty((0,)),
        torch.empty_like(beta) if want_beta else beta.new_empty((0,)),
    )


def _by_input(wanted: Sequence[bool], walks: int) -> tuple[bool, bool, Sequence[bool], Sequence[bool], bool, bool]:
    """The flags of state, seed, every psi, every bias (if there are any), mu and beta."""
    return wanted[0], wanted[1], wanted[2 : 2 + walks], wanted[2 + walks : -2], wanted[-2], wanted[-1]


def _nodes(x: Tensor | None) -> Tensor | None:
    """(B, *S) as (B, N), contiguous; None where there is nothing of it."""
    return None if x is None or x.dim() == 1 else x.flatten(1).contiguous()


@torch.library.impl(LIBRARY, "cascade_forward", "CompositeExplicitAutograd")
def _forward(
    state: Tensor | None,
    seed: Tensor,
    psi: list[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    backend: str,
    all_steps: bool,
    gradients: bool | None = None,
    bias: Sequence[Tensor] | None = None,
    return_lse: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    _check_program(gradients)
    bias = bias or ()
    check_cascade(state, seed, psi, bias, mu, beta, precision)
    problem = Problem.of(seed, psi, precision, state=state, gradients=bool(gradients), bias=bias, lse=return_lse)
    run = backends.choose(backend, problem)
    states, walked, row_lse, lse = _empty_forward(state, seed, psi, mu, all_steps, bool(gradients), return_lse)
    if seed.numel() > 0:
        more: dict[str, Any] = {}
        if bias:
            more["bias"] = [_nodes(b) for b in bias]
        if lse:
            more["lse"] = [x.flatten(1) for x in lse]
        run.direction("cascade_forward")(
            None if state is None else flat(state),
            flat(seed),
            [flat(p) for p in psi],
            mu.contiguous(),
            beta.contiguous(),
            precision,
            states=[flat(y) for y in states],
            walked=walked,
            row_lse=row_lse,
            **more,
        )
    setattr(row_lse, LEFT_BY, run.name)
    return states, walked, row_lse, lse


@torch.library.register_fake("difnet_kernels::cascade_forward", lib=LIBRARY)
def _forward_fake(  # type: ignore[no-untyped-def]
    state, seed, psi, mu, beta, precision, backend, all_steps, gradients=None, bias=None, return_lse=False
):
    _check_program(gradients)
    check_cascade(state, seed, psi, bias or (), mu, beta, precision)
    return _empty_forward(state, seed, psi, mu, all_steps, gradients, return_lse)


@torch.library.impl(LIBRARY, "cascade_backward", "CompositeExplicitAutograd")
def _backward(
    grad_states: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    state: Tensor | None,
    seed: Tensor,
    psi: list[Tensor],
    bias: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    check_cascade(state, seed, psi, bias, mu, beta, precision)
    check_saved(grad_states, grad_lse, seed, psi, bias, mu, walked, row_lse, wanted)
    run = backends.choose(backend, Problem.of(seed, psi, precision, state=state, bias=bias, lse=len(grad_lse) > 0))
    _check_left_by(row_lse, run.name)
    grads = _empty_backward(state, seed, psi, bias, mu, beta, wanted)
    grad_state, grad_seed, grad_psi, grad_bias, grad_mu, grad_beta = grads
    if seed.numel() == 0:
        grad_mu.zero_()
        grad_beta.zero_()
    elif any(wanted):
        like = seed if state is None else state
        want_state, want_seed, want_psi, want_bias, want_mu, want_beta = _by_input(wanted, len(psi))
        more: dict[str, Any] = {}
        if bias:
            more["bias"] = [_nodes(b) for b in bias]
            more["grad_bias"] = [
                x.flatten(1) if want and x.dim() > 1 else None for x, want in zip(grad_bias, want_bias, strict=True)
            ]
        if grad_lse:
            more["grad_lse"] = [_nodes(g) for g in grad_lse]
        run.direction("cascade_backward")(
            [flat(like.new_zeros(()).expand(like.shape) if g is None else g) for g in grad_states],
            None if state is None else flat(state),
            flat(seed),
            [flat(p) for p in psi],
            mu.contiguous(),
            beta.contiguous(),
            walked,
            row_lse,
            precision,
            grad_state=flat(grad_state) if want_state and state is not None else None,
            grad_seed=flat(grad_seed) if want_seed else None,
            grad_psi=[flat(p) if want else None for p, want in zip(grad_psi, want_psi, strict=True)],
            grad_mu=grad_mu if want_mu else None,
            grad_beta=grad_beta if want_beta else None,
            **more,
        )
    return grads


@torch.library.register_fake("difnet_kernels::cascade_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad_states, grad_lse, state, seed, psi, bias, mu, beta, walked, row_lse, precision, backend, wanted
):
    check_cascade(state, seed, psi, bias, mu, beta, precision)
    check_saved(grad_states, grad_lse, seed, psi, bias, mu, walked, row_lse, wanted)
    return _empty_backward(state, seed, psi, bias, mu, beta, wanted)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    state, seed, psi, mu, beta, precision, backend, _, gradients, bias, lse = inputs
    _, walked, row_lse, _ = output
    ctx.set_materialize_grads(False)
    ctx.gradients = gradients
    if gradients:
        bias = bias or ()
        problem = Problem.of(seed, psi, precision, state=state, bias=bias, lse=lse)
        ctx.options = (precision, backends.resolve(backend, problem))
        ctx.save_for_backward(state, seed, mu, beta, walked, row_lse, *psi, *bias)


def _differentiate(ctx, grad_states, grad_walked, grad_row_lse, grad_lse):  # type: ignore[no-untyped-def]
    if not ctx.gradients:
        raise RuntimeError(
            "this call of cascade_forward kept nothing for a backward, as its argument gradients=False asked for; a program "
            "that was traced where no input required a gradient has no other. Trace it again with inputs that do."
        )
    of_state, of_seed, of_psi, of_mu, of_beta, *others = ctx.needed
    state, seed, mu, beta, walked, row_lse, *rest = ctx.saved_tensors
    psi, bias = rest[: len(of_psi)], rest[len(of_psi) :]
    of_bias = others[4] if bias else []
    if all(g is None for g in (*grad_states, *grad_lse)):
        return None, None, [None] * len(psi), *(None,) * 6, [None] * len(bias) if bias else None, None
    wanted = [state is not None and of_state, of_seed, *of_psi, *of_bias, of_mu, of_beta]
    grads = torch.ops.difnet_kernels.cascade_backward.default(
        grad_states, grad_lse, state, seed, psi, bias, mu, beta, walked, row_lse, *ctx.options, wanted
    )
    grad_state, grad_seed, grad_psi, grad_bias, grad_mu, grad_beta = grads
    return (
        grad_state if wanted[0] else None,
        grad_seed if of_seed else None,
        [g if want else None for g, want in zip(grad_psi, of_psi, strict=True)],
        grad_mu if of_mu else None,
        grad_beta if of_beta else None,
        *(None,) * 4,
        [g if want else None for g, want in zip(grad_bias, of_bias, strict=True)] if bias else None,
        None,
    )


def _refuse_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "cascaded_random_walk is differentiable once; a second derivative was asked for (create_graph=True). "
        "For small grids, difnet_kernels.backends.reference.walk is plain torch and differentiable any number of times."
    )


autograd.register(LIBRARY, "cascade_forward", _differentiate, _save)
autograd.register(LIBRARY, "cascade_backward", _refuse_second_derivative)


# What FlopCounterMode counts: the products of the equations as they stand, 2 for each multiply-add. A backend that uses the
# symmetry of S executes fewer. As torch counts attention, what backward computes again is counted again.


def _flops(seed: Sequence[int], channels: int) -> int:
    """A product over `channels` (or of that many) for every ordered pair of nodes."""
    return 2 * seed[0] * math.prod(seed[2:]) ** 2 * channels


@register_flop_formula(torch.ops.difnet_kernels.cascade_forward)
def _forward_flops(state: Any, seed: Sequence[int], psi: Sequence[Sequence[int]], *rest: Any, **more: Any) -> int:
    return sum(_flops(seed, p[1] + seed[1]) for p in psi)  # (W1, W2)


@register_flop_formula(torch.ops.difnet_kernels.cascade_backward)
def _backward_flops(
    grads: Any, lse: Any, state: Any, seed: Sequence[int], psi: Sequence[Sequence[int]], *rest: Any, **more: Any
) -> int:
    want_state, want_seed, want_psi, want_bias, want_mu, want_beta = _by_input(rest[-1], len(psi))
    to_the_start = want_state or want_seed or want_mu or want_beta
    walks = list(zip(psi, want_psi, want_bias or [False] * len(psi), strict=True))
    earliest = 0 if to_the_start else next(t for t, (_, *want) in enumerate([*walks, (psi[0], True)]) if any(want))
    channels = 0
    for p, of_psi, of_bias in walks[earliest:]:
        channels += p[1] + seed[1] + (of_psi or of_bias) * seed[1] + of_psi * p[1]  # (W1, B6), and (B4), (B5)
    return _flops(seed, channels)
