"""Everything that decides what a training run computes, in one record that is stored with the run."""

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
    (stored statistics, and their scales do not learn).
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

    def __post_init__(self) -> None:
        if self.amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(AMP)}; got {self.amp!r}.")
        if self.batch_norm not in BATCH_NORM:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM)}; got {self.batch_norm!r}.")
        for name in ("epochs", "batch_size", "crop"):
            if getattr(self.recipe, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self.recipe, name)}.")
        if self.val_every < 0 or self.clip < 0:
            raise ValueError(f"val_every and clip must not be negative; got {self.val_every} and {self.clip}.")

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
