"""What all recipes share: generated images, and a trained network that goes on without and with a walk.

The images are those of the preset `long`: an object is in distant pieces, and only one of them carries the emblem that says
which of two classes it is. A network has to learn the rest from across the image.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from difnet_kernels import parameter_groups
from docs.examples.figure import draw
from models.evaluation.metrics import ConfusionMatrix
from models.training.machine import environment
from models.training.short import Images, fit, generated

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
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the images")
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="folder for the figure and the result")
    options = parser.parse_args(arguments)
    options.few = options.updates < 20  # only to see that it runs
    torch.manual_seed(options.seed)
    return options


def images(count: int, size: int, *, seed: int = 0, split: str = "train") -> Images:
    return generated("long", CLASSES, count, size, seed=seed, split=split)


def compare(
    options: argparse.Namespace,
    plain: nn.Module,
    add_walk: Callable[[nn.Module], None],
    *,
    logits: Logits = lambda network, image: network(image),
    lr: float = 0.1,
    size: int = 97,
    data: Callable[..., Images] = images,
) -> dict[str, float]:
    """Train `plain`, give a copy of it a walk by `add_walk`, and train both further, alike; print mIoU, draw what the walk did.

    Returns mIoU by "without" and "with", and writes it to a JSON file beside the figure.
    logits(network, image): scores (B, K, H, W) at the size of the image. data(count, size, seed=, split=): what to train on.
    """
    train = data(16 if options.few else TRAIN, size)
    test = data(8 if options.few else TEST, size, seed=TEST_SEED, split="test")

    def trained(network: nn.Module, seed: int, told: str) -> float:
        started, forward = time.perf_counter(), partial(logits, network)
        optimizer = torch.optim.SGD(parameter_groups(network, lr, weight_decay=1e-4), lr, momentum=0.9)
        network.train()
        fit(forward, train, optimizer, options.updates, seed=seed)
        network.eval()
        found, seconds = mean_iou(forward, test), time.perf_counter() - started
        print(f"{options.network}, {options.updates} {told}: mIoU {found:.1%} ({seconds:.0f} s)", flush=True)
        return found

    trained(plain, 2 * options.seed, "updates")
    diffused = copy.deepcopy(plain)
    add_walk(diffused)
    begins_as_the_plain_one(plain, diffused, logits, test.image[:2])
    found = {
        "without": trained(plain, 2 * options.seed + 1, "more without the walk"),
        "with": trained(diffused, 2 * options.seed + 1, "more with the walk"),
    }
    print(f"difference: {100 * (found['with'] - found['without']):+.1f} points on {len(test.mask)} test images")
    path = options.out / f"{options.network}.png"
    draw(plain, diffused, logits, test, path)
    print(f"{path}: an image, both predictions, and where one pixel of the part that was learned looks")
    keep(options, {**found, "images": len(train.mask), "test": len(test.mask)})
    return found


def begins_as_the_plain_one(plain: nn.Module, diffused: nn.Module, logits: Logits, image: Tensor) -> None:
    """At step 0 the walk is the identity: adding it to a trained network changes nothing."""
    with torch.no_grad():
        same = torch.equal(logits(plain.eval(), image), logits(diffused.eval(), image))
    if not same:
        raise AssertionError("The network with the walk must begin with the scores of the one without.")


@torch.inference_mode()
def mean_iou(forward: Callable[[Tensor], Tensor], images: Images, batch: int = 20) -> float:
    """Over all classes, for any number of spatial axes."""
    counts = ConfusionMatrix(images.classes)
    for image, mask in zip(images.image.split(batch), images.mask.split(batch), strict=True):
        counts.update(forward(image).argmax(1), mask)
    return counts.mean_iou()


def keep(options: argparse.Namespace, found: dict[str, float]) -> None:
    """One line of JSON: what was asked, of which machine, and what came out."""
    machine = environment()
    asked = {"network": options.network, "updates": options.updates, "seed": options.seed}
    told = {**asked, **found, **{key: machine[key] for key in ("processor", "torch")}}
    (options.out / f"{options.network}-{options.seed}.json").write_text(json.dumps(told) + "\n")
