"""What belongs to weights stays with them: one guard between a file of weights and whatever it is about to meet.

Preprocessing, class list, class count, network options, data and machine are written with the weights (`checkpoints.save`).
Here they are compared with what a command wants. Nothing is guessed: what a file does not say is asked for, and what
differs is named, all of it at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.data.transforms import RECIPES
from models.networks.builder import FRESH_ONLY
from models.weights.checkpoint import Checkpoint


def preprocessing_of(checkpoint: Checkpoint, given: str | None, source: str | Path) -> str:
    """The preprocessing of the weights: what their file says; or, only where it says nothing, what the user does."""
    if given is not None and given not in RECIPES:
        raise ValueError(f"preprocessing must be one of {', '.join(RECIPES)}; got {given!r}.")
    if checkpoint.preprocessing is None and given is None:
        raise ValueError(
            f"{source} does not say how pixels became the numbers that the network was trained on. Say it with --recipe "
            f"{' or --recipe '.join(RECIPES)} (docs/models.md); a wrong one costs half of the accuracy, silently."
        )
    if checkpoint.preprocessing is not None and given not in (None, checkpoint.preprocessing):
        raise ValueError(
            f"{source} was trained with preprocessing {checkpoint.preprocessing}; got --recipe {given}. Leave it out: the "
            "weights bring their own."
        )
    return checkpoint.preprocessing or str(given)


def require(
    checkpoint: Checkpoint,
    source: str | Path,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: str | None = None,
    data: Mapping[str, Any] | None = None,
    advice: str = "",
) -> None:
    """ValueError that names every difference between the file and what is given; what is None is not compared."""
    found = differences(
        checkpoint, model=model, options=options, classes=classes, preprocessing=preprocessing, data=data
    )
    if found:
        raise ValueError(f"{source} does not belong to this: {'; '.join(found)}." + (f" {advice}" if advice else ""))


def differences(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> list[str]:
    """A few words per difference: what, the file's, this one's. What either side does not say is no difference."""
    found = []
    if model is not None and checkpoint.model_name not in (None, model):
        found.append(f"network {checkpoint.model_name}, here {model}")
    if options is not None and checkpoint.model_name is not None:
        ours, theirs = _lasting(checkpoint.options), _lasting(options)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                found.append(f"option {key} {_shown(ours, key)}, here {_shown(theirs, key)}")
    if classes is not None:
        found += _class_differences(checkpoint, list(classes))
    if preprocessing is not None and checkpoint.preprocessing not in (None, preprocessing):
        found.append(f"preprocessing {checkpoint.preprocessing}, here {preprocessing}")
    for key, value in (data or {}).items():
        if key in checkpoint.data and checkpoint.data[key] != value:
            found.append(f"{key.replace('_', ' ')} {checkpoint.data[key]}, here {value}")
    return found


def _class_differences(checkpoint: Checkpoint, classes: list[str]) -> list[str]:
    if len(classes) != checkpoint.num_classes:
        return [f"{checkpoint.num_classes} classes, here {len(classes)}"]
    if not checkpoint.classes or list(checkpoint.classes) == classes:
        return []
    pairs = zip(checkpoint.classes, classes, strict=True)
    index, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    moved = " (the same names: they must be those of the checkpoint, in its order)"
    same = (
        moved if sorted(checkpoint.classes) == sorted(classes) else " (classes must be the checkpoint's, in its order)"
    )
    return [f"class {index} {theirs!r}, here {ours!r}{same}"]


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that decide what weights mean, as JSON would give them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if k not in FRESH_ONLY}


def _shown(options: Mapping[str, Any], key: str) -> str:
    return str(options[key]) if key in options else "at its default"
