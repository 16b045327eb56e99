"""The operators in plain, static torch, for programs that leave it: dense and inference only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from difnet_kernels.backends import reference

Decomposition = Callable[..., Any]


def onnx_decompositions() -> dict[Any, Decomposition]:
    """A table for `torch.export.ExportedProgram.run_decompositions` that leaves no operator of this library in a program.

    What remains are matrix products, softmax, gathers and maxima, which ONNX has. The walks are dense: memory is N² numbers for
    one image. Sizes are those of the exported program, its batch included. For inference: a program of a module in evaluation
    mode, without dynamic shapes. `diffuse` iterates to a tolerance and stays as it is.

    >>> import torch
    >>> walk = CascadedRandomWalk((8,)).eval()
    >>> program = torch.export.export(walk, (torch.randn(1, 5, 6, 6), torch.randn(1, 8, 12, 12)))
    >>> plain = program.run_decompositions(onnx_decompositions())  # and then torch.onnx.export(plain, dynamo=True)
    >>> any("difnet_kernels" in str(node.target) for node in plain.graph.nodes)
    False
    """
    ops = torch.ops.difnet_kernels
    return {
        ops.cascade_forward.default: _cascade,
        ops.projection_forward.default: _projection,
        ops.projected_cascade.default: _projected_cascade,
    }


def _cascade(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    backend: str,
    all_steps: bool,
    gradients: bool | None = None,
    bias: Sequence[Tensor] | None = None,
    return_lse: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """T walks (W1-W5) in the accumulation dtype, each state rounded to its own; nothing is kept for a backward."""
    first, grid = seed if state is None else state, seed.shape[2:]
    source, y = (x.flatten(2).mT.to(mu.dtype) for x in (seed, first))  # [B, N, K]
    states, lse = [], []
    for t, p in enumerate(psi):
        column = bias[t].flatten(1) if bias and bias[t].dim() > 1 else None
        y, walked, row_lse = reference.walk(y, source, p.flatten(2).mT.to(mu.dtype), mu[t], beta[t], column)
        states.append(y.to(first.dtype).mT.unflatten(2, grid).contiguous(memory_format=_format_of(first)))
        lse.append(row_lse.unflatten(1, grid))
        y = y.to(first.dtype).to(mu.dtype)
    kept = len(psi) if gradients else 1
    return (
        states if all_steps else states[-1:],
        walked.expand(kept, *walked.shape).clone(),
        row_lse.expand(kept, *row_lse.shape).clone(),
        lse if return_lse else [],
    )


def _projection(
    features: Tensor, weight: Tensor, slope: Tensor | None, grid: Sequence[int], statistics: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z = W f at every pixel, its extremes in every window (Ψ1), and its statistics; no positions, which a backward reads."""
    z = torch.matmul(features.flatten(2).mT.to(weight.dtype), weight.mT)  # [B, pixels, D]
    mean = z.mean((0, 1)) if statistics else weight.new_empty((0,))
    variance = z.var((0, 1), unbiased=False) if statistics else weight.new_empty((0,))
    sign = 1.0 if slope is None else torch.where(slope < 0, -1.0, 1.0)  # a negative slope wants the least
    peak = (z * sign).unflatten(1, features.shape[2:])  # [B, Z, H, W, D]
    for axis, size in enumerate(grid, start=1):
        peak = _maxima(peak, axis, size)
    peak = (peak * sign).movedim(-1, 1)
    return peak, torch.zeros_like(peak, dtype=torch.int32), mean, variance


def _projected_cascade(
    seed: Tensor,
    features: Sequence[Tensor],
    weight: Sequence[Tensor],
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
    """Ψ1 of every walk, then the cascade of all."""
    grid = seed.shape[2:]
    psi: list[Tensor] = []
    for t, x in enumerate(features):
        b, m, v, gamma, beta_of_norm = (
            None if each[t] is None else each[t].to(mu.dtype).view(-1, 1, 1, 1)  # type: ignore[union-attr]
            for each in (offset, mean, variance, slope, shift)
        )
        sign = None if gamma is None else gamma.flatten()
        p, *_ = _projection(x, weight[t].to(mu.dtype), sign, (*(1,) * (3 - len(grid)), *grid), False, backend)
        p = p if b is None else p + b
        p = p if m is None or v is None else (p - m) * (v + eps[t]).rsqrt()
        p = p if gamma is None else p * gamma
        p = (p if beta_of_norm is None else p + beta_of_norm).flatten(2).unflatten(2, grid) * root
        p = p.to(torch.promote_types(x.dtype, weight[t].dtype))
        psi.append(p if bias is None else torch.where(bias.unsqueeze(1) == -torch.inf, 0, p))
    biases = None if bias is None else [bias] * len(psi)
    return _cascade(None, seed, psi, mu, beta, precision, backend, all_steps, False, biases)[0]


def _maxima(x: Tensor, axis: int, size: int) -> Tensor:
    """The adaptive maximum along one axis: the windows gathered side by side, shorter ones with their last element again."""
    length = x.shape[axis]
    if length == size:
        return x
    widest = max(-(-(i + 1) * length // size) - i * length // size for i in range(size))
    # computed in the program: a constant made here would not be part of it
    node = torch.arange(size, device=x.device)
    last = ((node + 1) * length + size - 1) // size - 1
    index = torch.minimum(
        (node * length // size)[:, None] + torch.arange(widest, device=x.device), last[:, None]
    ).flatten()
    return x.index_select(axis, index).unflatten(axis, (size, widest)).amax(axis + 1)


def _format_of(x: Tensor) -> torch.memory_format:
    """Layout that the fused operator would return, so that the views of a program still fit."""
    for format, axes in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == axes and not x.is_contiguous() and x.is_contiguous(memory_format=format):
            return format
    return torch.contiguous_format
