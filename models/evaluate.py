"""Evaluate a network: mean IoU, per-class IoU, pixel accuracy, from one exact confusion matrix over all pixels.

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
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import checkpoints
from models.checkpoints import Checkpoint
from models.data import CONTEXT, IGNORE, DataError, EpochSampler, SegmentationDataset, build_dataset, build_transform
from models.data.classes import palette
from models.data.layouts import LAYOUTS
from models.data.transforms import RECIPES, centre
from models.evaluation.metrics import ConfusionMatrix
from models.writing import write_text, writing

PROTOCOLS = {"native": None, "padded505": 505}
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

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

    def to_dict(self) -> dict:
        """For JSON, which knows no NaN: absent classes become null."""
        return _without_nan(asdict(self))

    def table(self) -> str:
        """IoU of every class and the means, as text."""
        width = max(len(name) for name in [*self.classes, "pixel accuracy"])
        rows = zip(self.classes, self.per_class_iou, strict=True)
        lines = [f"{name:<{width}}  {'  –' if math.isnan(iou) else f'{iou:7.2%}'}" for name, iou in rows]
        lines.append("-" * (width + 9))
        lines.append(f"{'mean IoU':<{width}}  {self.mean_iou:7.2%}")
        if self.mean_iou_foreground is not None:
            lines.append(f"{'  59 classes':<{width}}  {self.mean_iou_foreground:7.2%}")
        lines.append(f"{'pixel accuracy':<{width}}  {self.pixel_accuracy:7.2%}")
        return "\n".join(lines)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    dataset: SegmentationDataset,
    *,
    protocol: str = "native",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
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
        decide alone.
    crf: refines the probabilities (K, H, W) given the picture uint8 (H, W, 3); see `models.evaluation.crf`.
    batch_size: images of equal size run together, up to this many.
    predictions: a folder for coloured predictions, palette PNGs named like the images.

    In a process group every process takes its share of the images, none twice, and all return the sum.
    The model is left in the mode (training or not) it came in. Raises ValueError for options that do not fit.
    """
    _check_options(dataset, protocol, scales, amp)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    rank, world = (dist.get_rank(), dist.get_world_size()) if _in_group() else (0, 1)
    order = EpochSampler(len(dataset), shuffle=False, rank=rank, world=world, even=False)
    # lists of samples, not stacked batches: native sizes differ
    loader = DataLoader(dataset, batch_size, sampler=order, num_workers=workers, collate_fn=list)
    matrix = ConfusionMatrix(dataset.num_classes)
    is_context = set(dataset.classes) == set(CONTEXT)
    foreground = ConfusionMatrix(dataset.num_classes) if is_context else None
    folder = _prediction_folder(predictions)
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    try:
        for samples in tqdm(loader, desc="evaluate", disable=not progress or rank > 0):
            for group in _equal_sizes(samples, PROTOCOLS[protocol]):
                probabilities = _predict(model, group, dataset.num_classes, protocol, scales, flip, device, amp)
                for sample, scores in zip(group, probabilities, strict=True):
                    if crf is not None:
                        picture = dataset.transform.recipe.denormalise(sample["image"])
                        scores = crf(_normalised(scores, scales, flip), picture)
                    pred = scores.argmax(0).cpu()
                    matrix.update(pred, sample["mask"])
                    if foreground is not None:
                        mask = sample["mask"].masked_fill(sample["mask"] == 0, IGNORE)
                        foreground.update(1 + scores[1:].argmax(0).cpu(), mask)
                    if folder is not None:
                        _save_prediction(folder / f"{sample['name']}.png", pred)
    finally:
        model.train(was_training)
    # NCCL sums on the GPU only; the counts are tiny
    for counted in (matrix, foreground):
        if counted is not None and world > 1:
            counted.counts = counted.counts.to(device)
            counted.all_reduce()
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
    )


