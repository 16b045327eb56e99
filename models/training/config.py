"""Everything that decides what a training run computes, in one record that is stored with the run."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from models.training.recipes import Recipe, get_recipe

AMP = ("none", "bf16", "fp16")
BATCH_NORM = ("train", "sync", "frozen")


@dataclass(frozen=True)
class TrainConfig:
    """A resolved configuration: no defaults are left to look up elsewhere.

    batch_size counts images of one update over all processes. clip is the largest norm of the gradient, 0 for no
    clipping. batch_norm: "train" (each process its own statistics), "sync" (over all processes, GPUs only), "frozen"
    (stored statistics, and their scales do not learn). init_preprocessing: what the user says about weights that do not
    say it themselves. class_weights: how much an error at a pixel of each class counts, None for all alike. crf_loss:
    how much `training.crf_loss` counts beside the cross entropy, 0 leaves it out. save_every:
    updates between checkpoints, 0 for one an epoch; keep: how many of them stay beside the last.
    """

    model: str
    recipe: Recipe
    options: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    kind: str = "voc"
    sbd: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    backbone: str | None = None
    init: str | None = None
    reset_head: bool = False
    seed: int = 0
    amp: str = "none"
    channels_last: bool = True
    compile: bool = False
    clip: float = 0.0
    batch_norm: str = "train"
    deterministic: bool = False
    val_every: int = 1
    follow_links: bool = False
    image_suffix: str | None = None
    mask_suffix: str | None = None
    reduce_zero_label: bool = False
    init_preprocessing: str | None = None
    photometric: float = 0.0
    class_weights: list[float] | None = None
    crf_loss: float = 0.0
    save_every: int = 0
    keep: int = 0

    def __post_init__(self) -> None:
        if self.amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(AMP)}; got {self.amp!r}.")
        if self.batch_norm not in BATCH_NORM:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM)}; got {self.batch_norm!r}.")
        for name, low in (("lr", 1e-12), ("weight_decay", 0.0)):
            if not low <= getattr(self.recipe, name) < math.inf:
                raise ValueError(f"{name} must be a number from {low:g} on; got {getattr(self.recipe, name)}.")
        if self.class_weights is not None and not all(0 <= weight < math.inf for weight in self.class_weights):
            raise ValueError(f"class_weights must be numbers from 0 on; got {self.class_weights}.")
        for name in ("epochs", "batch_size", "crop"):
            if getattr(self.recipe, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self.recipe, name)}.")
        for name in ("val_every", "clip", "save_every", "keep", "crf_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`; ValueError names fields this version does not know."""
        unknown = sorted(set(stored) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"The stored configuration has unknown fields: {', '.join(unknown)}.")
        return cls(**{**stored, "recipe": Recipe(**stored["recipe"])})


def resolve_recipe(name: str, **overrides: Any) -> Recipe:
    """A named recipe with the given (not None) numbers in place of its own."""
    return replace(get_recipe(name), **{key: value for key, value in overrides.items() if value is not None})
