"""Class lists and the VOC colour map. Index in the list = value in the mask; 255 is void and never a class."""

from __future__ import annotations

import numpy as np

IGNORE = 255

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# The order of FCN and of Context's own 59-label list: the VOC classes first, then the 39 added ones.
CONTEXT = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "table", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence",
    "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform",
    "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck",
    "wall", "water", "window", "wood",
)  # fmt: skip

# The Detail API sorts the 59 names. A mask does not say which order it was written in, so the user must.
CONTEXT_DETAIL = (CONTEXT[0], *sorted(CONTEXT[1:]))


def palette(count: int = 256) -> np.ndarray:
    """VOC colours (count, 3) uint8: bit 3b+c of the index becomes bit 7−b of channel c, so near indices differ most."""
    index = np.arange(count)[:, None]
    channel = np.arange(3)[None, :]
    bits = [((index >> (3 * b + channel)) & 1) << (7 - b) for b in range(8)]
    return np.bitwise_or.reduce(bits).astype(np.uint8)


def colour(mask: np.ndarray) -> np.ndarray:
    """Class indices (H, W) → VOC colours (H, W, 3) uint8; void (255) is VOC's cream, which is colour 255 of the map."""
    return palette()[mask]
