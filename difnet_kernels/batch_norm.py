"""Batch normalisation of a map that was pooled before it was normalised (Ψ1), with the state of a torch module.

BN is affine in each channel, so it commutes with the maximum up to the sign of its slope: normalising what the pooling
kept is normalising everything and then pooling. The statistics are those of every pixel, not of the pooled ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

Norm = nn.modules.batchnorm._BatchNorm
OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuses(norm: Callable[[Tensor], Tensor] | None) -> TypeGuard[Norm | None]:
    """Whether reading the state of `norm` is as good as calling it: exactly torch's own classes, on which nobody has put
    another forward, a hook, a compiler or a sharded parameter. Everything else is called."""
    if norm is None:
        return True
    if not isinstance(norm, OWN) or type(norm) not in OWN:
        return False
    own = vars(norm)
    changed = "forward" in own or own.get("_compiled_call_impl") is not None or any(own.get(hooks) for hooks in HOOKS)
    return not changed and not any(
        hasattr(x, "device_mesh") for x in norm.parameters(recurse=False)
    )  # as a DTensor has


def check_norm(norm: Norm | None, features: Tensor, weight: Tensor) -> None:
    """norm, which fuses, is None or over the D rows of weight, on the device of features."""
    if norm is None:
        return
    embed = weight.shape[0]
    if norm.num_features != embed:
        raise ValueError(f"norm must have {embed} features, one per row of weight; got {norm.num_features}.")
    for name in ("weight", "bias", "running_mean", "running_var"):
        x = getattr(norm, name)
        if x is not None and x.device != features.device:
            raise ValueError(f"norm.{name} must be on the device of features, {features.device}; got {x.device}.")
    samples = features.shape[0] * math.prod(features.shape[2:])
    if of_the_batch(norm) and samples == 1 and _processes(norm) == 1:
        size = (features.shape[0], embed, *features.shape[2:])
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}.")


def of_the_batch(norm: Norm | None) -> bool:
    """Whether the statistics are those of the batch: in training, and where none are kept."""
    return norm is not None and (norm.training or norm.running_mean is None or norm.running_var is None)


def slope(norm: Norm | None, dtype: torch.dtype) -> Tensor | None:
    """(D,) the sign that decides between maximum and minimum; None stands for all positive."""
    return None if norm is None or norm.weight is None else norm.weight.detach().to(dtype)


def normalise(pooled: Tensor, bias: Tensor | None, norm: Norm, mean: Tensor, variance: Tensor, samples: int) -> Tensor:
    """norm(pooled + bias) for pooled (B, D, *grid) of the accumulation dtype.

    mean, variance: (D,) of this process's `samples` values of z before the bias, read if `of_the_batch(norm)`. In training
    the running buffers are updated in place, as torch does.
    """
    dtype = pooled.dtype
    bias = pooled.new_zeros(pooled.shape[1]) if bias is None else bias.to(dtype)
    # the bias moves the mean and not the map: one pass less
    if of_the_batch(norm):
        count: Tensor | float = float(samples)
        processes = _processes(norm)
        if processes > 1:
            mean, variance, count = _over_processes(norm, mean, variance, samples)
        _track(norm, mean + bias, variance, count, empty=samples == 0 and processes == 1)
        centre = mean + (bias - bias)  # which leaves the bias a gradient: zero
    else:
        centre, variance = norm.running_mean.to(dtype) - bias, norm.running_var.to(dtype)  # type: ignore[union-attr]
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    centred = pooled - _per_channel(centre, pooled)
    if norm.bias is None:
        return centred * _per_channel(scale, pooled)
    return torch.addcmul(_per_channel(norm.bias.to(dtype), pooled), centred, _per_channel(scale, pooled))


def _per_channel(x: Tensor, field: Tensor) -> Tensor:
    return x.view(-1, *(1,) * (field.dim() - 2))


@torch.no_grad()
def _track(norm: Norm, mean: Tensor, variance: Tensor, count: Tensor | float, *, empty: bool) -> None:
    """Counts the batch and moves the running buffers towards it: by `momentum`, or by 1/(batches so far) where that is
    None. A batch without images is counted, as in torch, and moves nothing."""
    if not norm.training or not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    factor: Tensor | float = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    if empty:
        return
    unbiased = variance * (count / (count - 1))
    for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.copy_(torch.lerp(running.to(mean.dtype), now, factor))


def _processes(norm: Norm) -> int:
    """How many processes share the statistics of `norm`; as in torch, in training only."""
    if (
        not isinstance(norm, nn.SyncBatchNorm)
        or not norm.training
        or not dist.is_available()
        or not dist.is_initialized()
    ):
        return 1
    return dist.get_world_size(norm.process_group)


def _over_processes(norm: Norm, mean: Tensor, variance: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of the samples of all processes; differentiable.

    In two steps, the variance about the common mean: a sum of squares would cancel.
    """
    from torch.distributed.nn.functional import all_reduce

    group = norm.process_group or dist.group.WORLD
    count = torch.full_like(mean[:1], samples)
    sums = all_reduce(torch.cat([mean * count, count]), group=group)
    total = sums[-1:]
    common = sums[:-1] / total
    spread = all_reduce((variance + (mean - common) ** 2) * count, group=group)
    return common, spread / total, total
