"""What a file of weights carries, once it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from models.weights.authors import StateDict

CLASS_BIAS = "seed_branch.head.branches.0.bias"


@dataclass
class Checkpoint:
    """A trained network. `training` is what resuming needs; it is empty in files meant for use.

    preprocessing: how pixels became numbers (its name in models.data.transforms), None if the file does not say.
    data: what it was trained on: number of images, layout, how masks were read. environment: backend, instruction set …
    """

    state_dict: StateDict
    model_name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    training_tensors: StateDict = field(default_factory=dict)
    preprocessing: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return class_count(self.state_dict)


def class_count(state_dict: Mapping[str, torch.Tensor]) -> int:
    """How many classes the head of a network of ours has."""
    if CLASS_BIAS not in state_dict:
        raise ValueError(f"the weights have no {CLASS_BIAS}: they are not those of a network of ours.")
    return state_dict[CLASS_BIAS].numel()
