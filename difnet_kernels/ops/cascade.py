"""The cascade as two torch operators: schema, kernels, fake kernels, autograd and FLOPs, once for all backends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from difnet_kernels import backends
from difnet_kernels.checks import check_cascade, check_saved
from difnet_kernels.ops.library import TAGS, fresh_library
from difnet_kernels.problem import Problem, accumulation_dtype, empty_field_like, flat

LIBRARY = fresh_library("cascade")
LIBRARY.define(
    "cascade_forward(Tensor? state, Tensor seed, Tensor[] psi, Tensor mu, Tensor beta, str precision, str backend, "
    "bool all_steps, bool gradients) -> (Tensor[] states, Tensor walked, Tensor row_lse)",
    tags=TAGS,
)
LIBRARY.define(
    "cascade_backward(Tensor?[] grad_states, Tensor? state, Tensor seed, Tensor[] psi, Tensor mu, Tensor beta, "
    "Tensor walked, Tensor row_lse, str precision, str backend, bool[] wanted) "
    "-> (Tensor grad_state, Tensor grad_seed, Tensor[] grad_psi, Tensor grad_mu, Tensor grad_beta)",
    tags=TAGS,
)


def _empty_forward(
    state: Tensor | None, seed: Tensor, psi: Sequence[Tensor], all_steps: bool, gradients: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """T states like the first one, or the last of them; for a backward walked (T, B, N, K) and row_lse (T, B, N), else memory
    for those of one walk."""
    first = seed if state is None else state
    states = [empty_field_like(first) for _ in range(len(psi) if all_steps else 1)]
    accumulate = accumulation_dtype(first, (seed, *psi))
    sizes = (len(psi) if gradients else 1, seed.shape[0], math.prod(seed.shape[2:]))
    walked = seed.new_empty((*sizes, seed.shape[1]), dtype=accumulate)
    return states, walked, seed.new_empty(sizes, dtype=accumulate)


def _empty_backward(
    state: Tensor | None, seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """Gradients like their inputs; what is not wanted, or has no input, is empty."""
    want_state, want_seed, *want_psi, want_mu, want_beta = wanted
    return (
        empty_field_like(state) if want_state and state is not None else seed.new_empty((0,)),
        empty_field_like(seed) if want_seed else seed.new_empty((0,)),
        [empty_field_like(p) if want else p.new_empty((0,)) for p, want in zip(psi, want_psi, strict=True)],
        torch.empty_like(mu) if want_mu else mu.new_empty((0,)),
        torch.empty_like(beta) if want_beta else beta.new_empty((0,)),
    )


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
    gradients: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    check_cascade(state, seed, psi, mu, beta, precision)
    run = backends.choose(backend, Problem.of(seed, psi, precision, state=state, gradients=gradients))
    states, walked, row_lse = _empty_forward(state, seed, psi, all_steps, gradients)
    if seed.numel() > 0:
        assert run.cascade_forward is not None  # or `choose` would have refused
        run.cascade_forward(
            None if state is None else flat(state),
            flat(seed),
            [flat(p) for p in psi],
            mu.contiguous(),
            beta.contiguous(),
            precision,
            states=[flat(y) for y in states],
            walked=walked,
            row_lse=row_lse,
        )
    return states, walked, row_lse


@torch.library.register_fake("difnet_kernels::cascade_forward", lib=LIBRARY)
def _forward_fake(state, seed, psi, mu, beta, precision, backend, all_steps, gradients):  # type: ignore[no-untyped-def]
    check_cascade(state, seed, psi, mu, beta, precision)
    return _empty_forward(state, seed, psi, all_steps, gradients)


@torch.library.impl(LIBRARY, "cascade_backward", "CompositeExplicitAutograd")
def _backward(
    grad_states: Sequence[Tensor | None],
    state: Tensor | None,
    seed: Tensor,
    psi: list[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    check_cascade(state, seed, psi, mu, beta, precision)
    check_saved(grad_states, state, seed, psi, walked, row_lse, wanted)
    run = backends.choose(backend, Problem.of(seed, psi, precision, state=state))
    grads = _empty_backward(state, seed, psi, mu, beta, wanted)
    grad_state, grad_seed, grad_psi, grad_mu, grad_beta = grads
    if seed.numel() == 0:
        grad_mu.zero_()
        grad_beta.zero_()
    elif any(wanted):
        assert run.cascade_backward is not None
        like = seed if state is None else state
        want_state, want_seed, *want_psi, want_mu, want_beta = wanted
        run.cascade_backward(
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
        )
    return grads


@torch.library.register_fake("difnet_kernels::cascade_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad_states, state, seed, psi, mu, beta, walked, row_lse, precision, backend, wanted
):
    check_cascade(state, seed, psi, mu, beta, precision)
    check_saved(grad_states, state, seed, psi, walked, row_lse, wanted)
    return _empty_backward(state, seed, psi, mu, beta, wanted)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    state, seed, psi, mu, beta, precision, backend, _, gradients = inputs
    _, walked, row_lse = output
    ctx.set_materialize_grads(False)
    ctx.has_state, ctx.gradients = state is not None, gradients
    if gradients:
        ctx.options = (precision, backends.resolve(backend, Problem.of(seed, psi, precision, state=state)))
        ctx.save_for_backward(*([state] if ctx.has_state else []), seed, mu, beta, walked, row_lse, *psi)


def _differentiate(ctx, grad_states, grad_walked, grad_row_lse):  # type: ignore[no-untyped-def]
    if not ctx.gradients:
        raise RuntimeError(
            "this call of cascade_forward kept nothing for a backward, as its argument gradients=False asked for; a program "
            "that was traced where no input required a gradient has no other. Trace it again with inputs that do."
        )
    of_state, of_seed, of_psi, of_mu, of_beta = ctx.needs_input_grad[:5]
    if all(g is None for g in grad_states):
        return None, None, [None] * len(of_psi), None, None, None, None, None, None
    saved = list(ctx.saved_tensors)
    state = saved.pop(0) if ctx.has_state else None
    seed, mu, beta, walked, row_lse, *psi = saved
    wanted = [ctx.has_state and of_state, of_seed, *of_psi, of_mu, of_beta]
    grads = torch.ops.difnet_kernels.cascade_backward(
        grad_states, state, seed, psi, mu, beta, walked, row_lse, *ctx.options, wanted
    )
    grad_state, grad_seed, grad_psi, grad_mu, grad_beta = grads
    return (
        grad_state if wanted[0] else None,
        grad_seed if of_seed else None,
        [g if want else None for g, want in zip(grad_psi, of_psi, strict=True)],
        grad_mu if of_mu else None,
        grad_beta if of_beta else None,
        *(None,) * 4,
    )


def _refuse_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "cascaded_random_walk is differentiable once; a second derivative was asked for (create_graph=True). "
        "For small grids, difnet_kernels.backends.reference.walk is plain torch and differentiable any number of times."
    )


torch.library.register_autograd("difnet_kernels::cascade_forward", _differentiate, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("difnet_kernels::cascade_backward", _refuse_second_derivative, lib=LIBRARY)


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
    grads: Any, state: Any, seed: Sequence[int], psi: Sequence[Sequence[int]], *rest: Any, **more: Any
) -> int:
    want_state, want_seed, *want_psi, want_mu, want_beta = rest[-1]
    to_the_start = want_state or want_seed or want_mu or want_beta
    earliest = 0 if to_the_start else [*want_psi, True].index(True)
    walks = list(zip(psi, want_psi, strict=True))[earliest:]
    return sum(_flops(seed, p[1] + seed[1]) * (1 + want) for p, want in walks)  # (W1, B6), and (B4, B5)
