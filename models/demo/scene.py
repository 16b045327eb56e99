"""The photograph and what a person scribbled on it: a few strokes per region, in pixels of the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import skimage.data
import torch
from torch import Tensor

Stroke = Sequence[tuple[int, int]]  # corners (x, y) of a polyline


@dataclass(frozen=True)
class Region:
    name: str
    colour: str
    strokes: Sequence[Stroke]


PHOTO = "skimage.data.astronaut"  # NASA, public domain; part of the scikit-image wheel, so nothing is downloaded
REGIONS = (
    Region(
        "background",
        "#a3acb8",
        [
            [(128, 12), (122, 160)],
            [(335, 30), (322, 205)],
            [(485, 30), (490, 235)],
            [(385, 305), (400, 330), (505, 290)],
            [(92, 235), (118, 175)],
            [(470, 267), (508, 267)],
            [(348, 245), (358, 300)],
        ],
    ),
    Region(
        "flag",
        "#3d5a9e",
        [
            [(12, 15), (30, 75), (15, 125)],
            [(62, 140), (82, 205)],
            [(40, 165), (68, 255)],
            [(6, 175), (34, 222)],
            [(12, 240), (40, 310)],
            [(12, 330), (14, 395)],
            [(10, 430), (30, 495)],
        ],
    ),
    Region("hair", "#c99a2e", [[(172, 110), (185, 60), (230, 35), (275, 65), (285, 105)]]),
    Region("face", "#f2a7a0", [[(212, 88), (224, 165)], [(255, 105), (235, 160), (218, 180)]]),
    Region(
        "suit",
        "#ee6c2f",
        [
            [(100, 270), (60, 400), (110, 490)],
            [(140, 250), (210, 320), (330, 280)],
            [(130, 180), (150, 240), (250, 285), (300, 235), (265, 190)],
            [(215, 200), (225, 240)],
            [(150, 390), (185, 360), (200, 395)],
            [(292, 358), (322, 366)],
            [(258, 330), (262, 500)],
            [(130, 500), (168, 500)],
        ],
    ),
    Region(
        "helmet",
        "#3b3a4a",
        [
            [(320, 380), (300, 460), (400, 480), (465, 420)],
            [(400, 352), (460, 380), (485, 450)],
            [(500, 475), (505, 500)],
            [(345, 440), (365, 440)],
            [(372, 372), (398, 364)],
            [(385, 390), (430, 395)],
        ],
    ),
    Region(
        "shuttle",
        "#2a9d8f",
        [
            [(385, 60), (390, 200), (370, 225)],
            [(415, 15), (420, 70), (428, 180)],
            [(443, 48), (445, 240)],
            [(420, 175), (418, 255)],
        ],
    ),
)
# nodes whose row of P the figure shows, (x, y): a stripe of the flag, the sleeve, the backdrop
WATCHED = ((72, 165), (95, 330), (320, 110))


def photograph() -> np.ndarray:
    """The photograph, (H, W, 3) in [0, 1]."""
    return skimage.data.astronaut() / 255.0


def grid_of(photo: np.ndarray, longer_side: int) -> tuple[int, int]:
    """The grid (rows, columns) of about square cells with `longer_side` nodes along the longer side of `photo`."""
    height, width = photo.shape[:2]
    if not 16 <= longer_side <= max(height, width):
        raise ValueError(
            f"the grid must have 16 to {max(height, width)} nodes along the longer side; got {longer_side}. "
            "Fewer do not resolve the scribbles, more have no pixel of their own."
        )
    scale = longer_side / max(height, width)
    return round(height * scale), round(width * scale)


def centres(photo: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixel coordinates x and y of the nodes, each of shape `grid`."""
    (height, width), (rows, columns) = photo.shape[:2], grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return x * width, y * height


def distance(x: np.ndarray, y: np.ndarray, stroke: Stroke) -> np.ndarray:
    """The distance of each point to a polyline, in pixels."""
    nearest = np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in pairwise(stroke):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return nearest


def scribbled(photo: np.ndarray, grid: tuple[int, int], regions: Sequence[Region] = REGIONS) -> np.ndarray:
    """The region that each node was scribbled with, -1 where there is no scribble; integers of shape `grid`."""
    x, y = centres(photo, grid)
    # three quarters of a cell: a stroke leaves no gaps on a coarse grid, and stays a thin line on a fine one
    reach = max(4.0, 0.75 * max(photo.shape[:2]) / max(grid))
    near = np.stack([np.minimum.reduce([distance(x, y, stroke) for stroke in region.strokes]) for region in regions])
    return np.where(near.min(0) < reach, near.argmin(0), -1)


def seed_of(labels: np.ndarray, classes: int) -> Tensor:
    """(W5) s = M x: x the one-hot scribbles, M the mask of the scribbled nodes. (1, K, rows, columns)."""
    return torch.from_numpy(np.stack([labels == k for k in range(classes)])).float().unsqueeze(0)


def watched_nodes(photo: np.ndarray, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """The nodes (row, column) under the points of `WATCHED`."""
    (height, width), (rows, columns) = photo.shape[:2], grid
    return [(y * rows // height, x * columns // width) for x, y in WATCHED]
