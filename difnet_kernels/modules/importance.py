"""The importance map M (§4): which scores are fit to be seeds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from difnet_kernels.checks import check_count


class ImportanceMap(nn.Module):
    """M = H(x) (§4): one weight in [0, 1] per node from the scores around it; the seed is M x (W5).

    BN-ReLU-conv 5x5, three times, K -> 8 -> 4 -> 1, no convolution bias, sigmoid last.
    forward(scores (B, K, H, W)) -> (B, 1, H, W), differentiable as the layers it is made of.

    >>> scores = torch.randn(1, 21, 41, 41)
    >>> seed = ImportanceMap(21)(scores) * scores
    >>> seed.shape
    torch.Size([1, 21, 41, 41])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        widths = (num_classes, 8, 4, 1)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths[1:], widths, strict=False):
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, narrow, kernel_size=5, padding=2, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(scores))
