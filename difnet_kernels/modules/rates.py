"""Learning rates for the few parameters of a walk that need one of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from difnet_kernels.checks import check_rate
from difnet_kernels.modules.walk import CascadedRandomWalk

OF_GAMMA = 5.0  # at the rate of the rest γ stays near 0 for the whole of a short training
OF_GATES = 20.0  # a raw value moves its gate by a quarter of itself at most


def parameter_groups(model: nn.Module, lr: float, **options: Any) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer for a network that has walks in it.

    γ of every `CascadedRandomWalk` learns at 5 lr, the raw values of μ and β at 20 lr, both without weight decay (decay
    pulls γ to the identity and the gates to ½); everything else at lr.
    lr: the rate of the network. options: of the optimizer, as weight_decay, for everything else.
    Returns the groups that are not empty; parameters without a gradient (requires_grad=False) are left out.
    Raises TypeError for a model that is no module, TypeError or ValueError if lr is no positive number.

    >>> from difnet_kernels import DiffusedHead
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), DiffusedHead(nn.Conv2d(16, 5, 1), [16]))
    >>> groups = parameter_groups(model, lr=0.01, weight_decay=1e-4)
    >>> [(group["lr"], len(group["params"])) for group in groups]
    [(0.01, 8), (0.05, 1), (0.2, 2)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}. Pass the network, not its parameters.")
    check_rate("lr", lr)
    walks = [module for module in model.modules() if isinstance(module, CascadedRandomWalk)]
    gammas = [walk.gamma for walk in walks if walk.gamma is not None]
    gates = [raw for walk in walks for raw in (walk.mu_raw, walk.beta_raw)]
    own = {id(x) for x in (*gammas, *gates)}
    rest = [x for x in model.parameters() if id(x) not in own]
    groups = [
        {"params": rest, "lr": lr, **options},
        {"params": gammas, **options, "lr": OF_GAMMA * lr, "weight_decay": 0.0},
        {"params": gates, **options, "lr": OF_GATES * lr, "weight_decay": 0.0},
    ]
    for group in groups:
        group["params"] = [x for x in group["params"] if x.requires_grad]
    return [group for group in groups if group["params"]]
