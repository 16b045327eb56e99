"""What other networks do to see the whole image: DeepLab v3's image-level branch, and a non-local block.

Both wrap a head that maps features (B, C, H', W') to scores (B, K, H', W'), and are here to compare walks with.
"""

import torch
from torch import nn


class ImagePooling(nn.Module):
    """The image-level branch of DeepLab v3 beside a head: the mean of the features, two 1x1 convolutions, added everywhere.

    Its batch norm sees one value per image and channel, so that training needs two images at a time.
    """

    def __init__(self, head: nn.Module, in_channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features) + self.branch(features)


class NonLocal(nn.Module):
    """A non-local block (Wang et al. 2018, embedded Gaussian, half the channels) before a head.

    x + BN(W · softmax(θ(x)ᵀ φ(x)) g(x)), where the γ of BN starts at 0: the identity at first.
    """

    def __init__(self, head: nn.Module, in_channels: int) -> None:
        super().__init__()
        inner = in_channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(in_channels, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(in_channels)
        nn.init.zeros_(norm.weight)
        self.out = nn.Sequential(nn.Conv2d(inner, in_channels, 1), norm)
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        query, key, value = (layer(features).flatten(2) for layer in (self.theta, self.phi, self.g))  # [B, C/2, N]
        looks = torch.softmax(query.mT @ key, -1)  # [B, N, N]
        seen = (value @ looks.mT).unflatten(2, features.shape[2:])
        return self.head(features + self.out(seen))
