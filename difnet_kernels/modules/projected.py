"""Ψ and the cascade as one operator, for evaluation, where a backend brings both in one launch.

Everything else is two operators, Ψ's and the cascade's, as walk.py calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from difnet_kernels import backends
from difnet_kernels.batch_norm import HOOKS, check_norm, fuses, of_the_batch
from difnet_kernels.checks import check_mask, check_projection
from difnet_kernels.mask import cleared, hidden, restored
from difnet_kernels.modules.projection import PsiProjection
from difnet_kernels.problem import ProjectedCascade


def backend_for(name: str | None, device: torch.device) -> str:
    """The backend that would run a cascade on `device` and brings Ψ in the same launch; "" if there is none. Nothing but
    the machine decides, so a compiler need not look inside."""
    for one in [backends.BACKENDS[name]] if name else backends.BACKENDS.values():
        if one.projected_cascade is None:
            continue
        least = ProjectedCascade.least(device)
        # whether it is for such devices at all comes first: a network on the CPU does not start the driver of a GPU, which
        # takes its time, and after which no forked process can use one
        if one.refuses(least.cascade) is not None or one.why_not(least) is not None:
            continue
        if name or one.not_preferred(least) is None:
            return one.name
    return ""


# what torch.compiler.assume_constant_result does; it imports a compiler first, which doubles the time of our import
backend_for._dynamo_marked_constant = True  # type: ignore[attr-defined]


def fits(
    backend: str,
    projections: nn.ModuleList,
    seed: Tensor,
    maps: Sequence[Tensor],
    gates: Sequence[Tensor],
    mask: Tensor | None,
    precision: str,
) -> bool:
    """Whether `backend` can run it as one operator: every Ψ is read and not called, with statistics of its own, and no
    gradient will be asked for. What it says no to, the two operators run or refuse."""
    exporting = torch.compiler.is_exporting()  # under a mode that has_torch_function takes for a tracer
    if torch.jit.is_tracing() or seed.numel() == 0 or (not exporting and has_torch_function((seed, *maps))):
        return False
    if not all(_is_read(project) for project in projections):
        return False
    if torch.is_grad_enabled():
        # an exported program may be trained later, if it was not exported under torch.no_grad()
        parameters = (x for project in projections for x in project.parameters())
        if exporting or any(x.requires_grad for x in (seed, *maps, *gates, *parameters)):
            return False
    weights: list[Any] = [project.weight for project in projections]
    problem = ProjectedCascade.of(seed, maps, weights, precision, bias=mask is not None)
    return backends.BACKENDS[backend].refuses_projected_cascade(problem) is None


def _is_read(project: Any) -> bool:
    """Whether Ψ is this package's own, on which nobody has put another forward or a hook, with a norm in evaluation."""
    if type(project) is not PsiProjection or not fuses(project.norm) or of_the_batch(project.norm):
        return False
    own = vars(project)
    if "forward" in own or own.get("_compiled_call_impl") is not None or any(own.get(hooks) for hooks in HOOKS):
        return False
    weight = project.weight
    return weight.dim() == 2 and not hasattr(weight, "device_mesh")


def projected_cascade(
    backend: str,
    walks: nn.ModuleList,
    seed: Tensor,
    maps: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    scale: float,
    precision: str,
    return_steps: bool,
) -> Tensor | tuple[Tensor, ...]:
    """`cascaded_random_walk` of the embeddings √scale Ψ(maps), for arguments that `fits` has let pass. Errors name the
    arguments as `psi_projection` does."""
    projections: list[Any] = list(walks)
    grid = seed.shape[2:]
    for project, x in zip(projections, maps, strict=True):
        check_projection(x, project.weight, project.bias, grid)
        check_norm(project.norm, x, project.weight)
    start, bias = seed, None
    if mask is not None:
        check_mask(mask, seed)
        seed, (bias,) = cleared(seed, mask), hidden([None], mask, mu.dtype)
    norms = [project.norm for project in projections]
    ones = (1,) * (3 - len(grid))  # images and signals are volumes with leading axes of one
    states = torch.ops.difnet_kernels.projected_cascade.default(
        seed,
        [x.view(*x.shape[:2], *ones, *x.shape[2:]) for x in maps],
        [project.weight for project in projections],
        [project.bias for project in projections],
        [None if norm is None else norm.running_mean for norm in norms],
        [None if norm is None else norm.running_var for norm in norms],
        [None if norm is None else norm.weight for norm in norms],
        [None if norm is None else norm.bias for norm in norms],
        [0.0 if norm is None else norm.eps for norm in norms],
        scale**0.5,
        mu,
        beta,
        bias,
        precision,
        backend,
        return_steps,
    )
    if mask is not None:
        states = [restored(y, start, mask) for y in states]
    return tuple(states) if return_steps else states[0]
