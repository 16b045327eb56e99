"""Evaluate a network: IoU and accuracy of every class and their means, from exact counts over all pixels.

python -m models.evaluate --data DIR --checkpoint runs/x/best.safetensors [--protocol padded505] [--crf]
torchrun --nproc-per-node 8 -m models.evaluate ...

Protocols: "native" runs every image at its own size; "padded505" centres it on 505 × 505 pixels of the mean colour, as
the authors do, and takes the image's part of the result. Void pixels never count, padding neither.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.commands import guarded
from models.data import (
    CONTEXT,
    IGNORE,
    EpochSampler,
    SegmentationDataset,
    build_transform,
    endure_signals,
    signals_wait,
)
from models.data.arguments import add_data_arguments, dataset_of
from models.data.masks import write_mask
from models.data.transforms import centre
from models.evaluation.boundary import BoundaryCounts
from models.evaluation.crf import DenseCRF
from models.evaluation.inference import AMP, Views, check_amp, class_scores, probabilities, require_finite
from models.evaluation.metrics import ConfusionMatrix
from models.writing import write_text, writing

PROTOCOLS = {"native": None, "padded505": 505}

Refine = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation, and what was evaluated."""

    mean_iou: float  # over the classes that occur
    pixel_accuracy: float
    per_class_iou: list[float]  # NaN where a class occurs neither in truth nor in prediction
    mean_iou_foreground: float | None  # Pascal Context's 59-class figure: background neither counted nor predicted
    classes: list[str]
    counts: list[list[int]]  # truth by prediction
    images: int
    seconds: float
    protocol: str
    scales: list[float]
    flip: bool
    crf: bool
    mean_accuracy: float = math.nan  # over the classes that occur in the truth
    frequency_weighted_iou: float = math.nan
    boundary_iou: float | None = None  # if it was asked for
    window: int | str | None = None

    def to_dict(self) -> dict:
        """For JSON, which knows no NaN: absent classes become null."""
        return _without_nan(asdict(self))

    def table(self) -> str:
        """IoU of every class and the means, as text."""
        width = max(len(name) for name in [*self.classes, "pixel accuracy"])
        rows = zip(self.classes, self.per_class_iou, strict=True)
        lines = [f"{name:<{width}}  {_percent(iou)}" for name, iou in rows]
        lines.append("-" * (width + 9))
        means = {
            "mean IoU": self.mean_iou,
            "  59 classes": self.mean_iou_foreground,
            "weighted IoU": self.frequency_weighted_iou,
            "boundary IoU": self.boundary_iou,
            "mean accuracy": self.mean_accuracy,
            "pixel accuracy": self.pixel_accuracy,
        }
        lines += [f"{name:<{width}}  {_percent(value)}" for name, value in means.items() if value is not None]
        return "\n".join(lines)


