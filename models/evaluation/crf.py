"""Mean field of the fully connected CRF (Krähenbühl & Koltun 2011), DeepLab's post-processing in Table 1 of the paper.

    E(l) = Σᵢ −log pᵢ(lᵢ) + Σ_{i<j} [lᵢ ≠ lⱼ] (w_b k_b(i, j) + w_s k_s(i, j))
    k_b = exp(−|posᵢ − posⱼ|² / 2θ_α² − |rgbᵢ − rgbⱼ|² / 2θ_β²)      appearance (bilateral)
    k_s = exp(−|posᵢ − posⱼ|² / 2θ_γ²)                               smoothness (Gaussian)

    Qᵢ(l) ∝ pᵢ(l) exp( Σ_m w_m Σ_{j≠i} k̃_m(i, j) Qⱼ(l) ),   k̃(i, j) = k(i, j) / √(nᵢ nⱼ),   nᵢ = Σⱼ k(i, j)

Under Potts' model the penalty of disagreeing is, up to a constant, the reward of agreeing, which is what is added here.
The symmetric normalisation is that of the authors' program and makes the weights independent of the image's size.

Exact: no permutohedral lattice, no truncated filters. The smoothness kernel separates into rows and columns; the
appearance kernel is summed over tiles of rows: O(N²) work, O(N) memory, N = H·W. Ten iterations at 97 × 97 take about
three seconds on one core; a VOC image has 400 times as many pairs and wants a GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class DenseCRF:
    """The refinement as a callable. Defaults: DeepLab's published values for VOC, 10 iterations."""

    iterations: int = 10
    bilateral_weight: float = 4.0
    bilateral_position: float = 67.0  # θ_α, pixels
    bilateral_colour: float = 3.0  # θ_β, grey levels 0…255
    smooth_weight: float = 3.0
    smooth_position: float = 3.0  # θ_γ, pixels
    tile: int | None = None  # entries of one tile of the kernel; None fits a CPU's cache, or fills a GPU

    def __call__(self, probabilities: torch.Tensor, picture: np.ndarray) -> torch.Tensor:
        """probabilities (K, H, W), summing to one over K; picture uint8 (H, W, 3). Returns Q like `probabilities`."""
        if probabilities.dim() != 3 or picture.shape != (*probabilities.shape[1:], 3):
            raise ValueError(
                f"probabilities must be (K, H, W) and picture (H, W, 3) of one size; got {tuple(probabilities.shape)} "
                f"and {tuple(picture.shape)}."
            )
        dtype = torch.promote_types(probabilities.dtype, torch.float32)
        unary = probabilities.to(dtype).clamp_min(1e-10).log()  # (K, H, W); the floor keeps a sure error correctable
        bilateral = _Bilateral(self._features(picture, unary), self.tile)
        smooth = _Smooth(unary, self.smooth_position)
        q = unary.softmax(0)
        for _ in range(self.iterations):
            message = self.bilateral_weight * bilateral(q) + self.smooth_weight * smooth(q)
            q = (unary + message).softmax(0)
        return q.to(probabilities.dtype)

    def seconds(self, picture: np.ndarray, classes: int, device: torch.device) -> float:
        """About how long a picture will take, from a few tiles of its appearance kernel, which is nearly all of the work."""
        values = torch.full((picture.shape[0] * picture.shape[1], classes), 1 / classes, device=device)
        bilateral = _Bilateral(self._features(picture, values), self.tile, scaled=False)
        bilateral.some(values, 1)  # warms up
        taken, tiles = 0.0, 0
        while taken < 0.2 and tiles < 64:
            started = time.perf_counter()
            bilateral.some(values, 4)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken, tiles = taken + time.perf_counter() - started, tiles + 4
        return taken / tiles * len(values) / bilateral.rows * (self.iterations + 1)

    def _features(self, picture: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """(N, 5): position and colour, scaled so that k_b = exp(−|fᵢ − fⱼ|² / 2)."""
        height, width = picture.shape[:2]
        y, x = np.mgrid[:height, :width]
        position = np.stack([y, x], -1) / self.bilateral_position
        features = np.concatenate([position, picture / self.bilateral_colour], -1).reshape(-1, 5)
        # centred: the squared distances below are differences of squared norms
        return torch.as_tensor(features - features.mean(0)).to(like)


class _Bilateral:
    """Q ↦ Σ_{j≠i} k̃_b(i, j) Qⱼ by tiles of rows."""

    def __init__(self, features: torch.Tensor, tile: int | None, scaled: bool = True):
        half = 0.5 * features.square().sum(1, keepdim=True)
        one = torch.ones_like(half)
        # two more columns make the product of rows and columns the whole exponent: fᵢ·fⱼ − |fᵢ|²/2 − |fⱼ|²/2
        self.left = torch.cat([features, -half, one], 1)  # (N, 7)
        self.right = torch.cat([features, one, -half], 1).T.contiguous()
        tile = tile or (2**26 if features.is_cuda else 2**18)
        self.rows = max(1, tile // len(features))
        if scaled:
            self.scale = self._sum(one).rsqrt()  # (N, 1), nᵢ^(−½); nᵢ ≥ 1, as it includes i itself

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        scaled = q.flatten(1).T * self.scale  # (N, K)
        message = self.scale * (self._sum(scaled) - scaled)  # k(i, i) = 1 is what j ≠ i leaves out
        return message.T.reshape(q.shape)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """K_b @ values without storing K_b."""
        return self.some(values, -(-len(values) // self.rows))

    def some(self, values: torch.Tensor, tiles: int) -> torch.Tensor:
        """The rows of K_b @ values that the first tiles hold."""
        out = torch.empty_like(values)
        for start in range(0, min(len(values), tiles * self.rows), self.rows):
            rows = slice(start, start + self.rows)
            # rounding can lift a zero distance above 0; e⁻⁸⁰ is nothing beside nᵢ ≥ 1, and smaller numbers are
            # denormal, which made the whole sum five times slower
            kernel = (self.left[rows] @ self.right).clamp_(-80, 0).exp_()
            torch.mm(kernel, values, out=out[rows])
        return out


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
