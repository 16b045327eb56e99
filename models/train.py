"""Train a network: python -m models.train --data DIR --model difnet50 --out runs/difnet50

Several GPUs or machines: torchrun --nproc-per-node 8 -m models.train …    Continue a run: --resume runs/difnet50
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import checkpoints
from models.commands import guarded
from models.data import DataError, SegmentationDataset, build_dataset, build_transform, transforms
from models.data.arguments import READING, add_data_arguments, reading_of
from models.data.check import Report, require_sound, shared_names
from models.evaluate import evaluate
from models.networks.builder import check_options, has_bottlenecks, model_names
from models.training import Stopped, TrainConfig, Trainer, TrainingDiverged, Validate, processes
from models.training.config import AMP, BATCH_NORM, resolve_recipe
from models.training.recipes import RECIPES
from models.training.run_folder import RunFolder


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train DifNet or Sim-Deeplab.")
    what = parser.add_argument_group("what")
    add_data_arguments(what, required=False)
    what.add_argument("--train-split", default="train")
    what.add_argument("--val-split", default="val")
    what.add_argument("--model", help=", ".join(model_names()))
    what.add_argument("--options", default="{}", help="options of the network as JSON, e.g. '{\"walks\": [1, 3, 5]}'")
    what.add_argument("--backbone", help="torchvision ResNet weights for the trunks (.pth or .safetensors)")
    what.add_argument("--init", help="weights of a whole network to start from")
    what.add_argument("--reset-head", action="store_true", help="with --init: other classes, so a fresh head")

    how = parser.add_argument_group("how (default: as the recipe says)")
    how.add_argument("--recipe", default="deeplab", help=", ".join(RECIPES))
    how.add_argument("--epochs", type=int, help="with --resume: more than before extends the run")
    how.add_argument("--batch-size", type=int, help="images of one update, over all processes")
    how.add_argument("--crop", type=int)
    how.add_argument("--lr", type=float)
    how.add_argument("--weight-decay", type=float)
    how.add_argument("--preprocessing", choices=sorted(transforms.RECIPES), help="how pixels become numbers")
    how.add_argument("--photometric", type=float, default=0.0, help="strength of random colours, e.g. 0.5; 0: none")
    how.add_argument(
        "--crf-loss",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="a dense CRF as a loss, for labels of few pixels, e.g. 0.5",
    )
    how.add_argument("--class-weights", help="balanced, or a number per class, separated by commas")
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
    run.add_argument("--save-every", type=int, default=0, metavar="N", help="updates between checkpoints; 0: an epoch")
    run.add_argument("--keep", type=int, default=0, metavar="K", help="keep the last K checkpoints beside `last`")
    run.add_argument("--check", default=True, action=argparse.BooleanOptionalAction, help="first open every file")
    run.add_argument("--tensorboard", default=True, action=argparse.BooleanOptionalAction)
    return parser


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The resolved configuration of a command line."""
    missing = [f"--{name}" for name in ("data", "model", "out") if not getattr(args, name)]
    if missing:
        raise ValueError(f"A new run needs {', '.join(missing)}. (To continue one: --resume FOLDER.)")
    options = checkpoints.parse_options(args.options) or {}
    if args.backbone and has_bottlenecks(args.model):
        options.setdefault("stride_in", "conv2")  # where torchvision's weights want it; the log says so
    check_options(args.model, options)
    overrides = {name: getattr(args, name) for name in RECIPE_NUMBERS}
    given = {name: getattr(args, name) for name in ("backbone", "init")}
    paths: dict[str, Any] = {name: str(Path(path).resolve()) for name, path in given.items() if path}
    return TrainConfig(
        recipe=resolve_recipe(args.recipe, **overrides, transform=args.preprocessing),
        options=options,
        data=str(Path(args.data).resolve()),
        init_preprocessing=args.preprocessing,
        **{name: getattr(args, name) for name in SAME},
        **paths,
    )


RECIPE_NUMBERS = ("epochs", "batch_size", "crop", "lr", "weight_decay")
SAME = ("model", "kind", "train_split", "val_split", "reset_head", "seed", "amp", "channels_last", "compile", "clip",
        "batch_norm", "deterministic", "val_every", "photometric", "crf_loss", "save_every", "keep", *READING)  # fmt: skip