def _percent(value: float) -> str:
    return "  –" if math.isnan(value) else f"{value:7.2%}"


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    dataset: SegmentationDataset,
    *,
    protocol: str = "native",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | str | None = None,
    boundary: bool = False,
    crf: Refine | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    amp: str = "none",
    predictions: str | Path | None = None,
    progress: bool = False,
) -> Metrics:
    """Run `model` over `dataset` (built with a transform that is not for training) and count.

    scales, flip: class probabilities are averaged over the resized and mirrored inputs; with one of each the logits
        decide alone. window: as of `Views`.
    boundary: count boundary IoU, too, which takes a while.
    crf: refines the probabilities (K, H, W) given the picture uint8 (H, W, 3); see `models.evaluation.crf`.
    batch_size: images of equal size run together, up to this many.
    predictions: a folder for coloured predictions, palette PNGs named like the images.

    In a process group every process takes its share of the images, none twice, and all return the sum.
    The model is left in the mode (training or not) it came in. Raises ValueError for options that do not fit, and for
    scores that are not finite, with the name of the image.
    """
    _check_options(dataset, protocol, amp)
    views = Views(scales, flip, window)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    rank, world = (dist.get_rank(), dist.get_world_size()) if _in_group() else (0, 1)
    order = EpochSampler(len(dataset), shuffle=False, rank=rank, world=world, even=False)
    # lists of samples, not stacked batches: native sizes differ
    loader = DataLoader(
        dataset, batch_size, sampler=order, num_workers=workers, collate_fn=list, worker_init_fn=endure_signals
    )
    matrix = ConfusionMatrix(dataset.num_classes)
    is_context = set(dataset.classes) == set(CONTEXT)
    foreground = ConfusionMatrix(dataset.num_classes) if is_context else None
    bands = BoundaryCounts(dataset.num_classes) if boundary else None
    folder = _prediction_folder(predictions)
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    try:
        with signals_wait():
            batches = iter(loader)
        for samples in tqdm(batches, total=len(loader), desc="evaluate", disable=not progress or rank > 0):
            for group in _equal_sizes(samples, PROTOCOLS[protocol]):
                found = _scores(model, group, dataset.num_classes, PROTOCOLS[protocol], views, device, amp)
                for sample, scores in zip(group, found, strict=True):
                    require_finite(scores, sample["name"])
                    if crf is not None:
                        picture = dataset.transform.recipe.denormalise(sample["image"])
                        scores = crf(probabilities(scores, views), picture)
                    pred = scores.argmax(0).cpu()
                    matrix.update(pred, sample["mask"])
                    if bands is not None:
                        bands.update(pred, sample["mask"])
                    if foreground is not None:
                        mask = sample["mask"].masked_fill(sample["mask"] == 0, IGNORE)
                        foreground.update(1 + scores[1:].argmax(0).cpu(), mask)
                    if folder is not None:
                        write_mask(folder / f"{sample['name']}.png", pred.numpy())
    finally:
        model.train(was_training)
    # NCCL sums on the GPU only; the counts are tiny
    for counted in (matrix, foreground):
        if counted is not None and world > 1:
            counted.counts = counted.counts.to(device)
            counted.all_reduce()
    if bands is not None:
        bands.all_reduce(device)
    return Metrics(
        mean_iou=matrix.mean_iou(),
        pixel_accuracy=matrix.pixel_accuracy(),
        per_class_iou=matrix.per_class_iou().tolist(),
        mean_iou_foreground=foreground.mean_iou() if foreground is not None else None,
        classes=list(dataset.classes),
        counts=matrix.counts.cpu().tolist(),
        images=len(dataset),
        seconds=time.perf_counter() - start,
        protocol=protocol,
        scales=list(scales),
        flip=flip,
        crf=crf is not None,
        mean_accuracy=matrix.mean_accuracy(),
        frequency_weighted_iou=matrix.frequency_weighted_iou(),
        boundary_iou=None if bands is None else bands.mean_iou(),
        window=window,
    )


def _scores(
    model: torch.nn.Module,
    samples: list[dict[str, Any]],
    num_classes: int,
    canvas: int | None,
    views: Views,
    device: torch.device,
    amp: str,
) -> torch.Tensor:
    """`class_scores` (B, K, H, W) at the images' own size, seen on a canvas of the mean colour if there is one."""
    images = torch.stack([sample["image"] for sample in samples]).to(device)
    height, width = images.shape[2:]
    top, left = (0, 0) if canvas is None else centre((height, width), canvas)
    if canvas is not None:
        images = F.pad(images, (left, canvas - width - left, top, canvas - height - top))  # 0 is the mean colour
    scores = class_scores(model, images, views, amp)
    if scores.shape[1] != num_classes:
        raise ValueError(f"the model must give {num_classes} classes, as the data set has; got {scores.shape[1]}.")
    return scores[:, :, top : top + height, left : left + width]


