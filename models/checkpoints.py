"""Weights on disk: our safetensors files, the authors' `.pth.tar`, bare state dicts.

python -m models.checkpoints inspect FILE
python -m models.checkpoints convert THEIRS.pth.tar OURS.safetensors --model difnet50
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from models.commands import guarded
from models.data.files import read_list
from models.data.transforms import RECIPES
from models.networks.builder import build_model
from models.networks.deeplab import Network
from models.weights import guard
from models.weights.authors import convert_authors, to_authors
from models.weights.checkpoint import CLASS_BIAS, Checkpoint, class_count
from models.weights.loading import LoadReport, load_backbone, load_into
from models.weights.reading import below, read_header, read_pth, read_safetensors, read_tensors
from models.writing import write_atomically

__all__ = ["Checkpoint", "LoadReport", "convert_authors", "load", "load_backbone", "load_into", "read_pth", "restore",
           "save", "to_authors"]  # fmt: skip

FORMAT = "difnet-checkpoint-1"
TRAINING = "training/"  # tensors of the optimiser live under this prefix, so that one file is one atomic state


def save(
    path: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    training_tensors: Mapping[str, torch.Tensor] | None = None,
    preprocessing: str | None = None,
    data: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and what belongs to them as one safetensors file, by an atomic rename.

    preprocessing: by default that of the recipe. ValueError if it is unknown, if the class list does not fit the network,
    or if a tensor is not finite. Whatever goes wrong (a full disk, a signal), a file already at `path` stays as it was.
    """
    tensors = {**model.state_dict(), **{TRAINING + key: value for key, value in (training_tensors or {}).items()}}
    preprocessing = preprocessing or (recipe or {}).get("transform")
    if preprocessing is not None and preprocessing not in RECIPES:
        raise ValueError(f"preprocessing must be one of {', '.join(RECIPES)}; got {preprocessing!r}.")
    if classes and CLASS_BIAS in tensors and len(classes) != class_count(tensors):
        raise ValueError(f"the class list must name {class_count(tensors)} classes; got {len(classes)}.")
    if broken := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise NotFinite(f"{path} is not written: {len(broken)} tensors are not finite, first {broken[0]}.")
    meta = {
        "model": getattr(model, "model_name", None),
        "options": getattr(model, "options", {}),
        "classes": list(classes),
        "recipe": dict(recipe or {}),
        "metrics": dict(metrics or {}),
        "training": dict(training or {}),
        "preprocessing": preprocessing,
        "data": dict(data or {}),
        "environment": dict(environment or {}),
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


class NotFinite(ValueError):
    """Weights that are not numbers: they are not written."""


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint: ours (.safetensors, or a run folder, of which it is `last`), the authors' (.pth, .pth.tar), or
    a bare state dict of a network of ours (.pth). Tensors only, no code runs.

    Other files than ours carry no model name, classes or recipe: those fields stay empty. The authors' code has one
    preprocessing, so its format implies it. ValueError for other content, which says what the file seems to be.
    """
    path = file_of(path)
    if path.suffix != ".safetensors":
        return _of_others(path)
    tensors, header = read_safetensors(path)
    meta = _meta(path, header)
    return Checkpoint(
        {key: value for key, value in tensors.items() if not key.startswith(TRAINING)},
        training_tensors={k.removeprefix(TRAINING): v for k, v in tensors.items() if k.startswith(TRAINING)},
        **meta,
    )


def load_header(path: str | Path) -> Checkpoint:
    """A checkpoint of ours without its tensors: quick, whatever its size."""
    path = file_of(path)
    return Checkpoint({}, **_meta(path, read_header(path)))


def file_of(path: str | Path) -> Path:
    """The checkpoint that a path means: of a run folder its last."""
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / "last.safetensors").exists():
        raise FileNotFoundError(
            f"{path} is a folder without last.safetensors: no run, or one that has saved nothing yet."
        )
    return path / "last.safetensors"


def _meta(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file without the header {FORMAT!r}; it has {header or 'no header'}. "
            f"For ResNet weights use load_backbone (--backbone)."
        )
    fields = ("model", "options", "classes", "recipe", "metrics", "training", "preprocessing", "data", "environment")
    meta = {key: json.loads(header[key]) for key in fields if key in header}
    meta["model_name"] = meta.pop("model", None)
    if meta.get("preprocessing") is None:  # files from before it had a field of its own
        meta["preprocessing"] = meta.get("recipe", {}).get("transform")
    return meta


def _of_others(path: Path) -> Checkpoint:
    tensors = read_tensors(path)
    if ours := below(tensors, "seed_branch.trunk.conv1.weight"):
        return Checkpoint(ours)
    if "fc.weight" in below(tensors, "conv1.weight") or not any("layer5." in key for key in tensors):
        kind = "a ResNet classifier" if below(tensors, "layer1.0.conv1.weight") else "another network"
        raise ValueError(
            f"{path} must hold a network of ours or of DifNet's authors; it seems to hold {kind} "
            f"({', '.join(sorted(tensors)[:3])}, …). A ResNet is what --backbone takes."
        )
    return Checkpoint(convert_authors(tensors), preprocessing="authors")


def restore(
    path: str | Path, name: str | None = None, num_classes: int | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Network, Checkpoint]:
    """The network of a checkpoint with its weights. `name` and `options` are for files that do not carry them; ValueError
    if they contradict a file that does."""
    checkpoint = load(path)
    guard.require(checkpoint, path, model=name, options=options, advice="Leave --model and --options to the file.")
    name = name or checkpoint.model_name
    if name is None:
        raise ValueError(f"{path} does not say which network it holds; pass its name (--model difnet50).")
    model = build_model(name, num_classes or checkpoint.num_classes, **(options or checkpoint.options))
    load_into(model, checkpoint.state_dict)
    return model, checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.checkpoints", description="Look into or convert weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what a checkpoint holds")
    inspect.add_argument("file", type=Path)
    convert = commands.add_parser("convert", help="an authors' .pth.tar, or a bare state dict -> our .safetensors")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--model", help="the network it holds, e.g. difnet50, if the file does not say")
    convert.add_argument("--options", help="its options as JSON, if the file does not say")
    convert.add_argument("--recipe", help="its preprocessing, if the file does not say: default or authors")
    convert.add_argument("--class-list", type=Path, help="text file, one class name per line, background first")
    options = parser.parse_args(arguments)
    return guarded(
        lambda: print(describe(load(options.file)) if options.command == "inspect" else convert_file(options))
    )


def convert_file(options: argparse.Namespace) -> str:
    """Write `source` in our format, with everything that belongs to it; says what was written."""
    model, checkpoint = restore(options.source, options.model, options=parse_options(options.options))
    preprocessing = guard.preprocessing_of(checkpoint, options.recipe, options.source)
    classes = read_list(options.class_list) if options.class_list else checkpoint.classes
    if options.class_list:
        guard.require(checkpoint, options.source, classes=classes)
    save(
        options.target,
        model,
        classes=classes,
        recipe=checkpoint.recipe,
        metrics=checkpoint.metrics,
        preprocessing=preprocessing,
        data=checkpoint.data,
        environment=checkpoint.environment,
    )
    return f"{options.target}: {model.model_name}, {model.num_classes} classes, preprocessing {preprocessing}"


def parse_options(text: str | None) -> dict[str, Any] | None:
    """Options of a network from JSON; ValueError unless it is an object. None stays None."""
    if text is None:
        return None
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options must be JSON; got {text!r} ({error}).") from error
    if not isinstance(options, dict):
        raise ValueError(f"""--options must be JSON like '{{"walks": [1, 3, 5]}}'; got {text!r}.""")
    return options


def describe(checkpoint: Checkpoint) -> str:
    """A few lines about a checkpoint for people."""
    state = checkpoint.state_dict
    lines = [
        f"network   {checkpoint.model_name or '(not recorded)'} {checkpoint.options or ''}".rstrip(),
        f"classes   {class_count(state)} {' '.join(checkpoint.classes)}".rstrip(),
        f"pixels    {checkpoint.preprocessing or '(preprocessing not recorded)'}",
        f"tensors   {len(state)}, {sum(tensor.numel() for tensor in state.values()):,} numbers",
        f"recipe    {checkpoint.recipe.get('name', '(not recorded)')}",
        f"data      {json.dumps(checkpoint.data, ensure_ascii=False)}",
        f"machine   {json.dumps(checkpoint.environment, ensure_ascii=False)}",
        f"metrics   {json.dumps(checkpoint.metrics)}",
    ]
    for name, raw in (("μ", "walk.mu_raw"), ("β", "walk.beta_raw")):
        if raw in state:
            lines.append(f"{name}         " + " ".join(f"{value:.4f}" for value in torch.sigmoid(-state[raw].float())))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
