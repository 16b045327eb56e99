"""What a network hands over as features, read as one map (B, C, *S) for every walk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from difnet_kernels.checks import check_field

Features = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def read_features(
    features: Features,
    channels: Sequence[int | None],
    grid: Sequence[int],
    channels_last: bool,
    batch: int | None = None,
) -> list[Tensor]:
    """A tensor (one walk), a sequence or a dict in its order, as maps with the channels second.

    channels: what each map must have, None where nobody can tell. With channels_last the maps are (B, *S, C), or tokens
    (B, N, C) that lie on `grid` in scan order. batch: of the seed, where there is one.
    """
    maps = _as_list(features, len(channels))
    if len(maps) != len(channels):
        raise ValueError(f"features must be {len(channels)} maps, one per walk; got {len(maps)}.")
    read = [_read(f"features[{t}]", x, channels[t], grid, channels_last) for t, x in enumerate(maps)]
    for t, x in enumerate(read):
        if batch is not None and not isinstance(x, torch.fx.Proxy) and x.shape[0] != batch:
            raise ValueError(
                f"features[{t}] must have the batch of the seed, {batch}; got {tuple(maps[t].shape)}. Pass seed and features "
                "of the same images."
            )
    return read


def _as_list(features: Features, walks: int) -> list[Tensor]:
    if isinstance(features, (Tensor, torch.fx.Proxy)) and walks == 1:
        return [features]
    if isinstance(features, Tensor):
        raise TypeError(
            f"features must be {walks} maps, one per walk, as a sequence or a dict; got one tensor {tuple(features.shape)}."
        )
    if isinstance(features, Mapping):
        return list(features.values())
    if isinstance(features, str) or not isinstance(features, Sequence):
        raise TypeError(
            f"features must be a sequence or a dict of {walks} maps, one per walk, or a tensor for a single walk; got "
            f"{type(features).__name__}."
        )
    return list(features)


def _read(name: str, x: Tensor, channels: int | None, grid: Sequence[int], channels_last: bool) -> Tensor:
    """Under the name that the caller knows; the rest is for psi_projection."""
    if isinstance(x, torch.fx.Proxy):
        return x.movedim(-1, 1) if channels_last else x
    check_field(name, x)
    tokens = channels_last and x.dim() == 3 and len(grid) > 1
    if x.dim() != len(grid) + 2 and not tokens:
        remedy = (
            "Scores of one class without an axis of classes, (B, *S), get it with unsqueeze(1)."
            if x.dim() > len(grid) + 2
            else "Tokens (B, N, C) on the seed's grid are taken with channels_last=True."
        )
        raise ValueError(f"{name} must have {len(grid)} spatial axes, as the seed has; got {tuple(x.shape)}. {remedy}")
    axis = -1 if channels_last else 1
    if channels is not None and x.shape[axis] != channels:
        other = 1 if channels_last else -1
        remedy = ""
        if x.shape[other] == channels:
            remedy = f" The channels seem to be axis {other}: that is channels_last={not channels_last}."
        raise ValueError(
            f"{name} must have {channels} channels on its {'last' if channels_last else 'second'} axis, as in_channels says; "
            f"got {tuple(x.shape)}.{remedy}"
        )
    if not channels_last:
        return x
    if tokens:
        x = _on_grid(name, x, grid)
    return x.movedim(-1, 1)


def _on_grid(name: str, tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, N, C) as (B, *grid, C)."""
    if tokens.shape[1] != math.prod(grid):
        more = tokens.shape[1] - math.prod(grid)
        remedy = (
            f"Drop the {more} that are no pixels, as {name}[:, {more}:] does." if more > 0 else "Pass a map instead."
        )
        raise ValueError(
            f"{name} must have one token for each of the {math.prod(grid)} nodes of the seed's grid {tuple(grid)}; got "
            f"{tuple(tokens.shape)}. {remedy}"
        )
    return tokens.unflatten(1, tuple(grid))
