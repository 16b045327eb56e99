"""What the operators themselves demand, whoever calls them: a traced graph has lost the checks of the public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from difnet_kernels.checks import (
    check_bias,
    check_embeddings,
    check_field,
    check_gates,
    check_on_grid,
    check_precision,
    check_projection,
    check_state,
)
from difnet_kernels.problem import FLOATS, PRECISIONS, accumulation_dtype


def check_cascade(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    bias: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
) -> None:
    """The arguments of both directions. A right call passes by a few comparisons; only a wrong one is looked at again, for
    what to say."""
    fields = psi if state is None else (*psi, state)
    accumulate = accumulation_dtype(seed, (*fields, *bias))
    if _fits(state, seed, fields, bias, len(psi), mu, beta, accumulate) and precision in PRECISIONS:
        return
    check_field("seed", seed)
    check_embeddings(psi, seed)
    for t, p in enumerate(psi):
        check_on_grid(f"psi[{t}]", p, seed)
    if state is not None:
        check_state(state, seed)
    for name, gate in (("mu", mu), ("beta", beta)):
        check_gates(name, gate, len(psi), seed, accumulate)
        if gate.device != seed.device:
            raise ValueError(
                f"{name} must be on the device of seed, {seed.device}; got {gate.device}. Move it with {name}.to(seed.device)."
            )
        if tuple(gate.shape) != (len(psi),):
            raise ValueError(f"{name} must be ({len(psi)},), one value per walk; got {tuple(gate.shape)}.")
        if gate.dtype != accumulate:
            raise TypeError(
                f"{name} must be {accumulate}, in which the sums of these fields run; got {gate.dtype}. Convert it with "
                f"{name}.to({accumulate})."
            )
    if len(bias) not in (0, len(psi)):
        raise ValueError(f"bias must hold one entry per walk, {len(psi)} in all, or be None; got {len(bias)}.")
    for t, b in enumerate(bias):
        if tuple(b.shape) not in ((seed.shape[0], *seed.shape[2:]), (0,)):
            check_bias(f"bias[{t}]", b, seed)
            raise ValueError(f"bias[{t}] must hold {seed.shape[0]} images, as seed does; got {tuple(b.shape)}.")
        if b.dtype != accumulate:
            raise TypeError(f"bias[{t}] must be {accumulate}, in which the sums of these fields run; got {b.dtype}.")
        if b.device != seed.device:
            raise ValueError(f"bias[{t}] must be on the device of seed, {seed.device}; got {b.device}.")
    check_precision(precision)


def _fits(
    state: Tensor | None,
    seed: Tensor,
    fields: Sequence[Tensor],
    bias: Sequence[Tensor],
    walks: int,
    mu: Tensor,
    beta: Tensor,
    accumulate: torch.dtype,
) -> bool:
    shape, device, gates = seed.shape, seed.device, (walks,)
    if len(shape) < 3 or shape[1] == 0 or walks == 0 or seed.dtype not in FLOATS:
        return False
    if seed.layout != torch.strided:
        return False
    if state is not None and state.shape[1:2] != shape[1:2]:
        return False
    for gate in (mu, beta):
        if gate.shape != gates or gate.dtype != accumulate or gate.device != device:
            return False
    batch, grid = shape[0], shape[2:]
    for x in fields:
        size = x.shape
        if len(size) < 3 or size[0] != batch or size[2:] != grid or size[1] == 0 or x.device != device:
            return False
        if x.dtype not in FLOATS or x.layout != torch.strided:
            return False
    for b in bias:
        if b.shape not in ((batch, *grid), (0,)) or b.dtype != accumulate or b.device != device:
            return False
    return len(bias) in (0, walks)


def check_saved(
    grad_states: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    seed: Tensor,
    psi: Sequence[Tensor],
    bias: Sequence[Tensor],
    mu: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    wanted: Sequence[bool],
) -> None:
    """What backward demands beside the arguments of forward, which have passed: mu has the accumulation dtype."""
    sizes = (len(psi), seed.shape[0], math.prod(seed.shape[2:]))
    accumulate = mu.dtype
    for name, x, shape in (("walked", walked, (*sizes, seed.shape[1])), ("row_lse", row_lse, sizes)):
        if x.shape != shape or x.dtype != accumulate or x.device != seed.device:
            raise ValueError(
                f"{name} must be what cascade_forward returned with gradients=True, {shape} of {accumulate} on "
                f"{seed.device}; got {tuple(x.shape)} of {x.dtype} on {x.device}."
            )
    if len(grad_states) not in (1, len(psi)):
        raise ValueError(f"grad_states must hold 1 gradient, or {len(psi)}, one per walk; got {len(grad_states)}.")
    for t, grad in enumerate(grad_states):
        if grad is not None and (grad.shape != seed.shape or grad.device != seed.device or grad.dtype not in FLOATS):
            raise ValueError(
                f"grad_states[{t}] must be {tuple(seed.shape)}, floating point and on {seed.device}; got "
                f"{tuple(grad.shape)} of {grad.dtype} on {grad.device}."
            )
    if len(grad_lse) not in (0, len(psi)):
        raise ValueError(f"grad_lse must hold no gradient, or {len(psi)}, one per walk; got {len(grad_lse)}.")
    shape = (seed.shape[0], *seed.shape[2:])
    for t, grad in enumerate(grad_lse):
        if grad is not None and (grad.shape != shape or grad.device != seed.device or grad.dtype != accumulate):
            raise ValueError(
                f"grad_lse[{t}] must be {shape} of {accumulate} on {seed.device}; got {tuple(grad.shape)} of {grad.dtype} on "
                f"{grad.device}."
            )
    flags = len(psi) + len(bias) + 4
    if len(wanted) != flags:
        raise ValueError(
            f"wanted must hold {flags} flags, of state, seed, every psi, every bias (where there are any), mu and beta; got "
            f"{len(wanted)}."
        )


def check_volume(features: Tensor, weight: Tensor, slope: Tensor | None, grid: Sequence[int]) -> None:
    """What Ψ's operator itself demands: features (B, C, Z, H, W), weight (D, C) and slope (D,) of the accumulation dtype."""
    if features.dim() != 5:
        raise ValueError(f"features must be a volume (B, C, Z, H, W); got {tuple(features.shape)}. Add axes of one.")
    check_projection(features, weight, slope, grid, last="slope")
    accumulate = accumulation_dtype(features, [weight])
    for name, x in (("weight", weight), ("slope", slope)):
        if x is not None and x.dtype != accumulate:
            raise TypeError(
                f"{name} must be {accumulate}, in which the sums run; got {x.dtype}. Convert it with {name}.to({accumulate})."
            )


