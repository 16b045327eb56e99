"""CUDA C++ kernels (csrc/cuda): a whole cascade in one launch, its gradients in another, and Ψ likewise, on NVIDIA GPUs from
sm_80 on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from difnet_kernels.backends import native
from difnet_kernels.problem import Problem, ProjectedCascade, Projection

MAX_EMBED, MAX_CLASSES = 128, 63  # the widest of the compiled kernels
MAX_CHANNELS = 2048  # of the features of Ψ; wider ones were never tested
# of those with Ψ in the launch
MAX_PROJECTED_EMBED, MAX_PROJECTED_WALKS = 64, 12
MIN_ARCH = 80
ROWS = 64  # nodes of a row tile, as csrc/cuda/arguments.h
# of Ψ (csrc/cuda/projection): nodes of its smallest tile, tiles of a group of its statistics, tiles of pixels of a round of
# its backward, channels at a time
PROJECTION_TILE, MERGED_TILES, ROUND_TILES, CHUNK = 32, 32, 512, 32
# architectures on which a committed results file shows these kernels right and faster than Triton's, which makes them the
# preferred ones there; until a card has spoken they run where they are named
PREFERRED_ON: frozenset[int] = frozenset()


@cache
def unusable() -> str | None:
    """Why no problem can run here: no library, none with CUDA, or no device, in the driver's words."""
    missing = native.unusable()
    if missing is not None:
        return missing
    if not hasattr(torch.ops.difnet_kernels, "why_no_cuda_device"):
        return "the library was compiled without its CUDA kernels (`python -m difnet_kernels info` says why)"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return str(torch.ops.difnet_kernels.why_no_cuda_device()) or None


