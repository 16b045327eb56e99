"""The public functions: check at the door, then one operator call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from difnet_kernels import backends, composed
from difnet_kernels import ops as _ops  # noqa: F401  registers torch.ops.difnet_kernels
from difnet_kernels.batch_norm import check_norm, fuses, normalise, of_the_batch, slope
from difnet_kernels.checks import (
    check_bias,
    check_biases,
    check_embeddings,
    check_field,
    check_gate,
    check_gates,
    check_mask,
    check_nodes,
    check_on_grid,
    check_precision,
    check_projection,
    check_state,
)
from difnet_kernels.mask import cleared, hidden, restored
from difnet_kernels.problem import accumulation_dtype, flat


@overload
def cascaded_random_walk(
    seed: Tensor,
    psi: Sequence[Tensor] | Tensor,
    mu: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    bias: Tensor | Sequence[Tensor | None] | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_steps: Literal[False] = ...,
) -> Tensor: ...


@overload
def cascaded_random_walk(
    seed: Tensor,
    psi: Sequence[Tensor] | Tensor,
    mu: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    bias: Tensor | Sequence[Tensor | None] | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_steps: Literal[True],
) -> tuple[Tensor, ...]: ...


@overload
def cascaded_random_walk(
    seed: Tensor,
    psi: Sequence[Tensor] | Tensor,
    mu: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    bias: Tensor | Sequence[Tensor | None] | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_steps: bool,
) -> Tensor | tuple[Tensor, ...]: ...


def cascaded_random_walk(
    seed: Tensor,
    psi: Sequence[Tensor] | Tensor,
    mu: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    bias: Tensor | Sequence[Tensor | None] | None = None,
    mask: Tensor | None = None,
    precision: str = "high",
    backend: str | None = None,
    return_steps: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Diffuse `seed` over the image by T gated random walks (Jiang et al. 2018, Eqs. 3-5; W1-W5).

        y⁰ = seed;   yᵗ⁺¹ = βₜ (μₜ Pₜ yᵗ + (1 - μₜ) seed) + (1 - βₜ) yᵗ;   Pₜ = softmax_rows(ψₜ ψₜᵀ + bₜ)

    seed: (B, K, *S) class scores in any unit; the output has the same unit (rows of P sum to one).
    psi:  T embeddings (B, D_t, *S), or one tensor (T, B, D, *S); logits are inner products with no 1/√D, as in the paper.
    mu, beta: (T,) probabilities (not logits). Tensors are used as they are, without waiting for the device; Python
          floats are checked against [0, 1].
    bias: None; one tensor (B, *S) for every walk; one tensor (T, B, *S); or a sequence of T, of which some may be None.
          b_j is added to the logits of *column* j (W1b), in their natural unit: every node sees node j exp(b_j) times as
          much. -inf is allowed, and takes the column out; a row of such columns alone is NaN. 1 in place of B serves
          every image.
    mask: bool (B, *S), or None: False says that the node does not exist, as padding does not. Nobody looks at it, whatever
          its fields hold, NaN included; it returns its seed. The others get what a walk over them alone would give.
    precision: "high", logits as good as fp32; "medium", one fp16 or TF32 product where that is faster (docs/math.md
          has the measured error of both). On a CPU both are fp32, but where a matrix unit multiplies: there "medium" is
          16 binary digits (docs/math.md).
    backend: None chooses; a name runs there or raises, it never falls back.
    Returns yᵀ with the shape, dtype and memory format of `seed`; with `return_steps` the tuple (y¹, ..., yᵀ).

    Fields and bias may mix float16, bfloat16, float32 and float64 and have any strides; sums are fp32, or fp64 once one of
    them is fp64.
    Where seed and psi are both 16-bit, a backend may multiply weights rounded to 16 bits; a fp32 seed keeps them fp32.
    Differentiable once, in reverse mode, in all but the mask. Memory O(T·B·N·(K + D)), never O(N²). Deterministic, bit for bit.
    Raises TypeError or ValueError for inputs that do not fit, BackendUnavailable (with the reason of each backend) if
    none can run it.

    >>> seed, psi = torch.randn(1, 21, 41, 41), [torch.randn(1, 64, 41, 41) for _ in range(5)]
    >>> cascaded_random_walk(seed, psi, mu=[0.5] * 5, beta=[0.5] * 5).shape
    torch.Size([1, 21, 41, 41])
    """
    inputs = (seed, *_each(psi), mu, beta, *_each(bias), mask)
    if has_torch_function(inputs):  # as torch's own functions do it: a tracer records the call
        options: dict[str, Any] = {"precision": precision, "backend": backend, "return_steps": return_steps}
        options |= {"bias": bias, "mask": mask}
        return handle_torch_function(cascaded_random_walk, inputs, seed, psi, mu, beta, **options)  # type: ignore[arg-type]
    if not isinstance(seed, Tensor) or bias is not None or mask is not None:
        check_field("seed", seed)
    embeddings = check_embeddings(psi, seed)
    biases = check_biases(bias, seed, len(embeddings))
    accumulate = accumulation_dtype(seed, (*embeddings, *biases))
    mu = check_gates("mu", mu, len(embeddings), seed, accumulate)
    beta = check_gates("beta", beta, len(embeddings), seed, accumulate)
    check_precision(precision)
    backends.check_name(backend)
    given = _one_form(biases, seed, accumulate) if biases else []
    start = seed
    if mask is not None:
        check_mask(mask, seed)
        for t, p in enumerate(embeddings):
            check_on_grid(f"psi[{t}]", p, seed)
        seed, embeddings = cleared(seed, mask), [cleared(p, mask) for p in embeddings]
        given = hidden(biases or [None] * len(embeddings), mask, accumulate)
    gradients = _differentiated(seed, *embeddings, mu, beta, *given)
    # the bias also where there is none: torch keeps compiled graphs on disk under the call, and one that looked like that of
    # an earlier version would get the backward of that version
    states, *_ = torch.ops.difnet_kernels.cascade_forward.default(
        None, seed, embeddings, mu, beta, precision, backend or "", return_steps, gradients, given or None
    )
    if mask is not None:
        states = [restored(y, start, mask) for y in states]
    return tuple(states) if return_steps else states[0]