def _predict(
    model: torch.nn.Module,
    samples: list[dict[str, Any]],
    num_classes: int,
    protocol: str,
    scales: Sequence[float],
    flip: bool,
    device: torch.device,
    amp: str,
) -> torch.Tensor:
    """Scores (B, K, H, W) fp32 at the images' own size: logits, or mean probabilities if there are several views."""
    images = torch.stack([sample["image"] for sample in samples]).to(device)
    height, width = images.shape[2:]
    canvas = PROTOCOLS[protocol]
    top, left = 0, 0
    if canvas is not None:
        top, left = centre((height, width), canvas)
        images = F.pad(images, (left, canvas - width - left, top, canvas - height - top))  # 0 is the mean colour
    views = [(scale, mirrored) for scale in scales for mirrored in ([False, True] if flip else [False])]
    total = torch.zeros((), device=device)
    for scale, mirrored in views:
        view = images if scale == 1 else _resize(images, [max(1, round(side * scale)) for side in images.shape[2:]])
        with torch.autocast(device.type, AMP[amp], enabled=AMP[amp] is not None):
            logits = model(view.flip(3) if mirrored else view).float()
        if logits.shape[1] != num_classes:
            raise ValueError(f"the model must give {num_classes} classes, as the data set has; got {logits.shape[1]}.")
        logits = logits.flip(3) if mirrored else logits
        scores = _resize(logits, images.shape[2:])
        scores = scores if len(views) == 1 else scores.softmax(1)
        total = total + scores
    return total[:, :, top : top + height, left : left + width] / len(views)


def _resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _normalised(scores: torch.Tensor, scales: Sequence[float], flip: bool) -> torch.Tensor:
    """Probabilities (K, H, W), whichever of logits and probabilities `_predict` gave."""
    return scores.softmax(0) if len(scales) == 1 and not flip else scores


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


def _check_options(dataset: SegmentationDataset, protocol: str, scales: Sequence[float], amp: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}.")
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise ValueError(f"scales must be numbers in (0, 8], at least one; got {list(scales)}.")
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


def _save_prediction(path: Path, pred: torch.Tensor) -> None:
    image = Image.fromarray(pred.numpy().astype(np.uint8))
    image.putpalette(palette().tobytes())
    with writing(path):
        image.save(path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description="Evaluate a checkpoint.")
    parser.add_argument("--data", required=True, help="root of the data set")
    parser.add_argument("--checkpoint", required=True, help="ours (.safetensors), or an authors' file (.pth, .pth.tar)")
    parser.add_argument("--model", help="name of the network, for files that do not carry it")
    parser.add_argument("--kind", default="voc", choices=sorted(LAYOUTS))
    parser.add_argument("--split", default="val")
    parser.add_argument("--sbd", help="root of SBD, for --kind voc_aug")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of the root")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="preprocessing; by default what the checkpoint says")
    parser.add_argument("--protocol", default="native", choices=sorted(PROTOCOLS))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="for example 0.5 0.75 1 1.25 1.5")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--crf", action="store_true", help="refine by a fully connected CRF, 10 iterations")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; a GPU if there is one")
    parser.add_argument("--amp", default="none", choices=sorted(AMP))
    parser.add_argument("--predictions", help="folder for coloured predictions")
    parser.add_argument("--json", help="file for the result, confusion matrix included")
    return parser


def preprocessing(checkpoint: Checkpoint, given: str | None = None) -> str:
    """The name of the preprocessing a checkpoint was trained with; authors' files, which do not say, had their own."""
    if given is not None:
        return given
    return checkpoint.recipe.get("transform", "default") if checkpoint.model_name else "authors"


def main(arguments: Sequence[str] | None = None) -> int:
    from models.evaluation.crf import DenseCRF
    from models.training import processes

    parser = _parser()
    options = parser.parse_args(arguments)
    group = processes.join(options.device)
    try:
        model, checkpoint = checkpoints.restore(options.checkpoint, options.model)
        transform = build_transform(preprocessing(checkpoint, options.recipe))
        where = options.data, options.kind, options.split
        dataset = build_dataset(*where, transform, sbd_root=options.sbd, follow_links=options.follow_links)
        if checkpoint.classes and list(checkpoint.classes) != list(dataset.classes):
            raise DataError(
                f"{options.data}: classes must be those of the checkpoint, in its order; got "
                f"{list(dataset.classes)[:6]}… for {list(checkpoint.classes)[:6]}…. "
                "For Pascal Context choose --kind context or context_detail."
            )
        metrics = evaluate(
            model.to(group.device),
            dataset,
            protocol=options.protocol,
            scales=options.scales,
            flip=options.flip,
            crf=DenseCRF() if options.crf else None,
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
    except (ValueError, OSError) as error:  # the user's to correct; a traceback would say no more
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        processes.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