@cache
def _arch(device: torch.device) -> int | None:
    """90 for sm_90; None where there is no card, which `unusable` tells."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def refuses(problem: Problem) -> str | None:
    """Why this problem cannot run although the backend can."""
    if problem.device.type != "cuda":
        return f"the tensors are on {problem.device}; move them to a CUDA device"
    return _too_much(problem) or _too_old(problem.device)


def _too_old(device: torch.device) -> str | None:
    arch = _arch(device)
    return (
        None if arch is None or arch >= MIN_ARCH else f"{device} is sm_{arch}; the kernels need sm_{MIN_ARCH} or later"
    )


def _too_much(problem: Problem) -> str | None:
    """What no card could run, and the backend that can."""
    if torch.float64 in problem.dtypes:
        return "float64 has no fast matrix units; use float32, or backend='reference'"
    if max(problem.embeds) > MAX_EMBED:
        return f"D = {max(problem.embeds)} is above {MAX_EMBED}; use backend='triton'"
    if problem.classes > MAX_CLASSES:
        return f"K = {problem.classes} is above {MAX_CLASSES}; use backend='triton'"
    return None


def refuses_projected_cascade(problem: ProjectedCascade) -> str | None:
    """What the launch with Ψ in it cannot hold; without it there are two."""
    for letter, size, most in (
        ("D", max(problem.cascade.embeds), MAX_PROJECTED_EMBED),
        ("C", max([one.channels for one in problem.projections]), MAX_CHANNELS),
        ("T", len(problem.projections), MAX_PROJECTED_WALKS),
    ):
        if size > most:
            return f"{letter} = {size} is above {most}; call psi_projection and cascaded_random_walk"
    return _too_much(problem.cascade)


def not_preferred(problem: Problem | Projection | ProjectedCascade) -> str | None:
    """Why it is not chosen by itself where it can run."""
    arch = _arch(problem.device)
    return None if arch in PREFERRED_ON else f"no committed results show it right and faster on sm_{arch}; name it"


def refuses_projection(problem: Projection) -> str | None:
    """Why this Ψ cannot run although the backend can."""
    if problem.device.type != "cuda":
        return f"the tensors are on {problem.device}; move them to a CUDA device"
    return projection_too_much(problem) or _too_old(problem.device)


def projection_too_much(problem: Projection) -> str | None:
    """What no card could run, and the backend that can."""
    if torch.float64 in problem.dtypes:
        return "float64 has no fast matrix units; use float32, or backend='reference'"
    if problem.embed > MAX_EMBED:
        return f"D = {problem.embed} is above {MAX_EMBED}; use backend='triton'"
    if problem.channels > MAX_CHANNELS:
        return f"C = {problem.channels} is above {MAX_CHANNELS}; use backend='triton'"
    return None


def counters_size(images: int, nodes: int, walks: int) -> int:
    """How many counters a launch uses (csrc/cuda/arguments.h)."""
    return 1 + images * (1 + walks) * (1 + -(-nodes // ROWS))


def projection_counters_size(images: int, grid: Sequence[int]) -> int:
    """How many counters a launch of Ψ's forward uses at most (csrc/cuda/projection/forward.h)."""
    tiles = images * -(-math.prod(grid) // PROJECTION_TILE)
    return 2 + -(-tiles // MERGED_TILES)


def projection_backward_counters_size(features: Tensor, round_tiles: int = 0) -> int:
    """How many counters a launch of Ψ's backward uses at most (csrc/cuda/projection/launches.h)."""
    tiles = features.shape[0] * -(-math.prod(features.shape[2:]) // PROJECTION_TILE)
    rounds, chunks = -(-tiles // (round_tiles or ROUND_TILES)), -(-features.shape[1] // CHUNK)
    return 2 + 2 * rounds + (rounds + 1) * chunks


def projected_counters_size(images: int, nodes: int, walks: int) -> int:
    """The same with Ψ in the launch: whether each W, and each ψ of an image, is there."""
    return counters_size(images, nodes, walks) + (images + 1) * walks


_counters: dict[tuple[torch.device, int], Tensor] = {}


def _counters_for(device: torch.device, size: int) -> Tensor:
    """Zeros, which a launch leaves as it finds them: one tensor per stream, whose launches run one after another. A graph
    may run beside them, so one that is captured makes its own."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    key = (device, stream.cuda_stream)
    kept = _counters.get(key)
    if kept is None or kept.numel() < size:
        # on a thread of its own: what this one allocates may come from the pool of a graph (a compiler warms up in it, and
        # takes everything in it back), may be lent for a while (`use_mem_pool`), or be a tensor of inference mode
        with ThreadPoolExecutor(1) as aside:
            kept = _counters[key] = aside.submit(_zeros_on, stream, max(size, 4096)).result()
    return kept


def _zeros_on(stream: torch.cuda.Stream, size: int) -> Tensor:
    torch.cuda.set_stream(stream)  # for good: `with torch.cuda.stream` would go back to card 0, and start it
    return torch.zeros(size, dtype=torch.int32, device=stream.device)


def cascade_forward(
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    precision: str,
    *,
    states: Sequence[Tensor],
    walked: Tensor,
    row_lse: Tensor,
    bias: Sequence[Tensor | None] = (),
    lse: Sequence[Tensor] = (),
) -> None:
    """W1-W5 into preallocated outputs. state (B, K, N), or None: then y⁰ = seed (W5). psi: T tensors (B, D_t, N). Any
    strides. bias: (B, N) fp32 of every walk or None (W1b), or no walk has one.

    states: T tensors (B, K, N) alike take every step, one takes the last. walked (T, B, N, K) and row_lse (T, B, N) are
    filled if they have room for all walks; row_lse is private: log2 units, of the logits without the row terms that softmax
    ignores. lse: T tensors (B, N), in natural units and with those terms, or none.
    """
    counters = _counters_for(seed.device, counters_size(seed.shape[0], seed.shape[2], len(psi)))
    kept = (walked, row_lse) if walked.shape[0] == len(psi) else (None, None)
    torch.ops.difnet_kernels.cuda_cascade_forward.default(
        state, seed, psi, _given(bias, mu), mu, beta, precision == "high", states, *kept, lse, counters
    )


def projected_cascade(
    seed: Tensor,
    features: Sequence[Tensor],
    weight: Sequence[Tensor],
    offset: Sequence[Tensor | None],
    mean: Sequence[Tensor | None],
    variance: Sequence[Tensor | None],
    slope: Sequence[Tensor | None],
    shift: Sequence[Tensor | None],
    eps: Sequence[float],
    root: float,
    grid: Sequence[int],
    mu: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    precision: str,
    *,
    states: Sequence[Tensor],
) -> None:
    """Ψ1 of every walk and W1-W5 into preallocated states, in one launch; arguments as ops/projected_cascade.py has them. seed
    and states (B, K, N), features T volumes (B, C_t, Z, H, W), any strides; grid: (Z, H, W) of the N nodes; weight (D, C_t) and
    the vectors (D,) of any dtype, contiguous; bias (B, N) fp32.

    ψ has the dtype to which features and weight promote, as psi_projection returns it, and stays in the launch's memory.
    """
    counters = _counters_for(seed.device, projected_counters_size(seed.shape[0], seed.shape[2], len(features)))
    torch.ops.difnet_kernels.cuda_projected_cascade.default(
        seed, features, weight, *(_given(each, mu) for each in (offset, mean, variance, slope, shift)), eps, root, grid,
        mu, beta, bias, precision == "high", states, counters,
    )  # fmt: skip


def cascade_backward(
    grad_states: Sequence[Tensor],
    state: Tensor | None,
    seed: Tensor,
    psi: Sequence[Tensor],
    mu: Tensor,
    beta: Tensor,
    walked: Tensor,
    row_lse: Tensor,
    precision: str,
    *,
    grad_state: Tensor | None,
    grad_seed: Tensor | None,
    grad_psi: Sequence[Tensor | None],
    grad_mu: Tensor | None,
    grad_beta: Tensor | None,
    bias: Sequence[Tensor | None] = (),
    grad_lse: Sequence[Tensor | None] = (),
    grad_bias: Sequence[Tensor | None] = (),
) -> None:
    """B1-B8 into preallocated gradients (None: not wanted), from what cascade_forward wrote to walked and row_lse.

    grad_states, S tensors (B, K, N), hold every step's gradient when S = T, else the last; any strides, 0 included.
    Without a state the gradient of y⁰ is added to grad_seed (W5). Where ψ or bias alone is learnt, walks before the first
    that learns are not run backwards. bias, grad_lse, grad_bias: T tensors (B, N) fp32, of which some may be None, or none.
    """
    counters = _counters_for(seed.device, counters_size(seed.shape[0], seed.shape[2], len(psi)))
    torch.ops.difnet_kernels.cuda_cascade_backward.default(
        grad_states, state, seed, psi, _given(bias, mu), mu, beta, walked, row_lse, precision == "high",
        _given(grad_lse, mu), grad_state, grad_seed, _given(grad_psi, mu), _given(grad_bias, mu), grad_mu, grad_beta,
        counters,
    )  # fmt: skip


def projection_forward(
    features: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    *,
    peak: Tensor,
    position: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
) -> None:
    """Ψ1 into preallocated results: features (B, C, Z, Y, X) of any strides, fp32 weight (D, C) -> peak and position
    (B, D, *grid), and in training mean and variance (D,) of all pixels."""
    counters = _counters_for(features.device, projection_counters_size(features.shape[0], peak.shape[2:]))
    torch.ops.difnet_kernels.cuda_projection_forward.default(
        features, weight, slope, peak, position, mean, variance, counters
    )


def projection_backward(
    grad_peak: Tensor,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    features: Tensor,
    weight: Tensor,
    position: Tensor,
    mean: Tensor | None,
    *,
    z: Tensor | None = None,
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Ψ2-Ψ4 into preallocated gradients (None: not wanted). z (B, D, Z, Y, X), if it is known, is not made again."""
    counters = _counters_for(features.device, projection_backward_counters_size(features))
    torch.ops.difnet_kernels.cuda_projection_backward.default(
        grad_peak, grad_mean, grad_variance, features, weight, position, z, mean, grad_features, grad_weight, counters
    )


def _given(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """A list as torch takes it: an empty tensor where there is none."""
    return [like.new_empty((0,)) if x is None else x for x in tensors]
