"""Mean field of the fully connected CRF (Krähenbühl & Koltun 2011), DeepLab's post-processing in Table 1 of the paper.

    E(l) = Σᵢ −log pᵢ(lᵢ) + Σ_{i<j} [lᵢ ≠ lⱼ] (w_b k_b(i, j) + w_s k_s(i, j))
    k_b = exp(−|posᵢ − posⱼ|² / 2θ_α² − |rgbᵢ − rgbⱼ|² / 2θ_β²)      appearance (bilateral)
    k_s = exp(−|posᵢ − posⱼ|² / 2θ_γ²)                               smoothness (Gaussian)

    Qᵢ(l) ∝ pᵢ(l) exp( Σ_m w_m Σ_{j≠i} k̃_m(i, j) Qⱼ(l) ),   k̃(i, j) = k(i, j) / √(nᵢ nⱼ),   nᵢ = Σⱼ k(i, j)

Under Potts' model the penalty of disagreeing is, up to a constant, the reward of agreeing, which is what is added here.
The symmetric normalisation is that of the authors' program and makes the weights independent of the image's size.

Exact: no permutohedral lattice, no truncated filters. The smoothness kernel separates into rows and columns. The
appearance kernel is a walk: with features f and the bias −|f|²/2, a row of P is k_b(i, ·)/nᵢ and its log-normaliser
gives nᵢ. O(N²) work, O(N) memory, N = H·W.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from difnet_kernels import random_walk

SAMPLE = 8192  # pixels of which the time of a picture is told


@dataclass(frozen=True)
class DenseCRF:
    """The refinement as a callable. Defaults: DeepLab's published values for VOC, 10 iterations."""

    iterations: int = 10
    bilateral_weight: float = 4.0
    bilateral_position: float = 67.0  # θ_α, pixels
    bilateral_colour: float = 3.0  # θ_β, grey levels 0…255
    smooth_weight: float = 3.0
    smooth_position: float = 3.0  # θ_γ, pixels
    progress: bool = False  # a line that counts the iterations

    def __call__(self, probabilities: torch.Tensor, picture: np.ndarray) -> torch.Tensor:
        """probabilities (K, H, W), summing to one over K; picture uint8 (H, W, 3). Returns Q like `probabilities`."""
        if probabilities.dim() != 3 or picture.shape != (*probabilities.shape[1:], 3):
            raise ValueError(
                f"probabilities must be (K, H, W) and picture (H, W, 3) of one size; got {tuple(probabilities.shape)} "
                f"and {tuple(picture.shape)}."
            )
        dtype = torch.promote_types(probabilities.dtype, torch.float32)
        unary = probabilities.to(dtype).clamp_min(1e-10).log()  # (K, H, W); the floor keeps a sure error correctable
        bilateral = Bilateral(self._features(picture, unary))
        smooth = _Smooth(unary, self.smooth_position)
        q = unary.softmax(0)
        for _ in tqdm(range(self.iterations), desc="CRF", leave=False, disable=not self.progress):
            appearance = bilateral(q.flatten(1).unsqueeze(0)).view_as(q)
            q = (unary + self.bilateral_weight * appearance + self.smooth_weight * smooth(q)).softmax(0)
        return q.to(probabilities.dtype)

    def seconds(self, picture: np.ndarray, classes: int, device: torch.device) -> float:
        """About how long a picture will take, from a walk over some of its pixels: a walk is nearly all of an iteration."""
        features = self._features(picture, torch.empty(0, device=device))
        pixels = features.shape[2]
        some = features[:, :, torch.linspace(0, pixels - 1, min(SAMPLE, pixels), device=device).long()]
        bilateral = Bilateral(some)
        values = torch.full((1, classes, some.shape[2]), 1 / classes, device=device)
        float(bilateral(values).sum())  # warms up
        started = time.perf_counter()
        float(bilateral(values).sum())  # waits for the device
        return (time.perf_counter() - started) * (pixels / some.shape[2]) ** 2 * (self.iterations + 1)

    def _features(self, picture: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """(1, 5, N): position and colour, scaled so that k_b = exp(−|fᵢ − fⱼ|² / 2)."""
        height, width = picture.shape[:2]
        y, x = np.mgrid[:height, :width]
        position = np.stack([y, x], -1) / self.bilateral_position
        features = np.concatenate([position, picture / self.bilateral_colour], -1).reshape(-1, 5)
        # centred: the squared distances are differences of squared norms
        return torch.as_tensor(features - features.mean(0)).to(like).T.unsqueeze(0)


class Bilateral:
    """q (B, K, N) ↦ Σ_{j≠i} k̃(i, j) qⱼ for features (B, D, N) with k = exp(−|fᵢ − fⱼ|² / 2); differentiable in q.

    The walk sees the nodes in an order in which neighbours are alike: blocks of pixels of other colours have no weight for
    one another, and a CPU passes over them."""

    def __init__(self, features: torch.Tensor):
        self.order = alike_side_by_side(features).unsqueeze(1)  # (B, 1, N)
        self.back = self.order.argsort(-1)
        features = features.gather(2, self.order.expand_as(features))
        self.features, self.bias = features, -0.5 * features.square().sum(1)
        ones = torch.ones_like(features[:, :1])
        _, lse = random_walk(ones, features, ones, 1.0, 1.0, bias=self.bias, return_lse=True)
        # nᵢ = exp(lseᵢ − |fᵢ|²/2), at least 1, as it includes i itself
        self.root = (0.5 * (lse + self.bias)).clamp_min(0).exp().unsqueeze(1)  # (B, 1, N)

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        scaled = q.gather(2, self.order.expand_as(q)) / self.root
        walked = random_walk(scaled, self.features, scaled, 1.0, 1.0, bias=self.bias)
        summed = self.root * walked - scaled / self.root  # k(i, i) = 1 is what j ≠ i leaves out
        return summed.gather(2, self.back.expand_as(q))


def alike_side_by_side(features: torch.Tensor) -> torch.Tensor:
    """An order (B, N) of the nodes of features (B, D, N) in which those side by side are close: that of Morton, by the bits
    of all channels in turn, the highest first."""
    depth = 63 // features.shape[1]
    lowest = features.amin(2, keepdim=True)
    widths = features.amax(2, keepdim=True) - lowest
    width = widths.amax(1, keepdim=True).clamp_min(1e-6)  # one scale for all channels
    cells = ((features - lowest) / width * (2**depth - 1)).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in reversed(range(depth)):
        for channel in cells.unbind(1):
            code = 2 * code + (channel >> bit & 1)
    return code.argsort(dim=-1, stable=True)


class _Smooth:
    """Q ↦ Σ_{j≠i} k̃_s(i, j) Qⱼ: the Gaussian of a grid is a product of one matrix per axis."""

    def __init__(self, like: torch.Tensor, deviation: float):
        self.kernels = []
        for side in like.shape[1:]:
            position = torch.arange(side, device=like.device, dtype=like.dtype) / deviation
            self.kernels.append((-0.5 * (position[:, None] - position[None, :]).square()).exp())
        self.scale = self._sum(torch.ones_like(like[:1])).rsqrt()

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        scaled = q * self.scale
        return self.scale * (self._sum(scaled) - scaled)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        return self.kernels[0] @ values @ self.kernels[1]
