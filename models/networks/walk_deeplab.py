"""Sim-Deeplab with a walk along its own features: diffusion without a second branch."""

import torch

from models.networks.deeplab import Details, Network, SeedBranch, upsample
from models.networks.diffusion import Cascade
from models.networks.resnet import ResNetTrunk


class WalkDeeplab(Network):
    """y = s + γ (walk(s) - s), for scores s of a trunk and its head, along the image and the four stages of that trunk.

    γ starts at 0, so that the network begins as Sim-Deeplab and learns how much to diffuse.
    """

    def __init__(self, seed_branch: SeedBranch, walk: Cascade) -> None:
        super().__init__()
        self.seed_branch = seed_branch
        self.walk = walk

    def forward(self, image: torch.Tensor, return_details: bool = False) -> torch.Tensor | Details:
        """image (B, 3, H, W), normalised -> logits (B, K, H, W), or all intermediate maps as `Details`."""
        levels = (image, *self.seed_branch.trunk(image))
        scores = self.seed_branch.head(levels[-1])
        psi = self.walk.embeddings(levels, scores.shape[2:])
        if not return_details:
            return upsample(self.walk.diffuse(scores, psi), image)
        steps = list(self.walk.steps(scores, psi))  # y¹ … yᵀ
        return Details(upsample(steps[-1], image), scores, None, scores, steps, psi)

    def similarity(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The embeddings ψₜ (B, D, H', W') of every walk: softmax of each row of ψₜ ψₜᵀ is Pₜ."""
        return self.walk.embeddings((image, *self.seed_branch.trunk(image)), ResNetTrunk.grid(image.shape[2:]))
