"""ψ from colour, position and texture at five scales: what a network would learn, written down by hand.

The cascade knows a node only through inner products, P = softmax_rows(ψ ψᵀ), with no 1/√D. Two facts turn that into the
affinity that image processing calls bilateral:

* ψᵢ·ψⱼ = (|ψᵢ|² + |ψⱼ|² - |ψᵢ - ψⱼ|²) / 2, and softmax does not see what depends on the row i only.
* The |ψⱼ|² that remains is a vote for nodes with a large norm: everyone would look at the extreme colours and at the
  corners of the image, and not at itself. So the features f are centred and get one more channel,
  e = √(R² - |f|²) with R = max |f|, that lifts all nodes onto a sphere of radius R.

Then Pᵢⱼ is proportional to exp(-|ψᵢ - ψⱼ|² / 2), a Gaussian kernel: dividing a feature by its bandwidth h makes h the
standard deviation in that feature. (|ψᵢ - ψⱼ|² = |fᵢ - fⱼ|² + (eᵢ - eⱼ)² is the chord of the sphere: a little longer
than the straight way for far-apart nodes, and the same for near ones, which are those that matter.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab
from skimage.transform import resize
from torch import Tensor

from models.demo.scene import centres


@dataclass(frozen=True)
class Scale:
    """One walk: the blur before sampling, and the bandwidth of each feature. Lengths in percent of the longer side."""

    name: str
    blur: float
    position: float
    colour: float  # CIE Lab, where about 2 is the least difference that people see
    texture: float  # root mean square of the lightness gradient, Lab units per pixel
    mu: float  # how much comes from the other nodes; the rest from the seed
    beta: float  # how much of the state is replaced


# from the colour of close neighbours to the look of a wider surrounding; mu and beta grow from walk to walk, as they do
# in the paper, which learned them (Table 3)
SCALES = (
    Scale("own colour", blur=0.6, position=2.0, colour=7, texture=20, mu=0.60, beta=0.60),
    Scale("near colour", blur=0.7, position=3.5, colour=7, texture=20, mu=0.70, beta=0.70),
    Scale("patch", blur=0.9, position=5.0, colour=7, texture=14, mu=0.80, beta=0.80),
    Scale("texture", blur=1.1, position=7.0, colour=7, texture=12, mu=0.90, beta=0.85),
    Scale("context", blur=1.3, position=9.0, colour=7, texture=10, mu=0.95, beta=0.90),
)


def sampled(channels: np.ndarray, grid: tuple[int, int], blur: float) -> np.ndarray:
    """`channels` (H, W, C) blurred and sampled at the nodes, (rows, columns, C). `blur` as in `Scale`."""
    longer = max(channels.shape[:2])
    sigma = max(blur / 100 * longer, 0.5 * longer / max(grid))  # at least half a cell, or sampling would alias
    smooth = gaussian_filter(channels, (sigma, sigma, 0))
    return resize(smooth, grid, order=1, anti_aliasing=False)


def equal_norms(features: np.ndarray) -> np.ndarray:
    """Centres `features` (N, C) and adds the channel that gives all rows the same norm: (N, C + 1)."""
    centred = features - features.mean(0)
    norm2 = (centred**2).sum(1, keepdims=True)
    return np.concatenate([centred, np.sqrt(norm2.max() - norm2)], 1)


def psi_at(photo: np.ndarray, grid: tuple[int, int], scale: Scale) -> Tensor:
    """ψ of one walk, (1, 8, rows, columns): Lab colour, position, horizontal and vertical texture, the equal norm."""
    lab = rgb2lab(photo)
    dy, dx = np.gradient(lab[..., 0])
    texture = np.sqrt(sampled(np.stack([dx**2, dy**2], -1), grid, max(scale.blur, 1.0)))
    place = np.stack(centres(photo, grid), -1) * (100 / max(photo.shape[:2]))
    features = [sampled(lab, grid, scale.blur) / scale.colour, place / scale.position, texture / scale.texture]
    rows = equal_norms(np.concatenate(features, -1).reshape(grid[0] * grid[1], -1))
    return torch.from_numpy(rows.T.reshape(1, -1, *grid)).float().contiguous()


def psi_of(photo: np.ndarray, grid: tuple[int, int]) -> list[Tensor]:
    """ψ of every walk, in the order of `SCALES`."""
    return [psi_at(photo, grid, scale) for scale in SCALES]
