"""Ψ's projection and pooling as two torch operators: schema, kernels, fake kernels, autograd, FLOPs, for all backends.

z = W f at every pixel of `features` (B, C, Z, H, W), never stored. Of it remain, for each node of `grid` and each channel,
the value (`peak`) and the flat index (`position`) of the pixel that wins the node's window, and, if `statistics` are wanted,
the mean and the biased variance of each channel. `slope` is that of the batch normalisation to come: where it is
negative the least z wins, where it is zero the window's first pixel does, as in a pooling of equal values.
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
from difnet_kernels.ops.checks import check_pooled, check_volume
from difnet_kernels.ops.library import TAGS, fresh_library
from difnet_kernels.problem import Projection

LIBRARY = fresh_library("projection")
LIBRARY.define(
    "projection_forward(Tensor features, Tensor weight, Tensor? slope, SymInt[] grid, bool statistics, str backend) "
    "-> (Tensor peak, Tensor position, Tensor mean, Tensor variance)",
    tags=TAGS,
)
LIBRARY.define(
    "projection_backward(Tensor grad_peak, Tensor? grad_mean, Tensor? grad_variance, Tensor features, Tensor weight, "
    "Tensor position, Tensor? z, Tensor mean, bool want_features, bool want_weight, str backend) "
    "-> (Tensor grad_features, Tensor grad_weight)",
    tags=TAGS,
)


def _empty_forward(
    features: Tensor, weight: Tensor, grid: Sequence[int], statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """peak and position (B, D, *grid), node-major in memory; mean and variance (D,), or empty."""
    embed = weight.shape[0]
    peak = weight.new_empty((features.shape[0], *grid, embed)).movedim(-1, 1)
    position = torch.empty_like(peak, dtype=torch.int32)
    mean = weight.new_empty((embed if statistics else 0,))
    return peak, position, mean, torch.empty_like(mean)


@torch.library.impl(LIBRARY, "projection_forward", "CompositeExplicitAutograd")
def _forward(
    features: Tensor, weight: Tensor, slope: Tensor | None, grid: Sequence[int], statistics: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_volume(features, weight, slope, grid)
    run = backends.choose(backend, Projection.of(features, weight, grid, gradients=not backend))
    peak, position, mean, variance = _empty_forward(features, weight, grid, statistics)
    if peak.numel() == 0:  # no image
        return peak, position, mean.zero_(), variance.zero_()
    run.direction("projection_forward")(
        features,
        weight.contiguous(),
        None if slope is None else slope.contiguous(),
        peak=peak,
        position=position,
        mean=mean if statistics else None,
        variance=variance if statistics else None,
    )
    return peak, position, mean, variance


@torch.library.register_fake("difnet_kernels::projection_forward", lib=LIBRARY)
def _forward_fake(features, weight, slope, grid, statistics, backend):  # type: ignore[no-untyped-def]
    check_volume(features, weight, slope, grid)
    return _empty_forward(features, weight, grid, statistics)


def _empty_backward(features: Tensor, weight: Tensor, want_features: bool, want_weight: bool) -> tuple[Tensor, Tensor]:
    """Gradients like their inputs; what is not wanted is empty."""
    grad_features = torch.empty_like(features) if want_features else features.new_empty((0,))
    return grad_features, weight.new_empty(tuple(weight.shape) if want_weight else (0,))


@torch.library.impl(LIBRARY, "projection_backward", "CompositeExplicitAutograd")
def _backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    z: Tensor | None,
    mean: Tensor,
    want_features: bool,
    want_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_volume(features, weight, None, position.shape[2:])
    check_pooled((grad_peak, grad_mean, grad_variance), features, weight, position, z, mean)
    run = backends.choose(backend, Projection.of(features, weight, position.shape[2:]))
    grad_features, grad_weight = _empty_backward(features, weight, want_features, want_weight)
    if position.numel() == 0:
        return grad_features, grad_weight.zero_()
    if want_features or want_weight:
        run.direction("projection_backward")(
            grad_peak,
            None if grad_mean is None else grad_mean.contiguous(),
            None if grad_variance is None else grad_variance.contiguous(),
            features,
            weight.contiguous(),
            position,
            mean if mean.numel() > 0 else None,
            z=z,
            grad_features=grad_features if want_features else None,
            grad_weight=grad_weight if want_weight else None,
        )
    return grad_features, grad_weight


@torch.library.register_fake("difnet_kernels::projection_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad_peak, grad_mean, grad_variance, features, weight, position, z, mean, want_features, want_weight, backend
):
    check_volume(features, weight, None, position.shape[2:])
    check_pooled((grad_peak, grad_mean, grad_variance), features, weight, position, z, mean)
    return _empty_backward(features, weight, want_features, want_weight)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, weight, _, grid, statistics, backend = inputs
    peak, position, mean, _ = output
    ctx.set_materialize_grads(False)
    ctx.statistics, ctx.backend = statistics, backends.resolve(backend, Projection.of(features, weight, grid))
    # where every window is one pixel, peak is all of z and need not be computed again
    ctx.whole = statistics and peak.shape[2:] == features.shape[2:]
    ctx.mark_non_differentiable(position)
    ctx.save_for_backward(features, weight, position, mean, *([peak] if ctx.whole else []))


def _differentiate(ctx, grad_peak, grad_position, grad_mean, grad_variance):  # type: ignore[no-untyped-def]
    features, weight, position, mean, *z = ctx.saved_tensors
    want_features, want_weight = ctx.needed[:2]
    if not ctx.statistics:
        grad_mean = grad_variance = None
    if grad_peak is None:
        grad_peak = weight.new_zeros(()).expand(position.shape)
    saved = (position, z[0] if ctx.whole else None, mean)
    wanted = (want_features, want_weight)
    grad_features, grad_weight = torch.ops.difnet_kernels.projection_backward.default(
        grad_peak, grad_mean, grad_variance, features, weight, *saved, *wanted, ctx.backend
    )
    return grad_features if want_features else None, grad_weight if want_weight else None, None, None, None, None


def _refuse_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "psi_projection is differentiable once; a second derivative was asked for (create_graph=True). Compose it from "
        "torch's conv, batch_norm and adaptive_max_pool instead."
    )


autograd.register(LIBRARY, "projection_forward", _differentiate, _save)
autograd.register(LIBRARY, "projection_backward", _refuse_second_derivative)


def _product_flops(features: Sequence[int], weight: Sequence[int]) -> int:
    """z = W f at every pixel, or one of its two gradients; 2 for each multiply-add."""
    return 2 * features[0] * math.prod(features[2:]) * weight[0] * weight[1]


@register_flop_formula(torch.ops.difnet_kernels.projection_forward)
def _forward_flops(features: Sequence[int], weight: Sequence[int], *rest: Any, **more: Any) -> int:
    return _product_flops(features, weight)  # (Ψ1)


@register_flop_formula(torch.ops.difnet_kernels.projection_backward)
def _backward_flops(
    grad_peak: Any,
    grad_mean: Any,
    grad_variance: Any,
    features: Sequence[int],
    weight: Sequence[int],
    *rest: Any,
    **more: Any,
) -> int:
    _, z, _, want_features, want_weight, *_ = rest
    again = grad_variance is not None and z is None
    return _product_flops(features, weight) * (again + want_features + want_weight)  # (Ψ2, Ψ3, Ψ4)
