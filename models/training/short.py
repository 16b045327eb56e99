"""A few hundred updates on generated images that stay in memory: what experiments and recipes train with.

For anything longer, with files, checkpoints and several processes, there is `models.train`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.data import IGNORE, build_transform
from models.data.synthetic import FIRST_INDEX, encode
from models.evaluation.boundary import BoundaryCounts
from models.evaluation.metrics import ConfusionMatrix
from models.training.recipes import poly

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Images:
    """Generated images, normalised, with their masks."""

    image: Tensor  # (n, 3, H, W) float32, channels last
    mask: Tensor  # (n, H, W) int64, 255 is void
    classes: int


@dataclass(frozen=True)
class Scores:
    """What a network is worth, each in [0, 1]."""

    mean_iou: float
    boundary_iou: float
    per_class_iou: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def generated(preset: str, classes: int, count: int, size: int, *, seed: int = 0, split: str = "train") -> Images:
    """The first `count` images of a split, as `models.data.synthetic` writes them and the loaders read them."""
    normalise = build_transform("default")
    pairs = []
    for index in range(FIRST_INDEX[split], FIRST_INDEX[split] + count):
        files = encode(preset, classes, (size, size), seed, index)
        image, mask = (np.asarray(Image.open(io.BytesIO(file))) for file in files)
        pairs.append(normalise(image, mask))
    pictures, masks = (torch.stack(maps) for maps in zip(*pairs, strict=True))
    return Images(pictures.contiguous(memory_format=torch.channels_last), masks, classes)


def fit(
    forward: Forward,
    images: Images,
    optimizer: torch.optim.Optimizer,
    updates: int,
    *,
    seed: int,
    batch: int = 8,
    clip: float = 1.0,
    also: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[float]:
    """Train for `updates` batches; returns their losses. `forward` maps images to logits (B, K, H, W) at their size.

    also(logits, images): a loss beside the cross entropy. The rates of the optimizer's groups fall to zero (poly, power 0.9).
    seed decides the order of the images alone.
    Raises FloatingPointError for a loss that is no number.
    """
    first = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses = []
    for update, chosen in zip(range(updates), _batches(len(images.mask), batch, seed), strict=False):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * poly(update, updates, 0.9)
        logits = forward(images.image[chosen])
        loss = F.cross_entropy(logits, images.mask[chosen], ignore_index=IGNORE)
        if also is not None:
            loss = loss + also(logits, images.image[chosen])
        if not loss.isfinite():
            raise FloatingPointError(f"The loss is {loss.item()} at update {update + 1}. Lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Every image once, in random order, then again in another one; batches reach over from one to the next."""
    random, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(count, generator=random)])
        yield left[:batch]
        left = left[batch:]


@torch.inference_mode()
def score(forward: Forward, images: Images, batch: int = 20) -> Scores:
    """Mean IoU, boundary IoU and the IoU of each class of `forward`, whose network is in evaluation mode."""
    counts, contours = ConfusionMatrix(images.classes), BoundaryCounts(images.classes)
    for image, mask in zip(images.image.split(batch), images.mask.split(batch), strict=True):
        found = forward(image).argmax(1)
        counts.update(found, mask)
        for pred, truth in zip(found, mask, strict=True):
            contours.update(pred, truth)
    both = counts.counts.diagonal().double()
    iou = both / (counts.counts.sum(0) + counts.counts.sum(1) - both).clamp(min=1)
    return Scores(iou.mean().item(), contours.mean_iou(), iou.tolist())
