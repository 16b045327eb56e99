"""What all recipes share: generated images, a trained network that goes on without and with a walk, one figure.

The images are those of the preset `long`: an object is in distant pieces, and only one of them carries the emblem that says
which of two classes it is. A network has to learn the rest from across the image.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor, nn

from difnet_kernels import DiffusedHead, parameter_groups, transition_rows
from models.data import IGNORE, RECIPES
from models.data.synthetic import class_names
from models.figures.panels import Labels, Sheet
from models.training.short import Images, fit, generated, score

CLASSES = 5
TRAIN, TEST, TEST_SEED = 640, 200, 1
Logits = Callable[[nn.Module, Tensor], Tensor]


def options_of(about: str, networks: Sequence[str], arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--network", default=networks[0], choices=networks)
    parser.add_argument(
        "--updates",
        type=int,
        default=200,
        help="of 8 images: for the plain network, and again without and with the walk",
    )
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="folder for the figure")
    return parser.parse_args(arguments)


def compare(
    options: argparse.Namespace,
    plain: nn.Module,
    add_walk: Callable[[nn.Module], None],
    *,
    logits: Logits = lambda network, image: network(image),
    lr: float = 0.1,
    size: int = 97,
) -> dict[str, float]:
    """Train `plain`, give a copy of it a walk by `add_walk`, and train both further, alike; print mIoU, draw what the walk did.

    Returns mIoU by "without" and "with". logits(network, image): scores (B, K, H, W) at the size of the image.
    """
    few = options.updates < 20  # only to see that it runs
    train = generated("long", CLASSES, 16 if few else TRAIN, size)
    test = generated("long", CLASSES, 8 if few else TEST, size, seed=TEST_SEED, split="test")

    def trained(network: nn.Module, seed: int, told: str) -> float:
        started, forward = time.perf_counter(), partial(logits, network)
        optimizer = torch.optim.SGD(parameter_groups(network, lr, weight_decay=1e-4), lr, momentum=0.9)
        network.train()
        fit(forward, train, optimizer, options.updates, seed=seed)
        network.eval()
        mean_iou, seconds = score(forward, test).mean_iou, time.perf_counter() - started
        print(f"{options.network}, {options.updates} {told}: mIoU {mean_iou:.1%} ({seconds:.0f} s)", flush=True)
        return mean_iou

    trained(plain, 0, "updates")
    diffused = copy.deepcopy(plain)
    add_walk(diffused)
    begins_as_the_plain_one(plain, diffused, logits, test.image[:2])
    found = {
        "without": trained(plain, 1, "more without the walk"),
        "with": trained(diffused, 1, "more with the walk"),
    }
    print(f"difference: {100 * (found['with'] - found['without']):+.1f} points on {len(test.mask)} test images")
    path = options.out / f"{options.network}.png"
    draw(plain, diffused, logits, test, path)
    print(f"{path}: an image, both predictions, and where one pixel of the part that was learned looks")
    return found


def begins_as_the_plain_one(plain: nn.Module, diffused: nn.Module, logits: Logits, image: Tensor) -> None:
    """At step 0 the walk is the identity: adding it to a trained network changes nothing."""
    with torch.no_grad():
        same = torch.equal(logits(plain.eval(), image), logits(diffused.eval(), image))
    if not same:
        raise AssertionError("The network with the walk must begin with the scores of the one without.")


def draw(plain: nn.Module, diffused: nn.Module, logits: Logits, test: Images, path: Path) -> None:
    """The image where the walk put most pixels of one region right, and the row of P of that region's middle."""
    with torch.no_grad():
        before, after = (
            torch.cat([logits(net, x).argmax(1) for x in test.image.split(20)]) for net in (plain, diffused)
        )
    mended = (before != test.mask) & (after == test.mask) & (test.mask != IGNORE) & (test.mask != 0)
    regions, _ = scipy.ndimage.label(mended.numpy(), np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    inside = regions == sizes.argmax() if sizes.max() else test.mask.numpy() == 1
    index, y, x = np.unravel_index(scipy.ndimage.distance_transform_edt(inside).argmax(), inside.shape)

    row, grid = row_of(diffused, logits, test.image[index : index + 1], (int(y), int(x)))
    maps = [maps[index].numpy().astype(np.uint8) for maps in (test.mask, before, after)]
    names = class_names(test.classes)
    labels, sheet = Labels(names, maps[:1], maps[1:]), Sheet(
        [""], ["image", "truth", "without the walk", "with it", "a row of P"], maps[0].shape, cell=1.8
    )  # fmt: skip
    sheet.picture(0, 0, RECIPES["default"].denormalise(test.image[index]), mark=(float(y), float(x)))
    for column, found in enumerate(maps, start=1):
        sheet.labels(0, column, found, labels)
    sheet.heat(0, 4, row, 0.0, float(row.max()), maps[0].shape, mark=(float(y), float(x)))
    sheet.note(0, 4, f"where the marked pixel looks, of {grid[0]}×{grid[1]} nodes")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.finish(labels).savefig(path, dpi=150)


def row_of(
    network: nn.Module, logits: Logits, image: Tensor, pixel: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The row of P of the last walk for the node that holds `pixel`, and the grid it lies on."""
    (head,) = (module for module in network.modules() if isinstance(module, DiffusedHead))
    seen = {}
    handle = head.register_forward_hook(lambda _, arguments, scores: seen.update(features=arguments[0], scores=scores))
    with torch.no_grad():
        logits(network, image)
        handle.remove()
        grid = tuple(side // (head.stride or 1) for side in seen["scores"].shape[2:])
        psi = head.walk.embeddings(seen["features"], grid)[-1]
        node = [[[at * nodes // side for at, nodes, side in zip(pixel, grid, image.shape[2:], strict=True)]]]
        return transition_rows(psi, node)[0, 0].numpy(), grid
