"""Weights on disk: our safetensors files, the authors' `.pth.tar`, torchvision's ResNet files.

python -m models.checkpoints inspect FILE
python -m models.checkpoints convert THEIRS.pth.tar OURS.safetensors --model difnet50
"""

import argparse
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from models.networks.authors import StateDict, convert_authors, to_authors
from models.networks.builder import build_model
from models.networks.deeplab import Network
from models.writing import write_atomically

__all__ = ["Checkpoint", "LoadReport", "convert_authors", "load", "load_backbone", "load_into", "restore", "save",
           "to_authors"]  # fmt: skip

FORMAT = "difnet-checkpoint-1"
TRAINING = "training/"  # tensors of the optimiser live under this prefix, so that one file is one atomic state


@dataclass
class Checkpoint:
    """A trained network. `training` is what resuming needs; it is empty in files meant for use."""

    state_dict: StateDict
    model_name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    training_tensors: StateDict = field(default_factory=dict)


@dataclass
class LoadReport:
    """What did not fit. Empty lists mean that every tensor found its place."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)  # kept fresh because of another class count

    def __str__(self) -> str:
        parts = [f"{name}: {', '.join(keys)}" for name, keys in vars(self).items() if keys]
        return "; ".join(parts) or "every tensor found its place"


def save(
    path: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    training_tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, class list, recipe and metrics as one safetensors file, by an atomic rename.

    Whatever goes wrong (a full disk, a signal), a file already at `path` stays as it was. OSError says why.
    """
    tensors = {**model.state_dict(), **{TRAINING + key: value for key, value in (training_tensors or {}).items()}}
    meta = {
        "model": getattr(model, "model_name", None),
        "options": getattr(model, "options", {}),
        "classes": list(classes),
        "recipe": dict(recipe or {}),
        "metrics": dict(metrics or {}),
        "training": dict(training or {}),
    }
    header = {"format": FORMAT, **{key: json.dumps(value) for key, value in meta.items()}}
    # contiguous copies: the file knows shapes only, and channels_last weights must not share views
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}

    def write(temporary: str) -> None:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:  # its own type for the I/O error of a full disk
            raise OSError(str(error)) from error

    write_atomically(Path(path), write)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours (.safetensors) or of the authors (.pth, .pth.tar; tensors only, no code runs).

    Authors' files carry no model name, classes or recipe: those fields stay empty. ValueError for other content.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return Checkpoint(convert_authors(read_pth(path)))
    tensors, header = _read_safetensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file without the header {FORMAT!r}; it has {header or 'no header'}. "
            f"For ResNet weights use load_backbone (--backbone)."
        )
    meta = {key: json.loads(header[key]) for key in ("model", "options", "classes", "recipe", "metrics", "training")}
    return Checkpoint(
        {key: value for key, value in tensors.items() if not key.startswith(TRAINING)},
        meta.pop("model"),
        **meta,
        training_tensors={k.removeprefix(TRAINING): v for k, v in tensors.items() if k.startswith(TRAINING)},
    )


def restore(path: str | Path, name: str | None = None, num_classes: int | None = None) -> tuple[Network, Checkpoint]:
    """The network of a checkpoint with its weights. `name` is needed only for files that do not carry it."""
    checkpoint = load(path)
    name = name or checkpoint.model_name
    if name is None:
        raise ValueError(f"{path} does not say which network it holds; pass its name (--model difnet50).")
    num_classes = num_classes or class_count(checkpoint.state_dict)
    model = build_model(name, num_classes, **checkpoint.options)
    load_into(model, checkpoint)
    return model, checkpoint


def class_count(state_dict: StateDict) -> int:
    """How many classes the head of a network of ours has."""
    return state_dict["seed_branch.head.branches.0.bias"].numel()


