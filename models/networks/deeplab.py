"""Sim-Deeplab, the paper's baseline, and the seed branch of DifNet: the same trunk and head."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.networks.resnet import ResNetTrunk


class Details(NamedTuple):
    """What a network computed on its way to the logits; H', W' is the node grid, T the number of walks."""

    logits: torch.Tensor  # (B, K, H, W), at input size
    scores: torch.Tensor  # (B, K, H', W')     x, the score map
    importance: torch.Tensor | None = None  # (B, 1, H', W')     M, in [0, 1]
    seed: torch.Tensor | None = None  # (B, K, H', W')     s = M x
    steps: list[torch.Tensor] | None = None  # T × (B, K, H', W')  y¹ … yᵀ
    psi: list[torch.Tensor] | None = None  # T × (B, D, H', W')  ψ₁ … ψ_T, for `transition_rows`


class SeedBranch(nn.Module):
    """Class scores at the node grid: dilated trunk, then head. (B, 3, H, W) -> (B, K, H', W')"""

    def __init__(self, trunk: ResNetTrunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(image)[-1])


class Network(nn.Module):
    """What all networks have: a seed branch, and how `build_model` made them, so that a file can say how to build them."""

    seed_branch: SeedBranch
    model_name: str
    num_classes: int
    options: dict[str, Any]

    def trunks(self) -> list[ResNetTrunk]:
        """The ResNets, which can start from weights of an image classifier."""
        return [self.seed_branch.trunk]


class SimDeeplab(Network):
    """DeepLab v2 with atrous convolution and ASPP only. Logits are upsampled bilinearly to the image."""

    def __init__(self, seed_branch: SeedBranch) -> None:
        super().__init__()
        self.seed_branch = seed_branch

    def forward(self, image: torch.Tensor, return_details: bool = False) -> torch.Tensor | Details:
        scores = self.seed_branch(image)
        logits = upsample(scores, image)
        return Details(logits, scores) if return_details else logits


def upsample(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Scores at the node grid -> logits at the size of `image`, bilinear, corners not aligned."""
    return F.interpolate(scores, size=image.shape[-2:], mode="bilinear", align_corners=False)
