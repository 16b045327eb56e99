"""Train a network: python -m models.train --data DIR --model difnet50 --out runs/difnet50

Several GPUs or machines: torchrun --nproc-per-node 8 -m models.train …    Continue a run: --resume runs/difnet50
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.data import DataError, SegmentationDataset, build_dataset, build_transform
from models.data.check import require_sound
from models.evaluate import evaluate
from models.networks.builder import model_names
from models.training import Stopped, TrainConfig, Trainer, TrainingDiverged, Validate, processes
from models.training.config import AMP, BATCH_NORM, resolve_recipe
from models.training.recipes import RECIPES
from models.training.run_folder import RunFolder


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train DifNet or Sim-Deeplab.")
    what = parser.add_argument_group("what")
    what.add_argument("--data", help="root of the data set")
    what.add_argument("--kind", default="voc", help="its layout: voc, voc_aug, context, … (models/data/layouts.py)")
    what.add_argument("--sbd", help="root of SBD, for --kind voc_aug")
    what.add_argument("--train-split", default="train")
    what.add_argument("--val-split", default="val")
    what.add_argument("--model", help=", ".join(model_names()))
    what.add_argument("--options", default="{}", help="options of the network as JSON, e.g. '{\"walks\": [1, 3, 5]}'")
    what.add_argument("--backbone", help="torchvision ResNet weights for the trunks (.pth or .safetensors)")
    what.add_argument("--init", help="weights of a whole network to start from")
    what.add_argument("--reset-head", action="store_true", help="with --init: other classes, so a fresh head")

    how = parser.add_argument_group("how (default: as the recipe says)")
    how.add_argument("--recipe", default="deeplab", help=", ".join(RECIPES))
    how.add_argument("--epochs", type=int)
    how.add_argument("--batch-size", type=int, help="images of one update, over all processes")
    how.add_argument("--crop", type=int)
    how.add_argument("--lr", type=float)
    how.add_argument("--weight-decay", type=float)
    how.add_argument("--clip", type=float, default=0.0, help="largest norm of the gradient; 0: no clipping")
    how.add_argument("--batch-norm", default="train", choices=BATCH_NORM)
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--val-every", type=int, default=1, help="epochs between validations; 0: never")

    speed = parser.add_argument_group("speed")
    speed.add_argument("--device", help="cpu, cuda, cuda:1 …; default: a GPU if there is one")
    speed.add_argument("--workers", type=int, default=4, help="processes that load images")
    speed.add_argument("--amp", default="none", choices=AMP)
    speed.add_argument("--channels-last", default=True, action=argparse.BooleanOptionalAction)
    speed.add_argument("--compile", action="store_true", help="torch.compile")
    speed.add_argument("--deterministic", action="store_true", help="bit-equal runs on a GPU, too")

    run = parser.add_argument_group("run")
    run.add_argument("--out", help="run folder; must not hold a run yet")
    run.add_argument("--resume", help="run folder to continue; its configuration counts, not this command line's")
    run.add_argument("--stop-after", type=int, help="stop after this many epochs in total; --resume goes on")
    run.add_argument("--check", default=True, action=argparse.BooleanOptionalAction, help="first open every file")
    run.add_argument("--tensorboard", default=True, action=argparse.BooleanOptionalAction)
    return parser


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The resolved configuration of a command line."""
    missing = [f"--{name}" for name in ("data", "model", "out") if not getattr(args, name)]
    if missing:
        raise ValueError(f"A new run needs {', '.join(missing)}. (To continue one: --resume FOLDER.)")
    try:
        options = json.loads(args.options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options must be JSON; got {args.options!r} ({error}).") from error
    overrides = {name: getattr(args, name) for name in ("epochs", "batch_size", "crop", "lr", "weight_decay")}
    same = ("model", "kind", "sbd", "train_split", "val_split", "reset_head", "seed", "amp", "channels_last",
            "compile", "clip", "batch_norm", "deterministic", "val_every")  # fmt: skip
    paths: dict[str, Any] = {
        name: str(Path(getattr(args, name)).resolve()) for name in ("backbone", "init") if getattr(args, name)
    }
    return TrainConfig(
        recipe=resolve_recipe(args.recipe, **overrides),
        options=options,
        data=str(Path(args.data).resolve()),
        **{name: getattr(args, name) for name in same},
        **paths,
    )


def data_sets(config: TrainConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Training and validation data of a configuration; validation is at native size, None if switched off."""
    common: dict[str, Any] = {"seed": config.seed, "sbd_root": config.sbd}
    crop = config.recipe.crop if config.recipe.augment else None
    augment = build_transform(config.recipe.transform, train=config.recipe.augment, crop=crop)
    train_set = build_dataset(config.data, config.kind, config.train_split, augment, **common)
    if not config.val_every:
        return train_set, None
    plain = build_transform(config.recipe.transform, train=False)
    return train_set, build_dataset(config.data, config.kind, config.val_split, plain, **common)


def validation(val_set: SegmentationDataset, device: torch.device, workers: int = 0, amp: str = "none") -> Validate:
    """network -> {"mean_iou", "pixel_accuracy", "per_class_iou"} on `val_set`."""

    def validate(network: nn.Module) -> dict[str, Any]:
        metrics = evaluate(network, val_set, device=device, workers=workers, amp=amp)
        return {
            "mean_iou": float(metrics.mean_iou),
            "pixel_accuracy": float(metrics.pixel_accuracy),
            # a class that never occurs has no IoU; JSON knows null, not NaN
            "per_class_iou": [None if math.isnan(value) else float(value) for value in metrics.per_class_iou],
        }

    return validate


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    workers: int = 0,
    check: bool = True,
    stop_after: int | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    terminal: bool = True,
) -> dict[str, Any]:
    """Train as configured into the run folder `out`; returns the metrics of the last epoch.

    resume: continue from the folder's last checkpoint, with the data and machine given here.
    progress: a bar for every epoch; None shows it where there is a terminal. terminal: log lines there, too.
    """
    group = processes.join(device)
    try:
        train_set, val_set = data_sets(config)
        if check and group.is_first and not resume:
            for data, split in ((train_set, config.train_split), (val_set, config.val_split)):
                if data is not None:
                    require_sound(data, split, progress=sys.stderr.isatty())
        folder = RunFolder(out)
        if group.is_first and not resume:
            folder = RunFolder.create(out, config)
        group.wait()
        validate = None if val_set is None else validation(val_set, group.device, workers, config.amp)
        trainer = Trainer(config, train_set, folder, group, validate, workers, progress, tensorboard, terminal)
        if resume:
            trainer.resume()
        return trainer.fit(stop_after)
    finally:
        processes.leave()


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what --deterministic needs, read at first use
    try:
        config = RunFolder(args.resume).read_config() if args.resume else config_of(args)
        if args.resume and args.data:  # the same data at another place
            config = replace(config, data=str(Path(args.data).resolve()))
        train(
            config,
            args.resume or args.out,
            resume=bool(args.resume),
            device=args.device,
            workers=args.workers,
            check=args.check,
            stop_after=args.stop_after,
            tensorboard=args.tensorboard,
        )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 143  # 128 + SIGTERM, which schedulers understand
    except (DataError, OSError, TrainingDiverged, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