def check_pooled(
    grads: Sequence[Tensor | None], features: Tensor, weight: Tensor, position: Tensor, z: Tensor | None, mean: Tensor
) -> None:
    """What Ψ's backward demands of what forward returned, and of grads = (grad_peak, grad_mean, grad_variance)."""
    embed = weight.shape[0]
    pooled = (features.shape[0], embed, *position.shape[2:])
    if position.dim() != 5 or position.shape != pooled or position.dtype != torch.int32:
        raise ValueError(
            f"position must be what projection_forward returned, (B, D, *grid) of int32 with B = {pooled[0]} and D = {embed}; "
            f"got {tuple(position.shape)} of {position.dtype}."
        )
    per_channel = (embed,)
    shapes = {
        "grad_peak": (grads[0], pooled),
        "grad_mean": (grads[1], per_channel),
        "grad_variance": (grads[2], per_channel),
        "z": (z, (pooled[0], embed, *features.shape[2:])),
        "mean": (mean if mean.numel() > 0 or grads[2] is not None else None, per_channel),
    }
    for name, (x, shape) in shapes.items():
        if x is not None and (x.shape != shape or x.dtype not in FLOATS or x.device != features.device):
            raise ValueError(
                f"{name} must be {shape}, floating point and on {features.device}; got {tuple(x.shape)} of {x.dtype} on "
                f"{x.device}."
            )
    for name, x in (("grad_mean", grads[1]), ("grad_variance", grads[2]), ("z", z), ("mean", mean)):
        if x is not None and x.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of weight, {weight.dtype}; got {x.dtype}.")
    if position.device != features.device:
        raise ValueError(f"position must be on the device of features, {features.device}; got {position.device}.")


