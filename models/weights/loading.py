"""Filling networks: strictly. Anything missing, left over or of another shape is an error that names it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from models.networks.deeplab import Network
from models.networks.difnet import DifNet
from models.networks.resnet import ResNetTrunk
from models.weights.authors import StateDict
from models.weights.reading import below, read_tensors

# what has one row per class: the head, and the first layers of the importance map
BY_CLASS = (
    "seed_branch.head.",
    *(f"importance.layers.0.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    "importance.layers.2.weight",
)


class Weights(Protocol):
    """A checkpoint, or whatever else holds tensors by name."""

    state_dict: StateDict


@dataclass
class LoadReport:
    """What did not fit. Empty lists mean that every tensor found its place."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)  # kept fresh, because it belongs to other classes
    unread: list[str] = field(default_factory=list)  # stages of the similarity branch that no walk of the network reads

    def __str__(self) -> str:
        parts = [f"{name}: {', '.join(keys)}" for name, keys in vars(self).items() if keys]
        return "; ".join(parts) or "every tensor found its place"


def load_into(model: nn.Module, state: "StateDict | Weights", reset_head: bool = False) -> LoadReport:
    """Copy the weights into `model`, strictly.

    Batch counters (`num_batches_tracked`), which files older than torch 0.4.1 lack, start at zero instead. Stages of the
    similarity branch past the last one that a walk reads are left out.
    reset_head: keep the model's own head and importance map, which belong to its classes; the report names them.
    """
    state = state if isinstance(state, dict) else state.state_dict
    unread = sorted(key for key in state if _unread(model, key))
    ours = {key: tensor for key, tensor in state.items() if key not in set(unread)}
    target = model.state_dict()
    counters = {key for key in target if key.endswith("num_batches_tracked")}
    reset = sorted(key for key in target if key.startswith(BY_CLASS)) if reset_head else []
    report = LoadReport(
        missing=sorted(key for key in target if key not in ours and key not in counters and key not in reset),
        unexpected=sorted(key for key in ours if key not in target and not (reset_head and key.startswith(BY_CLASS))),
        reset=reset,
        unread=unread,
    )
    differing = sorted(key for key in ours if key in target and ours[key].shape != target[key].shape)
    by_class = [key for key in differing if key.startswith(BY_CLASS)]
    if by_class and not reset_head:
        shapes = "\n  ".join(f"{k}: file {tuple(ours[k].shape)}, network {tuple(target[k].shape)}" for k in by_class)
        raise ValueError(
            f"The checkpoint is for another number of classes. These keys differ:\n  {shapes}\n"
            f"Pass --reset-head (reset_head=True) to start these afresh and load the rest."
        )
    others = [key for key in differing if key not in by_class]
    if report.missing or report.unexpected or others:
        shapes = "; ".join(f"{k} {tuple(ours[k].shape)} for {tuple(target[k].shape)}" for k in others)
        told = LoadReport(report.missing, report.unexpected)
        raise ValueError(f"The checkpoint does not fit the network. {told}{f'; shapes: {shapes}' if others else ''}.")
    with torch.no_grad():
        for key, tensor in target.items():
            if key not in report.reset:
                tensor.copy_(ours[key]) if key in ours else tensor.zero_()
    return report


def _unread(model: nn.Module, key: str) -> bool:
    trunk = model.similarity_branch if isinstance(model, DifNet) else model
    if not isinstance(trunk, ResNetTrunk) or trunk.stages == 4:
        return False
    name = key.removeprefix("similarity_branch.") if isinstance(model, DifNet) else key
    if isinstance(model, DifNet) and name == key:
        return False
    return trunk.stages == 0 or name.startswith(tuple(f"layer{stage}." for stage in range(trunk.stages + 1, 5)))


def load_backbone(model: Network, path: str | Path) -> None:
    """Load a ResNet file (.pth or .safetensors) into the trunk of every branch.

    Prefixes (`state_dict.`, `module.`, `backbone.` …) and classifiers (`fc.`, `head.`) are left out; each branch gets its
    own copy. The keys must match exactly; ValueError lists what is missing or left over.
    """
    tensors = below(read_tensors(Path(path)), "conv1.weight")
    if not tensors:
        raise ValueError(f"{path} holds no ResNet: no key ends with conv1.weight.")
    trunk_keys = {key: tensor for key, tensor in tensors.items() if not key.startswith(("fc.", "head.", "classifier."))}
    for trunk in model.trunks():
        load_into(trunk, trunk_keys)
