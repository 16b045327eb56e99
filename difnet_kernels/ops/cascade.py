"""The cascade as two torch operators: schema, kernels, fake kernels and autograd, once for all backends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difnet_kernels import backends
from difnet_kernels.ops.library import LIBRARY, TAGS
from difnet_kernels.problem import Problem, accumulation_dtype, empty_field_like, flat

LIBRARY.define(
    "cascade_forward(Tensor? state, Tensor seed, Tensor[] psi, Tensor mu, Tensor beta, str precision, str backend, "
    "bool all_steps) -> (Tensor states, Tensor walked, Tensor row_lse)",
    tags=TAGS,
)
LIBRARY.define(
    "cascade_backward(Tensor grad_states, Tensor? state, Tensor seed, Tensor[] psi, Tensor mu, Tensor beta, Tensor walked, "
    "Tensor row_lse, str precision, str backend, bool all_steps) "
    "-> (Tensor grad_state, Tensor grad_seed, Tensor[] grad_psi, Tensor grad_mu, Tensor grad_beta)",
    tags=TAGS,
)


def _empty_forward(seed: Tensor, psi: list[Tensor], all_steps: bool) -> tuple[Tensor, Tensor, Tensor]:
    """states like seed (stacked T times with all_steps), walked (T, B, N, K), row_lse (T, B, N)."""
    walks, batch, classes = len(psi), seed.shape[0], seed.shape[1]
    nodes = math.prod(seed.shape[2:])
    accumulate = accumulation_dtype(seed, psi)
    states = empty_field_like(seed, steps=walks if all_steps else None)
    walked = seed.new_empty((walks, batch, nodes, classes), dtype=accumulate)
    return states, walked, seed.new_empty((walks, batch, nodes), dtype=accumulate)


def _empty_backward(
    state: Tensor | None, seed: Tensor, psi: list[Tensor], mu: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    grad_state = seed.new_empty((0,)) if state is None else empty_field_like(state)
    return (
        grad_state,
        empty_field_like(seed),
        [empty_field_like(p) for p in psi],
        torch.empty_like(mu),
        torch.empty_like(beta),
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
) -> tuple[Tensor, Tensor, Tensor]:
    # a named backend may bring forward alone; autograd asks for the rest where it saves
    run = backends.choose(backend, Problem.of(seed, psi, precision, gradients=not backend))
    states, walked, row_lse = _empty_forward(seed, psi, all_steps)
    if walked.numel() > 0:
        assert run.cascade_forward is not None  # or `choose` would have refused
        run.cascade_forward(
            None if state is None else flat(state),
            flat(seed),
            [flat(p) for p in psi],
            mu.contiguous(),
            beta.contiguous(),
            precision,
            states=states.flatten(-seed.dim() + 2) if all_steps else flat(states).unsqueeze(0),
            walked=walked,
            row_lse=row_lse,
        )
    return states, walked, row_lse


@torch.library.register_fake("difnet_kernels::cascade_forward", lib=LIBRARY)
def _forward_fake(state, seed, psi, mu, beta, precision, backend, all_steps):  # type: ignore[no-untyped-def]
    return _empty_forward(seed, psi, all_steps)


@torch.library.impl(LIBRARY, "cascade_backward", "CompositeExplicitAutograd")
def _backward(
    grad_states: Tensor,
    state: Tensor | None,
    seed: Tensor,
    psi: list[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    backend: str,
    all_steps: bool,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    run = backends.choose(backend, Problem.of(seed, psi, precision))
    grads = _empty_backward(state, seed, psi, mu, beta)
    grad_state, grad_seed, grad_psi, grad_mu, grad_beta = grads
    if walked.numel() == 0:
        grad_mu.zero_()
        grad_beta.zero_()
        return grads
    nodes = walked.shape[2]
    assert run.cascade_backward is not None
    run.cascade_backward(
        grad_states.reshape(-1, seed.shape[0], seed.shape[1], nodes),
        None if state is None else flat(state),
        flat(seed),
        [flat(p) for p in psi],
        mu.contiguous(),
        beta.contiguous(),
        walked,
        row_lse,
        precision,
        grad_state=None if state is None else flat(grad_state),
        grad_seed=flat(grad_seed),
        grad_psi=[flat(p) for p in grad_psi],
        grad_mu=grad_mu,
        grad_beta=grad_beta,
    )
    return grads


@torch.library.register_fake("difnet_kernels::cascade_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad_states, state, seed, psi, mu, beta, walked, row_lse, precision, backend, all_steps
):
    return _empty_backward(state, seed, psi, mu, beta)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    state, seed, psi, mu, beta, precision, backend, all_steps = inputs
    _, walked, row_lse = output
    ctx.set_materialize_grads(False)
    ctx.has_state, ctx.walks = state is not None, len(psi)
    ctx.options = (precision, backends.resolve(backend, Problem.of(seed, psi, precision)), all_steps)
    ctx.save_for_backward(*([state] if ctx.has_state else []), seed, mu, beta, walked, row_lse, *psi)


def _differentiate(ctx, grad_states, grad_walked, grad_row_lse):  # type: ignore[no-untyped-def]
    if grad_states is None:
        return None, None, [None] * ctx.walks, None, None, None, None, None
    saved = list(ctx.saved_tensors)
    state = saved.pop(0) if ctx.has_state else None
    seed, mu, beta, walked, row_lse, *psi = saved
    grad_state, grad_seed, grad_psi, grad_mu, grad_beta = torch.ops.difnet_kernels.cascade_backward(
        grad_states, state, seed, psi, mu, beta, walked, row_lse, *ctx.options
    )
    return grad_state if ctx.has_state else None, grad_seed, grad_psi, grad_mu, grad_beta, None, None, None


def _refuse_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "cascaded_random_walk is differentiable once; a second derivative was asked for (create_graph=True). "
        "For small grids, difnet_kernels.backends.reference.walk is plain torch and differentiable any number of times."
    )


torch.library.register_autograd("difnet_kernels::cascade_forward", _differentiate, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("difnet_kernels::cascade_backward", _refuse_second_derivative, lib=LIBRARY)
