"""A walk in a network of MONAI, in 3-D: python -m docs.examples.monai_volumes

Their networks score every voxel. The last module of the U-Net is wrapped, with `stride=4`: the means of 4×4×4 voxels are
diffused, and what that changed is added. `SegResNet` takes the same line at its `conv_final`. The volumes are made here: two
distant balls of one tissue, and only one has the core that says which of two classes both of them are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.nets import UNet
from scipy.ndimage import gaussian_filter
from torch import nn

from difnet_kernels import DiffusedHead
from docs.examples.common import compare, options_of
from models.training.short import Images

CLASSES, SIZE = 3, 24
RADIUS, CORE, APART = 5, 3, 11  # of a ball, of its core, and from one to the other at least, in voxels


def volumes(count: int, size: int, *, seed: int = 0, split: str = "train") -> Images:
    """(count, 1, size, size, size), and masks with 0 around the balls, 1 where the core is bright and 2 where it is dark."""
    random = np.random.default_rng([seed, split == "test"])
    pairs = [_volume(random, size) for _ in range(count)]
    image, mask = (torch.from_numpy(np.stack(maps)) for maps in zip(*pairs, strict=True))
    return Images(image[:, None], mask, CLASSES)


def _volume(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = random.normal(0, 0.3, (size,) * 3), np.zeros((size,) * 3, np.int64)
    image += 4 * gaussian_filter(random.normal(0, 1, (size,) * 3), 4)  # light that varies
    while True:
        centres = random.uniform(RADIUS, size - 1 - RADIUS, (2, 3))
        if np.linalg.norm(centres[0] - centres[1]) > APART:
            break
    told = int(random.integers(1, CLASSES))
    far = [np.linalg.norm(np.indices(image.shape) - c[:, None, None, None], axis=0) for c in centres]
    for distance in far:
        image[distance < RADIUS] += 1.5
        mask[distance < RADIUS] = told
    image[far[0] < CORE] += 3 if told == 1 else -3
    return image.astype(np.float32), mask


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk in a network of MONAI, in 3-D.", ["unet3d"], arguments)
    plain = UNet(3, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="batch")

    def add_walk(network: nn.Module) -> None:
        network.model[2] = DiffusedHead(network.model[2], [16], stride=4)

    return compare(options, plain, add_walk, lr=0.2, size=SIZE, data=volumes)


if __name__ == "__main__":
    main()
