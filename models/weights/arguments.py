"""The options of every command that uses weights, and what they mean: a network, and how it wants its pixels."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models import checkpoints
from models.checkpoints import Checkpoint
from models.data.transforms import RECIPES, Recipe
from models.networks.deeplab import Network
from models.weights import guard


@dataclass(frozen=True)
class Restored:
    """A network with what belongs to it."""

    model: Network
    checkpoint: Checkpoint
    preprocessing: Recipe

    @property
    def classes(self) -> list[str]:
        """Their names; "class 3" where the file has none."""
        return list(self.checkpoint.classes) or [f"class {c}" for c in range(self.model.num_classes)]


def add_weight_arguments(parser: Any) -> None:
    """--checkpoint, and what files of others do not say; `parser` may be a group."""
    parser.add_argument(
        "--checkpoint", required=True, help="ours (.safetensors, or a run folder: its last), or an authors' .pth.tar"
    )
    parser.add_argument("--model", help="name of the network, for files that do not say")
    parser.add_argument("--options", help="options of the network as JSON, for files that do not say")
    parser.add_argument("--recipe", help=f"preprocessing, for files that do not say: {', '.join(RECIPES)}")


def restored(
    options: argparse.Namespace,
    classes: Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    advice: str = "",
) -> Restored:
    """The network that the options describe. classes, data: what it is about to meet, which must be its own."""
    model, checkpoint = checkpoints.restore(
        options.checkpoint, options.model, options=checkpoints.parse_options(options.options)
    )
    guard.require(checkpoint, options.checkpoint, classes=classes, data=data, advice=advice)
    name = guard.preprocessing_of(checkpoint, options.recipe, options.checkpoint)
    return Restored(model, checkpoint, RECIPES[name])
