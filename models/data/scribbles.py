"""Weak labels: a stroke in every region of a mask, and nothing else."""

from __future__ import annotations

import numpy as np

from models.data.classes import IGNORE

SMALLEST = 20  # pixels of a region that gets a stroke


def scribbles(mask: np.ndarray, seed: int, width: float = 1.5) -> np.ndarray:
    """`mask` (H, W) with 255 everywhere but on one straight stroke per connected region of one class.

    A stroke joins two random pixels of its region, prefers those off the border, and stops where the region does.
    width: half the stroke's, in pixels.
    """
    from scipy.ndimage import distance_transform_cdt, label  # half a second, which only this needs

    random, drawn = np.random.default_rng(seed), np.full_like(mask, IGNORE)
    pixels = np.indices(mask.shape)
    for c in np.unique(mask[mask != IGNORE]):
        regions, count = label(mask == c)
        for region in (regions == index for index in range(1, count + 1)):
            if region.sum() < SMALLEST:
                continue
            depth = distance_transform_cdt(np.pad(region, 1))[1:-1, 1:-1]
            inner = np.argwhere(depth > min(2, depth.max() - 1))
            start, end = inner[random.integers(len(inner), size=2)].astype(float)
            drawn[region & (_distance(pixels, start, end) <= width)] = c
    return drawn


def _distance(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From every pixel (2, H, W) to the segment between two points."""
    along = end - start
    apart = pixels - start[:, None, None]
    share = np.clip(np.einsum("i,ihw->hw", along, apart) / max(1e-9, float(along @ along)), 0, 1)
    return np.hypot(*(apart - along[:, None, None] * share))
