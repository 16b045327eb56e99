"""A head of a segmentation network with its scores diffused: the walk in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d, interpolate

from difnet_kernels.checks import check_count, check_field
from difnet_kernels.modules.features import Features
from difnet_kernels.modules.walk import CascadedRandomWalk

POOLS: dict[int, Callable[..., Tensor]] = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class DiffusedHead(nn.Module):
    """`head`, whose scores are diffused along the features that it was called with (Eqs. 3-5 in a residual form).

    head: a module; head(features, ...) returns scores (B, K, *S). It may read its features as it likes.
    in_channels: the channels of the features, one number per map; a walk for each, in their order.
    stride: None diffuses every score. Else the scores are averaged over stride x stride blocks, diffused, and the difference
        that the walk made is upsampled linearly and added: for heads that score every pixel.
    options: of `CascadedRandomWalk`, with residual=True and scale="sqrt" as defaults: at step 0 the head's own scores, bit
        for bit. `parameter_groups` has the rates to train it with.

    forward(features, ...) -> scores of the head's shape. features: a map, a sequence or a dict of maps, as the head takes them.
    Gradients as in `CascadedRandomWalk`. Raises TypeError for a head that returns no tensor, ValueError for a stride that
    does not divide the scores.

    >>> head = DiffusedHead(nn.Conv2d(16, 5, 1), [16])  # net.classifier = DiffusedHead(net.classifier, [2048]), for example
    >>> import torch
    >>> head(torch.randn(1, 16, 12, 12)).shape
    torch.Size([1, 5, 12, 12])
    """

    def __init__(
        self,
        head: nn.Module,
        in_channels: Sequence[int],
        *,
        stride: int | None = None,
        residual: bool = True,
        scale: float | str = "sqrt",
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(head, nn.Module):
            raise TypeError(f"head must be a module that turns features into scores; got {type(head).__name__}.")
        if stride is not None:
            check_count("stride", stride)
        self.head, self.stride = head, stride
        self.walk = CascadedRandomWalk(in_channels, residual=residual, scale=scale, **options)

    def forward(self, features: Features, *args: Any, **kwargs: Any) -> Tensor:
        scores = self.head(features, *args, **kwargs)
        _check_scores(scores)
        if self.stride is None or self.stride == 1:
            return self.walk(scores, features)
        axes = scores.dim() - 2
        _check_stride(self.stride, scores)
        seed = POOLS[axes](scores, self.stride)
        difference = self.walk(seed, features) - seed
        return scores + interpolate(difference, scores.shape[2:], mode=MODES[axes], align_corners=False)

    def extra_repr(self) -> str:
        return "" if self.stride is None else f"stride={self.stride}"


def _check_scores(scores: Any) -> None:
    if isinstance(scores, Mapping):
        raise TypeError(
            f"head must return scores (B, K, *S); got a dict with the keys {', '.join(map(repr, scores))}. Wrap the part "
            "that makes one of them, as net.classifier of torchvision's networks, which return a dict."
        )
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"head must return scores (B, K, *S); got {type(scores).__name__}. Wrap the part that makes them."
        )
    check_field("the scores of head", scores)


def _check_stride(stride: int, scores: Tensor) -> None:
    grid = tuple(scores.shape[2:])
    if len(grid) not in POOLS:
        raise ValueError(f"stride is for scores with one to three spatial axes; got {tuple(scores.shape)}.")
    if any(size % stride for size in grid):
        raise ValueError(
            f"stride must divide the size of the scores; got stride={stride} for {grid}. Pad the image to a multiple of "
            f"{stride}, or take a stride that divides {grid}."
        )