def load_into(model: nn.Module, checkpoint: Checkpoint | StateDict, reset_head: bool = False) -> LoadReport:
    """Copy the weights into `model`, strictly: anything missing, left over or of another shape is an error.

    Batch counters (`num_batches_tracked`), which files older than torch 0.4.1 lack, start at zero instead.
    reset_head: keep the model's own head and importance map where the class counts differ; the report names them.
    """
    ours = checkpoint.state_dict if isinstance(checkpoint, Checkpoint) else dict(checkpoint)
    target = model.state_dict()
    counters = {key for key in target if key.endswith("num_batches_tracked")}
    report = LoadReport(
        missing=sorted(key for key in target if key not in ours and key not in counters),
        unexpected=sorted(key for key in ours if key not in target),
    )
    differing = sorted(key for key in ours if key in target and ours[key].shape != target[key].shape)
    by_classes = [key for key in differing if key.startswith(("seed_branch.head.", "importance."))]
    if by_classes and not reset_head:
        shapes = "\n  ".join(f"{k}: file {tuple(ours[k].shape)}, network {tuple(target[k].shape)}" for k in by_classes)
        raise ValueError(
            f"The checkpoint is for another number of classes. These keys differ:\n  {shapes}\n"
            f"Pass --reset-head (reset_head=True) to start these afresh and load the rest."
        )
    others = [key for key in differing if key not in by_classes]
    if report.missing or report.unexpected or others:
        shapes = "; ".join(f"{k} {tuple(ours[k].shape)} for {tuple(target[k].shape)}" for k in others)
        raise ValueError(f"The checkpoint does not fit the network. {report}{f'; shapes: {shapes}' if others else ''}.")
    report.reset = by_classes
    with torch.no_grad():
        for key, tensor in target.items():
            if key in report.reset:
                continue
            tensor.copy_(ours[key]) if key in ours else tensor.zero_()
    return report


def load_backbone(model: Network, path: str | Path) -> None:
    """Load a torchvision ResNet file (.pth or .safetensors) into the trunk of every branch, without `fc.*`.

    Each branch gets its own copy. The keys must match exactly; ValueError lists what is missing or left over.
    """
    path = Path(path)
    tensors = _read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pth(path)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    for trunk in model.trunks():
        load_into(trunk, tensors)


def read_pth(path: str | Path) -> dict[str, Any]:
    """Unpickle a .pth file with tensors (and numpy numbers, which the authors' files hold) only."""
    try:
        with torch.serialization.safe_globals(_numpy_number_types()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and numbers, so it is not read: loading it could run code. Re-save its "
            f"state dict alone, in a place you trust. ({str(error).splitlines()[0]})"
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is empty, cut short or not a torch file: {error!r}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a state dict; got a {type(content).__name__}.")
    return content


def _numpy_number_types() -> list[Any]:
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # numpy.core.multiarray.scalar, under whichever name this numpy has it
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype,
            type(np.dtype(np.float32)), type(np.dtype(np.float64)), type(np.dtype(np.int64))]  # fmt: skip


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is cut short: {error}.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.checkpoints", description="Look into or convert weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what a checkpoint holds")
    inspect.add_argument("file", type=Path)
    convert = commands.add_parser("convert", help="an authors' .pth.tar -> our .safetensors")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--model", required=True, help="the network it holds, e.g. difnet50")
    convert.add_argument("--class-list", type=Path, help="text file, one class name per line, background first")
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            print(describe(load(options.file)))
        else:
            classes = options.class_list.read_text().split("\n") if options.class_list else []
            model, _ = restore(options.source, options.model)
            save(options.target, model, classes=[name for name in classes if name])
            print(f"{options.target}: {options.model}, {class_count(model.state_dict())} classes")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def describe(checkpoint: Checkpoint) -> str:
    """A few lines about a checkpoint for people."""
    state = checkpoint.state_dict
    lines = [
        f"network   {checkpoint.model_name or '(not recorded)'} {checkpoint.options or ''}".rstrip(),
        f"classes   {class_count(state)} {' '.join(checkpoint.classes)}".rstrip(),
        f"tensors   {len(state)}, {sum(tensor.numel() for tensor in state.values()):,} numbers",
        f"recipe    {checkpoint.recipe.get('name', '(not recorded)')}",
        f"metrics   {json.dumps(checkpoint.metrics)}",
    ]
    for name, raw in (("μ", "walk.mu_raw"), ("β", "walk.beta_raw")):
        if raw in state:
            lines.append(f"{name}         " + " ".join(f"{value:.4f}" for value in torch.sigmoid(-state[raw].float())))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
