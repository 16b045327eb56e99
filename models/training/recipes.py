"""Training recipes: the numbers of an optimisation that belong together, and which parameter gets which rate."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from difnet_kernels.modules.rates import OF_GAMMA, OF_GATES


@dataclass(frozen=True)
class Recipe:
    """SGD with the poly schedule. One iteration is one update; lr(i) = lr · (1 - i / total)^power."""

    name: str
    lr: float
    weight_decay: float
    groups: str  # which parameter gets which multiple of lr, see `_groups`
    transform: str  # preprocessing and augmentation, by its name in models.data
    augment: bool = True  # flip, scale and crop; without, images must be of one size
    momentum: float = 0.9
    power: float = 0.9
    epochs: int = 200
    batch_size: int = 16
    crop: int = 321

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


RECIPES = {
    # DeepLab's groups with this project's preprocessing: what the paper's "same as DeepLab" says
    "deeplab": Recipe("deeplab", lr=2.5e-4, weight_decay=5e-4, groups="deeplab", transform="default"),
    # what the released code does: ten times the rate on every parameter, BGR input
    "authors": Recipe("authors", lr=2.5e-4, weight_decay=5e-4, groups="same", transform="authors"),
    # no pretrained weights, small images, minutes instead of days: generated data sets
    "scratch": Recipe(
        "scratch", lr=0.05, weight_decay=1e-4, groups="flat", transform="default", epochs=40, batch_size=16, crop=97
    ),
    # the same where there are so many generated images that they need no augmentation, and a few hundred updates
    "generated": Recipe(
        "generated",
        lr=0.05,
        weight_decay=1e-4,
        groups="quick_gates",
        transform="default",
        augment=False,
        epochs=8,
        batch_size=8,
        crop=97,
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`; ValueError lists the valid names."""
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}. Valid names: {', '.join(RECIPES)}.")
    return RECIPES[name]


def poly(iteration: int, total: int, power: float) -> float:
    """The factor of update `iteration` (from 0) out of `total`: 1 at the first, small but never 0 at the last."""
    return (1 - iteration / total) ** power


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over groups that carry `lr_scale`; the caller sets lr = recipe.lr · lr_scale · poly before every update."""
    groups = [
        {"params": params, "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for scale, decay, params in _groups(model, recipe)
        if params
    ]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _groups(model: nn.Module, recipe: Recipe) -> list[tuple[float, float, list[nn.Parameter]]]:
    """(multiple of lr, weight decay, parameters) by recipe.groups: "flat" is lr itself and "same" ten times lr, everywhere;
    "quick_gates" is flat but for γ, μ and β of the walks, as `difnet_kernels.parameter_groups`; "deeplab" has 1× trunks,
    10× new weights, 20× new biases."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if recipe.groups in ("same", "flat"):
        scale = 10.0 if recipe.groups == "same" else 1.0
        return [(scale, recipe.weight_decay, [p for _, p in parameters])]
    gammas = [p for name, p in parameters if _is_gamma(name)]
    if recipe.groups == "quick_gates":
        # the paper's gates move for 100,000 updates; at the rate of a weight, a few hundred would leave them at 0.5
        gates = [p for name, p in parameters if name.endswith("_raw")]
        rest = [p for name, p in parameters if not name.endswith("_raw") and not _is_gamma(name)]
        return [(1.0, recipe.weight_decay, rest), (OF_GAMMA, 0.0, gammas), (OF_GATES, 0.0, gates)]
    trunks = [(name, p) for name, p in parameters if _in_trunk(name)]
    new = [(name, p) for name, p in parameters if not _in_trunk(name)]
    return [
        (1.0, recipe.weight_decay, [p for _, p in trunks]),
        (10.0, recipe.weight_decay, [p for name, p in new if _is_weight(name)]),
        # DeepLab does not decay biases; a decay of the gates' raw values would pull μ and β to 0.5
        (10.0, 0.0, [p for name, p in new if name.endswith("_raw")]),
        (10.0 * OF_GAMMA, 0.0, gammas),
        (20.0, 0.0, [p for name, p in new if name.endswith("bias")]),
    ]


def _in_trunk(name: str) -> bool:
    return name.startswith(("seed_branch.trunk.", "similarity_branch."))


def _is_weight(name: str) -> bool:
    return not name.endswith(("_raw", "bias")) and not _is_gamma(name)


def _is_gamma(name: str) -> bool:
    """γ of a walk in residual form; the γ of a normalisation is called weight."""
    return name.endswith(".gamma")
