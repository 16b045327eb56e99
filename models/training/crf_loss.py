"""The dense CRF as a loss, for labels that cover few pixels (Tang et al. 2018, "On Regularized Losses for Weakly-supervised
CNN Segmentation")."""

from __future__ import annotations

import torch
from torch.nn.functional import adaptive_avg_pool2d

from models.evaluation.crf import Bilateral


def crf_loss(
    scores: torch.Tensor,
    pictures: torch.Tensor,
    *,
    position: float = 100.0,
    colour: float = 15.0,
    stride: int = 8,
) -> torch.Tensor:
    """What it costs that pixels which look alike disagree: Σₖ qₖᵀ K̃ (1 − qₖ) / N, averaged over the images.

    scores: (B, K, H, W), q = softmax over K; pictures: (B, 3, H, W) in grey levels 0…255, of any mean, in any order.
    Both are averaged over stride × stride pixels first: N = ⌈H/stride⌉·⌈W/stride⌉ nodes.
    K̃ is the appearance kernel of `models.evaluation.crf`, exp(−|posᵢ − posⱼ|²/2θ_α² − |rgbᵢ − rgbⱼ|²/2θ_β²) with θ_α = position
    in pixels and θ_β = colour in grey levels, normalised by √(nᵢnⱼ), without its diagonal; it is a constant.
    Returns a scalar in [0, 1], differentiable in the scores. Memory O(B·N·K).
    """
    if scores.dim() != 4 or pictures.shape != (scores.shape[0], 3, *scores.shape[2:]):
        raise ValueError(
            f"scores must be (B, K, H, W) and pictures (B, 3, H, W) of one size; got {tuple(scores.shape)} and "
            f"{tuple(pictures.shape)}."
        )
    height, width = (-(-side // stride) for side in scores.shape[2:])
    grid = (height, width)
    q = adaptive_avg_pool2d(scores.float().softmax(1), grid).flatten(2)  # (B, K, N)
    bilateral = Bilateral(_features(pictures.float(), grid, position / stride, colour))
    ones = torch.ones_like(q[:, :1])
    return (q * (bilateral(ones) - bilateral(q))).sum() / (len(q) * q.shape[2])


@torch.no_grad()
def _features(pictures: torch.Tensor, grid: tuple[int, int], position: float, colour: float) -> torch.Tensor:
    """(B, 5, N), scaled so that the kernel is exp(−|fᵢ − fⱼ|²/2), and centred: distances are differences of squared norms."""
    colours = adaptive_avg_pool2d(pictures, grid).flatten(2) / colour
    axes = [torch.arange(side, device=pictures.device, dtype=colours.dtype) / position for side in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    features = torch.cat([places.expand(len(colours), -1, -1), colours], 1)
    return features - features.mean(2, keepdim=True)