# what may change from one part of a run to the next: places, machine, book-keeping. --epochs may only grow
MOVABLE = ("data", "sbd", "follow_links", "save_every", "keep", "epochs")
MACHINE = ("resume", "device", "workers", "stop_after", "check", "tensorboard")


def resumed_config(args: argparse.Namespace, arguments: Sequence[str] | None) -> TrainConfig:
    """The configuration of the run in `args.resume`, with what may change. ValueError names everything that cannot count."""
    config = RunFolder(args.resume).read_config()
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(args), unset))
    asked = {k: v for k, v in vars(build_parser().parse_args(arguments, blank)).items() if v is not unset}
    refused = []
    for name, value in asked.items():
        if name in MOVABLE + MACHINE:
            continue
        stored = _stored(config, name)
        if name == "options":
            value = checkpoints.parse_options(value)
        if name == "class_weights" and stored is not None:
            value = stored if value == "balanced" else class_weights_of(value, None)
        if name in ("backbone", "init"):
            value = str(Path(value).resolve())
        if value != (args.resume if name == "out" else stored):
            refused.append(f"--{name.replace('_', '-')} {value} (the run has {stored})")
    if refused:
        raise ValueError(
            f"{args.resume} continues as it was configured; {', '.join(refused)} cannot count. For other settings start "
            f"a new run from its weights: --init {args.resume}, and a new --out."
        )
    changed = {name: asked[name] for name in MOVABLE if name in asked and name not in ("data", "epochs")}
    if "data" in asked:
        changed["data"] = str(Path(asked["data"]).resolve())  # the same data at another place
    epochs = asked.get("epochs", config.recipe.epochs)
    if epochs < config.recipe.epochs:
        raise ValueError(
            f"--epochs must be at least the {config.recipe.epochs} of the run; got {epochs}. --stop-after stops earlier."
        )
    return replace(config, recipe=replace(config.recipe, epochs=epochs), **changed)


def _stored(config: TrainConfig, name: str) -> Any:
    if name == "recipe":
        return config.recipe.name
    if name == "preprocessing":
        return config.recipe.transform
    return getattr(config.recipe, name) if name in RECIPE_NUMBERS else getattr(config, name, None)


