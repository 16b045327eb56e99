"""Ψ (Ψ1) from torch's own layers, one by one: for a normalisation that must be called, and for tracers.

The projected map is stored at the resolution of the features, which the fused way never does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d
from torch.overrides import handle_torch_function, has_torch_function

from difnet_kernels.problem import accumulation_dtype

POOLS = {1: adaptive_max_pool1d, 2: adaptive_max_pool2d, 3: adaptive_max_pool3d}


def psi_projection(
    features: Tensor, weight: Tensor, bias: Tensor | None, norm: Callable[[Tensor], Tensor] | None, grid: Sequence[int]
) -> Tensor:
    """pool(norm(W features + bias)), with arguments as functional.psi_projection has them."""
    if norm is not None and not callable(norm):
        raise TypeError(
            f"norm must be a normalisation to call (a module or a function) or None; got {type(norm).__name__}."
        )
    z = project(features, weight, bias)
    if norm is not None:
        z = norm(z) if not isinstance(norm, nn.BatchNorm2d) else as_image(norm(to_image(z)), z)
    return pool(z, grid)


def project(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z = W f + b at every pixel. The sums run as in the fused way, also under autocast; the result has the dtype to which
    features and weight promote, which is that of the normalisation in a 16-bit network."""
    inputs = (features, weight, bias)
    if has_torch_function(inputs):
        return handle_torch_function(project, inputs, *inputs)
    accumulate = accumulation_dtype(features, [weight])
    with torch.autocast(device_type=features.device.type, enabled=False):
        z = torch.einsum("dc,bcn->bdn", weight.to(accumulate), features.flatten(2).to(accumulate))
        if bias is not None:
            z = z + bias.to(accumulate).view(-1, 1)
    return z.view(*z.shape[:2], *features.shape[2:]).to(torch.promote_types(features.dtype, weight.dtype))


def pool(z: Tensor, grid: Sequence[int]) -> Tensor:
    """The adaptive maximum, node-major in memory."""
    if has_torch_function((z,)):
        return handle_torch_function(pool, (z,), z, grid)
    axes = len(grid)
    if not isinstance(z, Tensor):
        raise TypeError(f"norm must return a map (B, D, *S), as it was given; got {type(z).__name__}.")
    if z.dim() != axes + 2:
        raise ValueError(
            f"norm must return a map (B, D, *S) with {axes} spatial axes, as it was given; got {tuple(z.shape)}."
        )
    pooled = z if tuple(z.shape[2:]) == tuple(grid) else POOLS[axes](z, tuple(grid))
    return pooled.movedim(1, -1).contiguous().movedim(-1, 1)


def to_image(z: Tensor) -> Tensor:
    """The one normalisation of PsiProjection is of images; signals and volumes are images to its statistics."""
    if has_torch_function((z,)):
        return handle_torch_function(to_image, (z,), z)
    return z if z.dim() == 4 else z.reshape(z.shape[0], z.shape[1], -1, z.shape[-1])


def as_image(normalised: Tensor, z: Tensor) -> Tensor:
    """Back to the axes of z."""
    if has_torch_function((normalised, z)):
        return handle_torch_function(as_image, (normalised, z), normalised, z)
    return normalised.reshape(z.shape)