def check_projected(
    seed: Tensor,
    features: Sequence[Tensor],
    weight: Sequence[Tensor],
    vectors: Sequence[Sequence[Tensor | None]],
    eps: Sequence[float],
    mu: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    precision: str,
) -> None:
    """The arguments of projected_cascade; vectors = (offset, mean, variance, slope, shift), lists as long as features."""
    check_field("seed", seed)
    walks, grid = len(features), tuple(seed.shape[2:])
    if len(grid) > 3:
        raise ValueError(f"seed must be (B, K, *S) with one to three spatial axes; got {tuple(seed.shape)}.")
    names = ("offset", "mean", "variance", "slope", "shift")
    lists = {"weight": weight, "eps": eps, **dict(zip(names, vectors, strict=True))}
    for name, each in lists.items():
        if walks == 0 or len(each) != walks:
            raise ValueError(
                f"{name} must hold one entry per map of features, {max(walks, 1)} in all; got {len(each)}."
            )
    accumulate = accumulation_dtype(seed, (*features, *weight))
    for name, gate in (("mu", mu), ("beta", beta)):
        if tuple(gate.shape) != (walks,) or gate.dtype != accumulate or gate.device != seed.device:
            raise ValueError(
                f"{name} must be ({walks},) of {accumulate} on {seed.device}, one value per walk; got {tuple(gate.shape)} of "
                f"{gate.dtype} on {gate.device}."
            )
    if bias is not None and (
        bias.shape != (seed.shape[0], *grid) or bias.dtype != accumulate or bias.device != seed.device
    ):
        raise ValueError(
            f"bias must be {(seed.shape[0], *grid)} of {accumulate} on {seed.device}; got {tuple(bias.shape)} of {bias.dtype} "
            f"on {bias.device}."
        )
    for t, (x, w) in enumerate(zip(features, weight, strict=True)):
        if x.dim() != 5 or x.shape[0] != seed.shape[0] or x.device != seed.device:
            raise ValueError(
                f"features[{t}] must be a volume (B, C, Z, H, W) with the batch and the device of seed, {seed.shape[0]} and "
                f"{seed.device}; got {tuple(x.shape)} on {x.device}."
            )
        for name, each in zip(names, vectors, strict=True):
            check_projection(x, w, each[t], (*(1,) * (3 - len(grid)), *grid), last=f"{name}[{t}]")
        if (vectors[1][t] is None) != (vectors[2][t] is None):
            raise ValueError(f"mean[{t}] and variance[{t}] must both be given, or both be None.")
    check_precision(precision)


def check_solved(grad: Tensor, y: Tensor, seed: Tensor, bias: Sequence[Tensor], wanted: Sequence[bool]) -> None:
    """What the backward of a steady state demands beside the arguments of forward, which have passed."""
    for name, x in (("grad", grad), ("y", y)):
        if x.shape != seed.shape or x.dtype not in FLOATS or x.device != seed.device:
            raise ValueError(
                f"{name} must be {tuple(seed.shape)}, floating point and on {seed.device}; got {tuple(x.shape)} of {x.dtype} "
                f"on {x.device}."
            )
    if len(wanted) != len(bias) + 3:
        raise ValueError(f"wanted must hold {len(bias) + 3} flags, of seed, psi, mu and every bias; got {len(wanted)}.")