def data_sets(config: TrainConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Training and validation data of a configuration; validation is at native size, None if switched off."""
    common: dict[str, Any] = {"seed": config.seed, **reading_of(config)}
    recipe = config.recipe
    crop = recipe.crop if recipe.augment else None
    augment = build_transform(recipe.transform, recipe.augment, crop, config.photometric if recipe.augment else 0.0)
    train_set = build_dataset(config.data, config.kind, config.train_split, augment, **common)
    if not config.val_every:
        return train_set, None
    plain = build_transform(recipe.transform, train=False)
    return train_set, build_dataset(config.data, config.kind, config.val_split, plain, **common)


def validation(val_set: SegmentationDataset, device: torch.device, workers: int = 0, amp: str = "none") -> Validate:
    """network -> {"mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class_iou"} on `val_set`.

    What has no value (a class that never occurs, anything without ground truth) is None: JSON knows null, not NaN.
    """

    def validate(network: nn.Module) -> dict[str, Any]:
        found = evaluate(network, val_set, device=device, workers=workers, amp=amp).to_dict()
        kept = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class_iou")
        return {name: found[name] for name in kept}

    return validate


def inspect(
    config: TrainConfig, train_set: SegmentationDataset, val_set: SegmentationDataset | None, progress: bool
) -> tuple[list[str], Report]:
    """Open every file; warnings for the log, and what the training images hold. DataError if anything is wrong."""
    report = require_sound(train_set, config.train_split, progress=progress)
    warnings = [f"WARNING {config.train_split}: {warning}" for warning in report.warnings()]
    if not config.recipe.augment and len(set(report.sizes)) > 1:
        (height, width), (other_height, other_width) = sorted(set(report.sizes))[:2]
        raise DataError(
            f"{config.data}: recipe {config.recipe.name} does not crop, so all images must have one size; got "
            f"{width}×{height} and {other_width}×{other_height} (width × height), among others. Choose --recipe scratch."
        )
    if val_set is not None:
        held_out = require_sound(val_set, config.val_split, progress=progress)
        warnings += [f"WARNING {config.val_split}: {warning}" for warning in held_out.warnings()]
    return warnings, report


def class_weights_of(text: str | None, report: Report | None) -> list[float] | None:
    """What --class-weights says: a list, or for "balanced" the median of the classes' shares over each one's share."""
    if text is None:
        return None
    if text != "balanced":
        try:
            return [float(part) for part in text.split(",")]
        except ValueError as error:
            raise ValueError(f"--class-weights must be 'balanced' or numbers like 1,2,0.5; got {text!r}.") from error
    if report is None:
        raise ValueError("--class-weights balanced counts pixels: leave --no-check out.")
    pixels = report.pixels[: len(report.classes)].astype(float)
    occurring = pixels > 0
    weights = np.ones(len(pixels))
    weights[occurring] = np.median(pixels[occurring]) / pixels[occurring]
    return [round(float(weight), 6) for weight in weights]


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
    class_weights: str | None = None,
) -> dict[str, Any]:
    """Train as configured into the run folder `out`; returns the metrics of the last epoch.

    resume: continue from the folder's last checkpoint, with the data and machine given here.
    progress: a bar for every epoch; None shows it where there is a terminal. terminal: log lines there, too.
    class_weights: of a new run, as of `class_weights_of`; the numbers go into its configuration.
    """
    if workers < 0 or (stop_after is not None and stop_after < 1):
        raise ValueError(f"workers must be 0 or more, stop_after 1 or more; got {workers} and {stop_after}.")
    group = processes.join(device)
    try:
        folder = RunFolder(out)
        train_set, val_set = data_sets(config)
        notes: list[str] = []
        report = None
        if check and not resume and (group.is_first or class_weights == "balanced"):
            notes, report = inspect(config, train_set, val_set, group.is_first and sys.stderr.isatty())
        if not resume:
            config = replace(config, class_weights=class_weights_of(class_weights, report))
        if val_set is not None:
            shared = shared_names(config.train_split, train_set, config.val_split, val_set)
            notes = [f"validation on {config.val_split}: {len(val_set)} images", *notes]
            notes += [f"WARNING {line}" for line in shared]
        if group.is_first and not resume:
            folder = RunFolder.create(out, config)
        group.wait()
        validate = None if val_set is None else validation(val_set, group.device, workers, config.amp)
        going_on = resume and folder.last.exists()  # it brings its weights: no other file is needed
        trainer = Trainer(
            config, train_set, folder, group, validate, workers, progress, tensorboard, terminal, notes, not going_on
        )
        if resume:
            trainer.resume()
            if group.is_first and config != folder.read_config():
                folder.write_config(config)
        return trainer.fit(stop_after)
    finally:
        processes.leave()


def finished(folder: RunFolder, epochs: int) -> str | None:
    """A line if the run has done these epochs already."""
    if not folder.last.exists():
        return None
    done = checkpoints.load_header(folder.last).training.get("epoch", 0)
    if done not in [row["epoch"] for row in folder.read_metrics()]:  # ended between two files: resuming writes the line
        return None
    return f"{folder.path} is already finished: {done} of {epochs} epochs." if done >= epochs else None


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what --deterministic needs, read at first use
    try:
        return guarded(lambda: run(args, arguments))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 143  # 128 + SIGTERM, which schedulers understand
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, arguments: Sequence[str] | None) -> None:
    """The command."""
    config = resumed_config(args, arguments) if args.resume else config_of(args)
    if args.resume:
        told = finished(RunFolder(args.resume), min(config.recipe.epochs, args.stop_after or config.recipe.epochs))
        if told:
            print(f"{told} More with --epochs.")
            return
    train(
        config,
        args.resume or args.out,
        resume=bool(args.resume),
        device=args.device,
        workers=args.workers,
        check=args.check,
        stop_after=args.stop_after,
        tensorboard=args.tensorboard,
        class_weights=args.class_weights,
    )


if __name__ == "__main__":
    sys.exit(main())