def _equal_sizes(samples: list[dict], canvas: int | None) -> Iterator[list[dict]]:
    """Split into runs of equal image size, keeping the order. A canvas larger than the image must hold it."""
    group: list[dict] = []
    for sample in samples:
        if canvas is not None and max(sample["image"].shape[1:]) > canvas:
            height, width = sample["image"].shape[1:]
            raise ValueError(
                f"{sample['name']}: an image must fit {canvas} × {canvas} pixels for protocol padded{canvas}; got "
                f"{width} × {height} (width × height). Use the protocol native."
            )
        if group and group[0]["image"].shape != sample["image"].shape:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _check_options(dataset: SegmentationDataset, protocol: str, amp: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    check_amp(amp)
    if dataset.transform.train:
        raise ValueError("evaluation must not depend on chance; got a training transform. Use build_transform(recipe).")


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _prediction_folder(path: str | Path | None) -> Path | None:
    if path is None:
        return None
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


def add_view_arguments(parser: Any, window: str) -> None:
    """How often an image is looked at: --scales, --flip, --window, --amp."""
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="for example 0.5 0.75 1 1.25 1.5")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--window", default=window, help="side of a sliding window in pixels; whole: none; auto: for large images only"
    )
    parser.add_argument("--amp", default="none", choices=sorted(AMP))


def window_of(text: str) -> int | str | None:
    """What --window says, for `Views`."""
    if text in ("whole", "auto"):
        return None if text == "whole" else text
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"--window must be a number of pixels, whole or auto; got {text!r}.")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    from models.weights.arguments import add_weight_arguments

    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description="Evaluate a checkpoint.")
    add_data_arguments(parser)
    add_weight_arguments(parser)
    parser.add_argument("--split", default="val")
    parser.add_argument("--protocol", default="native", choices=sorted(PROTOCOLS))
    add_view_arguments(parser, window="whole")
    parser.add_argument("--crf", action="store_true", help="refine by a fully connected CRF, 10 iterations")
    parser.add_argument("--boundary", action="store_true", help="boundary IoU, too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; a GPU if there is one")
    parser.add_argument("--predictions", help="folder for coloured predictions")
    parser.add_argument("--json", help="file for the result, confusion matrix included")
    return parser


ORDER = "For Pascal Context choose --kind context or context_detail."


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """The command."""
    from models.training import processes
    from models.weights.arguments import restored

    if options.workers < 0 or options.batch_size < 1:
        raise ValueError(
            f"--workers must be 0 or more, --batch-size 1 or more; got {options.workers}, {options.batch_size}."
        )
    group = processes.join(options.device)
    try:
        dataset = dataset_of(options, options.split)
        reading = {"reduce_zero_label": options.reduce_zero_label}
        weights = restored(options, dataset.classes, reading, ORDER)
        dataset.transform = build_transform(weights.preprocessing.name)
        crf = DenseCRF(progress=sys.stderr.isatty()) if options.crf else None
        if crf is not None and group.is_first:
            picture, _ = dataset.load(0)
            seconds = crf.seconds(picture, dataset.num_classes, group.device)
            share = -(-len(dataset) // group.size)
            print(f"CRF: about {_duration(seconds)} an image, {_duration(seconds * share)} in all", flush=True)
        metrics = evaluate(
            weights.model.to(group.device),
            dataset,
            protocol=options.protocol,
            scales=options.scales,
            flip=options.flip,
            window=window_of(options.window),
            boundary=options.boundary,
            crf=crf,
            batch_size=options.batch_size,
            workers=options.workers,
            device=group.device,
            amp=options.amp,
            predictions=options.predictions,
            progress=sys.stderr.isatty(),
        )
        if group.is_first:
            print(metrics.table())
            print(f"{metrics.images} images in {metrics.seconds:.1f} s, {metrics.protocol}, {options.checkpoint}")
            if options.json:
                write_text(Path(options.json), json.dumps(metrics.to_dict(), indent=1) + "\n")
    finally:
        processes.leave()


def _duration(seconds: float) -> str:
    """ "40 s", "20 min", "5 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
