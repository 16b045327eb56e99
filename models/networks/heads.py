"""Heads that turn the trunk's last features into class scores at the node grid."""

import math
from collections.abc import Sequence

import torch
from torch import nn

ASPP_RATES = (6, 12, 18, 24)


class ASPP(nn.Module):
    """Atrous spatial pyramid of DeepLab v2: the sum of 3×3 convolutions at several rates, straight to K classes.

    No batch norm, no global pooling. (B, C, H', W') -> (B, K, H', W')
    init: "normal" draws N(0, 0.01) as DeepLab does; "authors" draws N(0, √(2 / 9K)), which is what the released
    DifNet code ends up with. Biases start at zero.
    """

    def __init__(
        self, in_channels: int, num_classes: int, rates: Sequence[int] = ASPP_RATES, init: str = "normal"
    ) -> None:
        super().__init__()
        if init not in ("normal", "authors"):
            raise ValueError(f"aspp_init must be 'normal' or 'authors'; got {init!r}.")
        branches = [nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates]
        std = 0.01 if init == "normal" else math.sqrt(2.0 / (9 * num_classes))
        for branch in branches:
            assert branch.bias is not None
            nn.init.normal_(branch.weight, 0.0, std)
            nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores = self.branches[0](features)
        for branch in self.branches[1:]:
            scores = scores + branch(features)
        return scores


class LargeFOV(ASPP):
    """One 3×3 convolution of rate 12: the head of the paper's noASPP row.

    The paper does not say what replaces ASPP; this is DeepLab's own simpler head, and our choice.
    """

    def __init__(self, in_channels: int, num_classes: int, rate: int = 12, init: str = "normal") -> None:
        super().__init__(in_channels, num_classes, (rate,), init)