def _each(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else (x,)


def _one_form(biases: Sequence[Tensor | None], seed: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """As the operator has them: of the dtype in which the sums run, a number for every image; empty for None."""
    shape = (seed.shape[0], *seed.shape[2:])
    return [seed.new_empty(0, dtype=dtype) if b is None else b.to(dtype).expand(shape) for b in biases]


@overload
def random_walk(
    state: Tensor,
    psi: Tensor,
    seed: Tensor,
    mu: Tensor | float,
    beta: Tensor | float,
    *,
    bias: Tensor | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def random_walk(
    state: Tensor,
    psi: Tensor,
    seed: Tensor,
    mu: Tensor | float,
    beta: Tensor | float,
    *,
    bias: Tensor | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
def random_walk(
    state: Tensor,
    psi: Tensor,
    seed: Tensor,
    mu: Tensor | float,
    beta: Tensor | float,
    *,
    bias: Tensor | None = ...,
    mask: Tensor | None = ...,
    precision: str = ...,
    backend: str | None = ...,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def random_walk(
    state: Tensor,
    psi: Tensor,
    seed: Tensor,
    mu: Tensor | float,
    beta: Tensor | float,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    precision: str = "high",
    backend: str | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """One gated random walk (Eqs. 4-5; W1-W4): β (μ P state + (1 - μ) seed) + (1 - β) state, P = softmax_rows(ψ ψᵀ + b).

    state, seed: (B, K, *S); psi: (B, D, *S); mu, beta: scalars, a 0-d or (1,) tensor or a float in [0, 1].
    bias: (B, *S) or (1, *S), added to the logits of its column (W1b); mask: bool (B, *S). Both as in
          `cascaded_random_walk`; a masked node returns its state.
    Returns the next state with the shape, dtype and memory format of `state`, in the unit that state and seed share. With
    `return_lse` the pair (next state, lse): lse_i = log Σⱼ exp(ψᵢ·ψⱼ + bⱼ), the log-normaliser of row i, (B, *S) in the
    dtype of the sums, and -inf where the mask is False. It sums the weights as they are multiplied, which may be
    rounded to 16 bits where seed and psi are.
    Differentiable once in all but the mask; precision, backend, dtypes, memory and errors as in `cascaded_random_walk`.

    >>> scores, psi = torch.randn(1, 21, 1681), torch.randn(1, 64, 1681)  # a signal: one spatial axis
    >>> random_walk(scores, psi, seed=scores, mu=0.9, beta=1.0).shape
    torch.Size([1, 21, 1681])
    """
    inputs = (state, psi, seed, mu, beta)
    if has_torch_function((*inputs, bias, mask)):
        options: dict[str, Any] = {"precision": precision, "backend": backend, "return_lse": return_lse}
        options |= {"bias": bias, "mask": mask}
        return handle_torch_function(random_walk, (*inputs, bias, mask), *inputs, **options)  # type: ignore[arg-type]
    check_field("seed", seed)
    check_state(state, seed)
    check_on_grid("psi", psi, seed)
    if bias is not None:
        check_bias("bias", bias, seed)
    accumulate = accumulation_dtype(seed, (psi, state, bias))
    mu, beta = check_gate("mu", mu, seed, accumulate), check_gate("beta", beta, seed, accumulate)
    check_precision(precision)
    backends.check_name(backend)
    given = [] if bias is None else _one_form([bias], seed, accumulate)
    start = state
    if mask is not None:
        check_mask(mask, seed)
        state, seed, psi = (cleared(x, mask) for x in (state, seed, psi))
        given = hidden([bias], mask, accumulate)
    gradients = _differentiated(state, seed, psi, mu, beta, *given)
    (following,), _, _, lse = torch.ops.difnet_kernels.cascade_forward.default(
        state, seed, [psi], mu, beta, precision, backend or "", False, gradients, given or None, return_lse
    )
    if mask is not None:
        following = restored(following, start, mask)
        lse = [torch.where(mask, x, -torch.inf) for x in lse]
    return (following, lse[0]) if return_lse else following


def _differentiated(*inputs: Tensor | None) -> bool:
    """Whether a backward may come, for which forward must keep what it needs. A program that is traced may be trained
    later, with inputs that require gradients where those of the trace did not."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return True
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def psi_projection(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Callable[[Tensor], Tensor] | None,
    grid: Sequence[int],
    *,
    backend: str | None = None,
) -> Tensor:
    """Ψ (§4; Ψ1): project features to embeddings and pool them to the grid of the seed, in one pass over the features.

        ψ = adaptive_max_pool( norm( W features + bias ) )

    features: (B, C, *S) with one to three spatial axes, any float dtype and strides; weight: (D, C); bias: (D,) or None;
    norm: a batch normalisation of torch.nn over D channels, or None; grid: the spatial size of the result, windows as in
    torch's adaptive pooling. `norm` is read, and in training its running buffers are updated, exactly as if it had been
    called on the projected map: batch or running statistics, momentum, affine or not, SyncBatchNorm over its processes.
    Any other module or function as norm (a subclass, one with hooks, GroupNorm, one that is compiled or sharded) is called
    on the projected map, which is then stored: slower, and the same result as the layers one by one.
    backend: None chooses; a name runs there or raises.
    Returns (B, D, *grid), node-major in memory (channels last), in the dtype that features and weight promote to; sums
    are fp32, or fp64 once one of them is fp64, also under autocast. Where several pixels of a window are equal, the first
    in scan order takes the gradient; NaN wins a window.
    Differentiable once, in reverse mode, in features, weight, bias and the parameters of `norm`. Every backend but the dense
    reference stores nothing of D channels at the resolution of the features, forward or backward, and is deterministic, bit
    for bit.
    Raises TypeError or ValueError for arguments that do not fit, also (as torch) for one value per channel in training;
    BackendUnavailable if no backend can run it.

    >>> features, weight = torch.randn(1, 256, 81, 81), torch.randn(64, 256)
    >>> psi_projection(features, weight, None, torch.nn.BatchNorm2d(64), grid=(41, 41)).shape
    torch.Size([1, 64, 41, 41])
    """
    # a tracer cannot record a module as an argument, nor torch.jit sizes that are open: layer by layer it can
    if isinstance(features, torch.fx.Proxy) or isinstance(weight, torch.fx.Proxy) or torch.jit.is_tracing():
        return composed.psi_projection(features, weight, bias, norm, grid)
    check_projection(features, weight, bias, grid)
    backends.check_name(backend)
    if not fuses(norm):
        return composed.psi_projection(features, weight, bias, norm, grid)
    check_norm(norm, features, weight)
    accumulate = accumulation_dtype(features, [weight])
    ones = (1,) * (5 - features.dim())  # images and signals are volumes with leading axes of one
    peak, _, mean, variance = torch.ops.difnet_kernels.projection_forward.default(
        features.view(*features.shape[:2], *ones, *features.shape[2:]),
        weight.to(accumulate),
        slope(norm, accumulate),
        [*ones, *grid],
        of_the_batch(norm),
        backend or "",
    )
    if norm is not None:
        samples = features.shape[0] * math.prod(features.shape[2:])
        psi = normalise(peak, bias, norm, mean, variance, samples)
    elif bias is not None:
        psi = peak + bias.to(accumulate).view(-1, 1, 1, 1)
    else:
        psi = peak
    for _ in ones:
        psi = psi.squeeze(2)
    return psi.to(torch.promote_types(features.dtype, weight.dtype))


def transition_rows(
    psi: Tensor, nodes: Tensor | Sequence[Any], *, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Rows of P for chosen nodes (W1, W1b; Fig. 3 of the paper): where each of them looks, without the N x N matrix.

    psi: (B, D, *S); nodes: (B, M) flat indices or (B, M, len(S)) coordinates, integers: a tensor on the device of psi, an
    array, or nested lists.
    bias: (B, *S) or (1, *S), and mask: bool (B, *S), on the grid of psi, as in `cascaded_random_walk`.
    Returns (B, M, *S) in fp32 (fp64 for fp64 psi or bias); each row sums to one, but that of a masked node, which is zero.
    Differentiable in psi and bias. Memory O(B·M·N).
    Raises ValueError or TypeError for shapes or dtypes that do not fit, IndexError for nodes outside the grid (on a CPU;
    on a GPU, and in compiled code, the check would wait for the device, so torch's own assertion of the indices reports it).

    >>> rows = transition_rows(torch.randn(1, 64, 41, 41), [[[20, 20]]])  # where the centre looks
    >>> rows.shape, round(rows.sum().item(), 3)
    (torch.Size([1, 1, 41, 41]), 1.0)
    """
    if has_torch_function((psi, nodes, bias, mask)):
        return handle_torch_function(transition_rows, (psi, nodes, bias, mask), psi, nodes, bias=bias, mask=mask)
    check_field("psi", psi)
    grid = psi.shape[2:]
    nodes = check_nodes(nodes, psi)
    if nodes.dim() == 3:
        inside = torch.stack([(x >= 0) & (x < size) for x, size in zip(nodes.unbind(-1), grid, strict=True)]).all(0)
        flat_nodes = sum(x * math.prod(grid[axis + 1 :]) for axis, x in enumerate(nodes.unbind(-1)))
        chosen = torch.where(inside, flat_nodes, -1)  # which no tensor takes as an index
    else:
        chosen = nodes
    readable = nodes.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and bool(((chosen < 0) | (chosen >= math.prod(grid))).any()):
        raise IndexError(f"nodes must lie on the grid {tuple(grid)}; got an index outside it.")
    if bias is not None:
        check_bias("bias", bias, psi, field="psi")
    accumulate = accumulation_dtype(psi, [bias])
    if mask is not None:
        check_mask(mask, psi, field="psi")
        psi, (bias,) = cleared(psi, mask), hidden([bias], mask, accumulate)
    # autocast would round the logits to 16 bits, and logits decide everything
    with torch.autocast(device_type=psi.device.type, enabled=False):
        embeddings = flat(psi).to(accumulate)  # (B, D, N)
        of_nodes = embeddings.gather(2, chosen.unsqueeze(1).expand(-1, embeddings.shape[1], -1))  # (B, D, M)
        logits = of_nodes.mT @ embeddings
        if bias is not None:
            logits = logits + bias.to(accumulate).reshape(bias.shape[0], 1, -1)
        rows = logits.softmax(-1)
    if mask is not None:
        rows = torch.where(mask.flatten(1).gather(1, chosen).unsqueeze(-1), rows, 0)
    return rows.reshape(*chosen.shape, *grid)
