"""One figure for all recipes: an image, its truth, both predictions, and where one pixel looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor, nn

from difnet_kernels import DiffusedHead, transition_rows
from models.data import IGNORE, RECIPES
from models.data.synthetic import class_names
from models.figures.panels import Labels, Sheet
from models.training.short import Images

Logits = Callable[[nn.Module, Tensor], Tensor]


def draw(plain: nn.Module, diffused: nn.Module, logits: Logits, test: Images, path: Path) -> None:
    """The image where the walk put most pixels of one region right, and the row of P of that region's middle.

    Of a volume the slice through that voxel is drawn.
    """
    with torch.no_grad():
        before, after = (
            torch.cat([logits(net, x).argmax(1) for x in test.image.split(20)]) for net in (plain, diffused)
        )
    mended = (before != test.mask) & (after == test.mask) & (test.mask != IGNORE) & (test.mask != 0)
    within = np.zeros((3,) * mended.dim())
    within[1] = 1  # a region does not reach into the next image
    regions, _ = scipy.ndimage.label(mended.numpy(), within)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    inside = regions == sizes.argmax() if sizes.max() else test.mask.numpy() == 1
    at = np.unravel_index(scipy.ndimage.distance_transform_edt(inside).argmax(), inside.shape)
    index, pixel = int(at[0]), tuple(map(int, at[1:]))

    row, node = row_of(diffused, logits, test.image[index : index + 1], pixel)
    cut, mark = pixel[:-2], (float(pixel[-2]), float(pixel[-1]))
    maps = [maps[index][cut].numpy().astype(np.uint8) for maps in (test.mask, before, after)]
    names = class_names(test.classes)
    labels = Labels(names, maps[:1], maps[1:])
    sheet = Sheet([""], ["image", "truth", "without the walk", "with it", "a row of P"], maps[0].shape, cell=1.8)
    sheet.picture(0, 0, _picture(test.image[index][(slice(None), *cut)]), mark=mark)
    for column, found in enumerate(maps, start=1):
        sheet.labels(0, column, found, labels)
    sheet.heat(0, 4, row[node[:-2]], 0.0, float(row.max()), maps[0].shape, mark=mark)
    sheet.note(0, 4, f"where the marked pixel looks, of {'×'.join(map(str, row.shape))} nodes")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.finish(labels).savefig(path, dpi=150)


def row_of(
    network: nn.Module, logits: Logits, image: Tensor, pixel: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The row of P of the last walk for the node that holds `pixel`, on its grid, and that node."""
    (head,) = (module for module in network.modules() if isinstance(module, DiffusedHead))
    seen = {}
    handle = head.register_forward_hook(lambda _, arguments, scores: seen.update(features=arguments[0], scores=scores))
    with torch.no_grad():
        logits(network, image)
        handle.remove()
        grid = tuple(side // (head.stride or 1) for side in seen["scores"].shape[2:])
        psi = head.walk.embeddings(seen["features"], grid)[-1]
        node = tuple(at * nodes // side for at, nodes, side in zip(pixel, grid, image.shape[2:], strict=True))
        return transition_rows(psi, [[node]])[0, 0].numpy(), node


def _picture(image: Tensor) -> np.ndarray:
    """(H, W, 3) in grey levels, of a normalised photograph or of one channel."""
    if image.shape[0] == 3:
        return RECIPES["default"].denormalise(image)
    grey = (255 * (image[0] - image.min()) / (image.max() - image.min())).byte().numpy()
    return np.repeat(grey[..., None], 3, axis=2)
