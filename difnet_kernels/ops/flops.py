"""What torch.utils.flop_counter.FlopCounterMode counts: the products of the equations as they stand, 2 for each multiply-add.

A backend that uses the symmetry of S executes fewer. As torch counts attention, a product that backward computes again is
counted again, and exponentials and sums are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from difnet_kernels.ops import cascade as _cascade  # noqa: F401  register what is counted here

OPS = torch.ops.difnet_kernels
Shape = Sequence[int]


def _pairs(seed: Shape) -> int:
    """Ordered pairs of nodes of all images."""
    return seed[0] * math.prod(seed[2:]) ** 2


@register_flop_formula(OPS.cascade_forward)
def _cascade_forward(state: Shape | None, seed: Shape, psi: Sequence[Shape], *rest: Any, **more: Any) -> int:
    return sum(2 * _pairs(seed) * (p[1] + seed[1]) for p in psi)  # (W1, W2)


@register_flop_formula(OPS.cascade_backward)
def _cascade_backward(
    grads: Any, state: Shape | None, seed: Shape, psi: Sequence[Shape], *rest: Any, **more: Any
) -> int:
    wanted = rest[-1]
    want_state, want_seed, *want_psi, want_mu, want_beta = wanted
    to_the_start = want_state or want_seed or want_mu or want_beta
    earliest = 0 if to_the_start else (want_psi.index(True) if True in want_psi else len(psi))
    total = 0
    for p, want in list(zip(psi, want_psi, strict=True))[earliest:]:
        total += 2 * _pairs(seed) * (p[1] + seed[1])  # (W1, B6)
        total += 2 * _pairs(seed) * (p[1] + seed[1]) if want else 0  # (B4, B5)
    return total


def _product(features: Shape, weight: Shape) -> int:
    """z = W f at every pixel, or one of its two gradients."""
    return 2 * features[0] * math.prod(features[2:]) * weight[0] * weight[1]


@register_flop_formula(OPS.projection_forward)
def _projection_forward(features: Shape, weight: Shape, *rest: Any, **more: Any) -> int:
    return _product(features, weight)  # (Ψ1)


@register_flop_formula(OPS.projection_backward)
def _projection_backward(
    grad_peak: Any, grad_mean: Any, grad_variance: Any, features: Shape, weight: Shape, *rest: Any, **more: Any
) -> int:
    _, z, _, want_features, want_weight, *_ = rest
    again = grad_variance is not None and z is None
    return _product(features, weight) * (again + want_features + want_weight)  # (Ψ2, Ψ3, Ψ4)
