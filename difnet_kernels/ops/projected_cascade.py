"""Ψ of every walk and the cascade as one torch operator, for inference: schema, kernel, fake kernel and FLOPs.

ψ_t = root · norm_t(pool(W_t f_t + b_t)) never leaves the operator. features: T volumes (B, C_t, Z, H, W), pooled to the grid of
the seed; offset: b_t (D,) or None; mean, variance, slope, shift: those of a batch normalisation in evaluation, each (D,) or
None, and eps. A Ψ without mean and variance is not normalised. root: of the scale of the logits.
bias: (B, *S) for the columns of every walk (W1b), or None; a node whose bias is -inf has no embedding: its ψ is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from difnet_kernels import backends
from difnet_kernels.ops import autograd
from difnet_kernels.ops.checks import check_projected
from difnet_kernels.ops.library import TAGS, fresh_library
from difnet_kernels.problem import ProjectedCascade, empty_field_like, flat

LIBRARY = fresh_library("projected_cascade")
LIBRARY.define(
    "projected_cascade(Tensor seed, Tensor[] features, Tensor[] weight, Tensor?[] offset, Tensor?[] mean, Tensor?[] variance, "
    "Tensor?[] slope, Tensor?[] shift, float[] eps, float root, Tensor mu, Tensor beta, Tensor? bias, str precision, "
    "str backend, bool all_steps) -> Tensor[]",
    tags=TAGS,
)


def _empty(seed: Tensor, walks: int, all_steps: bool) -> list[Tensor]:
    return [empty_field_like(seed) for _ in range(walks if all_steps else 1)]


@torch.library.impl(LIBRARY, "projected_cascade", "CompositeExplicitAutograd")
def _forward(
    seed: Tensor,
    features: list[Tensor],
    weight: list[Tensor],
    offset: Sequence[Tensor | None],
    mean: Sequence[Tensor | None],
    variance: Sequence[Tensor | None],
    slope: Sequence[Tensor | None],
    shift: Sequence[Tensor | None],
    eps: Sequence[float],
    root: float,
    mu: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    precision: str,
    backend: str,
    all_steps: bool,
) -> list[Tensor]:
    vectors = (offset, mean, variance, slope, shift)
    check_projected(seed, features, weight, vectors, eps, mu, beta, bias, precision)
    run = backends.choose(backend, ProjectedCascade.of(seed, features, weight, precision, bias=bias is not None))
    states = _empty(seed, len(features), all_steps)
    if seed.numel() > 0:
        ones = (1,) * (5 - seed.dim())
        run.direction("projected_cascade")(
            flat(seed),
            features,
            [w.contiguous() for w in weight],
            *([None if x is None else x.contiguous() for x in each] for each in vectors),
            eps,
            root,
            (*ones, *seed.shape[2:]),
            mu.contiguous(),
            beta.contiguous(),
            None if bias is None else bias.flatten(1).contiguous(),
            precision,
            states=[flat(y) for y in states],
        )
    return states


@torch.library.register_fake("difnet_kernels::projected_cascade", lib=LIBRARY)
def _forward_fake(  # type: ignore[no-untyped-def]
    seed,
    features,
    weight,
    offset,
    mean,
    variance,
    slope,
    shift,
    eps,
    root,
    mu,
    beta,
    bias,
    precision,
    backend,
    all_steps,
):
    check_projected(seed, features, weight, (offset, mean, variance, slope, shift), eps, mu, beta, bias, precision)
    return _empty(seed, len(features), all_steps)


def _refuse_gradient(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "projected_cascade is for inference and has no gradient; one was asked for, perhaps of a program that was exported "
        "under torch.no_grad(). Export it with gradients enabled, or call psi_projection and cascaded_random_walk."
    )


autograd.register(LIBRARY, "projected_cascade", _refuse_gradient)


@register_flop_formula(torch.ops.difnet_kernels.projected_cascade)
def _flops(
    seed: Sequence[int], features: Sequence[Sequence[int]], weight: Sequence[Sequence[int]], *rest: Any, **more: Any
) -> int:
    """As the two operators count: 2 for each multiply-add of the equations as they stand."""
    pairs = seed[0] * math.prod(seed[2:]) ** 2
    walks = sum(2 * pairs * (w[0] + seed[1]) for w in weight)  # (W1, W2)
    return walks + sum(
        2 * f[0] * math.prod(f[2:]) * math.prod(w) for f, w in zip(features, weight, strict=True)
    )  # (Ψ1)
