"""The cascade backward, last walk first: from tensors to launches.

The states are made again from seed and walked, once, and ψ is prepared again. What `host` says of buffers holds here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .. import split
from ..launch import Card, card_of, ceil_div, contiguous_axis, launch, on_device, strides
from .backward import walk_backward_kernel
from .gradient import gradient_begin_kernel, gradient_end_kernel, gradient_prepare_kernel
from .host import most_row_tiles
from .lse import find_reach
from .plan import Layout, Walk, plan_walks
from .prepare import PreparedPsi, each_prepared
from .state import class_reach


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
    """B1-B8 into preallocated gradients (None: not wanted), from what this backend's cascade_forward wrote to walked and
    row_lse.

    grad_states, S tensors (B, K, N), hold every step's gradient when S = T, else the last; any strides, 0 included.
    Without a state the gradient of y⁰ is added to grad_seed (W5). Where ψ or bias alone is learnt, walks before the first
    that learns are not run backwards. grad_lse, grad_bias: T tensors (B, N), of which some may be None, or nothing.
    """
    bias, grad_lse, grad_bias = (x or [None] * len(psi) for x in (bias, grad_lse, grad_bias))
    card = card_of(seed.device)
    walks = plan_walks("backward", psi, seed, precision, card)
    layout = Layout.of(seed, max(walk.launch.pad for walk in walks))
    every = len(grad_states) == len(walks)
    of_gates = grad_mu is not None or grad_beta is not None
    whole = grad_state is not None or grad_seed is not None or of_gates
    learnt = zip(grad_psi, grad_bias, strict=True)
    last = 0 if whole else next(t for t, grads in enumerate(learnt) if any(grad is not None for grad in grads))
    first = seed if state is None else state
    given = dict(given_mu_ptr=mu, given_beta_ptr=beta, given_seed_ptr=seed, walked_ptr=walked)
    with on_device(seed):
        zeros = Zeros.of(walks, layout, seed)
        partial = class_reach(state, seed, layout, zeros.all)
        streamed = Streamed.of(seed, walks[0].value_products, layout)
        gradient = begin(grad_states[-1], first, partial, len(walks), layout, zeros, given)
        given["lse_ptr"] = row_lse
        for t, prepared in each_prepared(psi, bias, walks, layout, zeros.counters, first=last, backwards=True):
            walk = walks[t]
            prepare_gradient(t, walk, len(walks), layout, prepared, streamed, gradient, given, grad_lse[t])
            added = grad_states[t - 1] if every and t > 0 else None
            wanted = Wanted(psi[t], grad_psi[t], grad_bias[t], grad_lse[t] is not None)
            walk_backward(t, walk, card, layout, prepared, streamed, gradient, added, wanted)
        if whole:
            end(gradient, layout, seed, grad_seed, grad_state, grad_mu, grad_beta, state is not None)


@dataclass(frozen=True)
class Zeros:
    """What begins at zero, one buffer that the first launch clears. reach [T + 1, B, C, KP]: step t reads the reach of its g
    in t + 1 and leaves that of the step before in t; gates [T, blocks, 2]: the parts of ∂μ and ∂β; lse_reach [T, B or more]:
    the largest |∂L/∂lse|; counters of the row tiles."""

    all: Tensor
    reach: Tensor
    gates: Tensor
    lse_reach: Tensor
    counters: Tensor

    @staticmethod
    def of(walks: Sequence[Walk], layout: Layout, like: Tensor) -> Zeros:
        T, B, C, KP = len(walks), layout.batch, layout.chunks, layout.KP
        # walks of another column tile have fewer blocks, and zeros in their place; each of all begins where 16 bytes do
        blocks = 8 * ceil_div(B * layout.n_pad // min(walk.launch.cols for walk in walks), 8)
        images = 4 * ceil_div(B, 4)
        sizes = (T + 1) * B * C * KP, T * blocks * 2, T * images, most_row_tiles(walks, layout)
        whole = torch.empty(sum(sizes), dtype=torch.int32, device=like.device)
        reach, gates, lse_reach, counters = whole.split(sizes)
        gates = gates.view(torch.float32).view(T, blocks, 2)
        return Zeros(whole, reach.view(T + 1, B, C, KP), gates, lse_reach.view(T, images), counters)


@dataclass(frozen=True)
class Gradient:
    """What one step hands to the next: g = ∂L/∂yᵗ and Σ_t ∂L/∂s so far [B, C, n_pad, KP], beside all states
    [T, B, C, n_pad, KP], the scale of every class [B, C, KP], the zeros of the cascade, and the memory of the parts."""

    g: Tensor
    states: Tensor
    seed_sum: Tensor
    scale: Tensor
    zeros: Zeros
    memory: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def part(self, name: str, *shape: int) -> Tensor:
        """The sums of every part, one memory for all walks whose parts are alike."""
        key = (name, *shape)
        if key not in self.memory:
            self.memory[key] = torch.empty(shape, dtype=torch.float32, device=self.g.device)
        return self.memory[key]


@dataclass(frozen=True)
class Wanted:
    """Of one step: ψ (B, D, N), the gradients of ψ and bias (B, N) if they are wanted, and whether lse has one."""

    psi: Tensor
    grad_psi: Tensor | None
    grad_bias: Tensor | None
    of_lse: bool

    @property
    def of_psi(self) -> bool:
        """That of bias needs T, too: it is the sum of T's rows (B8)."""
        return self.grad_psi is not None or self.grad_bias is not None

    @property
    def flags(self) -> dict[str, bool]:
        return dict(OF_LSE=self.of_lse, OF_BIAS=self.grad_bias is not None)


@dataclass(frozen=True)
class Streamed:
    """What gradient_prepare leaves for walk_backward: hi and lo of y and h, the row vectors, the spread of every column
    tile."""

    y_hi: Tensor
    y_lo: Tensor
    h_hi: Tensor
    h_lo: Tensor
    h_scale: Tensor
    unit: Tensor
    lse: Tensor
    level: Tensor
    drop: Tensor
    spread: Tensor
    alone: Tensor
    lse_grad: Tensor

    @staticmethod
    def of(seed: Tensor, products: int, layout: Layout) -> Streamed:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=seed.device)

        y_hi, h_hi = (layout.columns(seed, torch.float16) for _ in range(2))
        y_lo, h_lo = (torch.empty_like(hi) if products == 3 else hi for hi in (y_hi, h_hi))
        lse, level, drop, lse_grad = (layout.vector(seed) for _ in range(4))
        unit = empty(layout.batch, layout.chunks, 2, layout.KP)
        spread = empty(layout.batch, layout.n_pad // 16, 2)
        alone = empty(layout.batch, layout.n_pad, dtype=torch.int32)
        rows = (lse, level, drop, spread, alone, lse_grad)
        return Streamed(y_hi, y_lo, h_hi, h_lo, empty(layout.batch), unit, *rows)

    @cached_property
    def fields(self) -> dict[str, Tensor]:
        return dict(y_hi_ptr=self.y_hi, y_lo_ptr=self.y_lo, h_hi_ptr=self.h_hi, h_lo_ptr=self.h_lo)

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        return dict(level_ptr=self.level, drop_ptr=self.drop, spread_ptr=self.spread)

    @cached_property
    def units(self) -> dict[str, Tensor]:
        return dict(h_scale_ptr=self.h_scale, unit_ptr=self.unit)


def begin(
    grad: Tensor, first: Tensor, partial: Tensor, walks: int, layout: Layout, zeros: Zeros, given: dict[str, Tensor]
) -> Gradient:
    """∂L/∂yᵀ and every state, from y⁰ and what the forward saved; the scales, from the classes' reach."""
    scale = torch.empty((layout.batch, layout.chunks, layout.KP), dtype=torch.float32, device=grad.device)
    g, seed_sum = (layout.columns(grad, torch.float32) for _ in range(2))
    states = torch.empty((walks, *g.shape), dtype=torch.float32, device=grad.device)
    seed = given["given_seed_ptr"]
    launch(
        "gradient_begin",
        gradient_begin_kernel,
        layout.batch * (layout.n_pad // layout.block),
        given | dict(given_grad_ptr=grad, given_state_ptr=first, partial_ptr=partial, g_ptr=g, states_ptr=states),
        dict(scale_ptr=scale, reach_ptr=zeros.reach[-1]),
        layout.sizes | dict(blocks=partial.shape[2], batch=layout.batch, walks=walks),
        strides("grad", "bkn", grad) | strides("seed", "bkn", seed) | strides("state", "bkn", first),
        dict(GRAD_AXIS=contiguous_axis(grad), SEED_AXIS=contiguous_axis(seed), STATE_AXIS=contiguous_axis(first)),
        layout.constants | dict(R=layout.block),
        warps=8,
        of=torch.float32,
    )
    return Gradient(g, states, seed_sum, scale, zeros)


def prepare_gradient(
    t: int,
    walk: Walk,
    walks: int,
    layout: Layout,
    psi: PreparedPsi,
    streamed: Streamed,
    gradient: Gradient,
    given: dict[str, Tensor],
    grad_lse: Tensor | None,
) -> None:
    """Fills `streamed` for step t, and its parts of ∂μ and ∂β."""
    if grad_lse is not None:
        find_reach(grad_lse, gradient.zeros.lse_reach[t])
    given_grad_lse = gradient.g if grad_lse is None else grad_lse  # not touched without one
    R = walk.launch.cols
    programs = layout.batch * (layout.n_pad // R)
    seed = given["given_seed_ptr"]
    launch(
        "gradient_prepare",
        gradient_prepare_kernel,
        programs,
        given
        | dict(
            g_ptr=gradient.g, reach_ptr=gradient.zeros.reach[t + 1], scale_ptr=gradient.scale, alone_ptr=streamed.alone
        ),
        dict(states_ptr=gradient.states),
        dict(psi_hi_ptr=psi.hi, psi_lo_ptr=psi.lo, bias_ptr=psi.bias, factor_ptr=psi.factor),
        streamed.fields | streamed.vectors | streamed.units,
        dict(lse_pad_ptr=streamed.lse, seed_sum_ptr=gradient.seed_sum, gate_ptr=gradient.zeros.gates[t]),
        dict(
            given_grad_lse_ptr=given_grad_lse, lse_reach_ptr=gradient.zeros.lse_reach[t], lse_grad_ptr=streamed.lse_grad
        ),
        layout.sizes | walk.sizes | dict(batch=layout.batch, step=t, walks=walks),
        strides("seed", "bkn", seed),
        dict(lse_b=0, lse_n=0) if grad_lse is None else strides("lse", "bn", grad_lse),
        dict(OF_LSE=grad_lse is not None),
        layout.constants | walk.constants | dict(R=R, VALUE_PRODUCTS=walk.value_products),
        dict(SEED_AXIS=contiguous_axis(seed)),
        warps=8 if layout.KP * R > 4096 or layout.KP > 64 else 4,
        of=walk.operand,
    )


def walk_backward(
    t: int,
    walk: Walk,
    card: Card,
    layout: Layout,
    psi: PreparedPsi,
    streamed: Streamed,
    gradient: Gradient,
    added: Tensor | None,
    wanted: Wanted,
) -> None:
    """Step t of B3-B6 and B8: writes the gradients of ψ and bias, turns gradient.g from (1-β) g into ∂L/∂yᵗ and leaves its
    reach."""
    B, N, tiles, chunks = layout.batch, layout.nodes, walk.launch, layout.chunks
    columns, row_tiles = ceil_div(N, tiles.cols), ceil_div(N, tiles.rows)
    # no program has several parts: two more accumulators beside its own would not fit the registers
    plan = split.split_columns(B, row_tiles * chunks, columns, card.processors, in_registers=False)
    together = chunks == 1 and not walk.wide
    one_part = plan.parts == 1 and together and tiles.in_registers

    def part(name: str, *shape: int, wanted: bool = True) -> Tensor:
        """The sums of every part; not touched when there is one."""
        return gradient.g if one_part or not wanted else gradient.part(name, plan.parts, B, *shape)

    n_pad = layout.n_pad
    want_psi = wanted.of_psi
    to_psi = torch.empty_like(wanted.psi) if want_psi and wanted.grad_psi is None else wanted.grad_psi
    given, grad_psi, grad_bias = (
        gradient.g if x is None else x for x in (added, to_psi, wanted.grad_bias)
    )  # not touched
    pointers = dict(psi_hi_ptr=psi.hi, psi_lo_ptr=psi.lo, factor_ptr=psi.factor, centre_ptr=psi.centre)
    pointers |= dict(alone_ptr=streamed.alone)
    pointers |= streamed.fields | streamed.units | dict(scale_ptr=gradient.scale, g_ptr=gradient.g)
    pointers |= dict(reach_ptr=gradient.zeros.reach[t], given_grad_ptr=given, given_grad_psi_ptr=grad_psi)
    pointers |= dict(lse_grad_ptr=streamed.lse_grad, given_grad_bias_ptr=grad_bias)
    pointers |= dict(
        part_psi_ptr=part("psi", n_pad, walk.width, wanted=want_psi),
        part_against_ptr=part("against", n_pad, wanted=want_psi),
    )
    pointers |= dict(part_moved_ptr=part("moved", chunks, n_pad, layout.KP), part_own_ptr=part("own", n_pad))
    pointers |= dict(counter_ptr=gradient.zeros.counters)
    sizes = (
        layout.sizes
        | walk.sizes
        | dict(D=wanted.psi.shape[1], parts=plan.parts, batch=B, add_grad=int(added is not None))
    )
    given_strides = dict(grad_b=0, grad_k=0, grad_n=0) if added is None else strides("grad", "bkn", added)
    psi_strides = dict(psi_b=0, psi_d=0, psi_n=0) if to_psi is None else strides("psi", "bdn", to_psi)
    no_bias = wanted.grad_bias is None
    bias_strides = dict(bias_b=0, bias_n=0) if no_bias else strides("bias", "bn", grad_bias)
    all_strides = given_strides | psi_strides | bias_strides
    constants = layout.constants | walk.constants | dict(ONE_CHUNK=together, ONE_PART=one_part, OF_PSI=want_psi)
    constants |= dict(VALUE_PRODUCTS=walk.value_products, PSI_AXIS=0 if to_psi is None else contiguous_axis(to_psi))
    constants |= wanted.flags | dict(GRAD_AXIS=0 if added is None else contiguous_axis(added))

    def run(want_psi: bool, want_moved: bool, program_chunks: int) -> None:
        launch(
            "walk_backward",
            walk_backward_kernel,
            B * row_tiles * program_chunks * plan.parts,
            pointers | streamed.vectors | dict(bias_ptr=psi.bias, lse_ptr=streamed.lse),
            sizes | dict(program_chunks=program_chunks, part_tiles=plan.part_tiles),
            all_strides,
            constants | dict(I=tiles.rows, J=tiles.cols, WANT_PSI=want_psi, WANT_MOVED=want_moved),
            warps=tiles.warps,
            stages=tiles.stages,
            of=walk.operand,
        )

    if together:
        run(want_psi, True, 1)
    else:
        if want_psi:
            run(True, False, walk.slices)
        run(False, True, chunks)


def end(
    gradient: Gradient,
    layout: Layout,
    seed: Tensor,
    grad_seed: Tensor | None,
    grad_state: Tensor | None,
    grad_mu: Tensor | None,
    grad_beta: Tensor | None,
    has_state: bool,
) -> None:
    """∂L/∂s and ∂L/∂y⁰ in the caller's layout (W5); without a state the second is added to the first. ∂μ and ∂β (B7). Of
    each pair one may not be wanted, or both."""
    fields = grad_seed is not None or grad_state is not None
    gates = gradient.zeros.gates
    of_gates = grad_mu is not None or grad_beta is not None
    grad_seed = torch.empty_like(seed) if grad_seed is None else grad_seed
    result = torch.empty_like(seed) if grad_state is None and has_state else grad_state
    result = grad_seed if result is None else result
    grad_mu, grad_beta = (gates.new_empty(gates.shape[0]) if x is None else x for x in (grad_mu, grad_beta))
    of_walks = gates.shape[0] if of_gates else 0
    launch(
        "gradient_end",
        gradient_end_kernel,
        of_walks + (layout.batch * layout.chunks * (layout.n_pad // layout.block) if fields else 0),
        dict(g_ptr=gradient.g, seed_sum_ptr=gradient.seed_sum, given_seed_ptr=grad_seed, given_state_ptr=result),
        dict(gate_ptr=gates, given_grad_mu_ptr=grad_mu, given_grad_beta_ptr=grad_beta),
        layout.sizes | dict(gates=of_walks, parts=gates.shape[1]),
        strides("seed", "bkn", grad_seed) | strides("state", "bkn", result),
        layout.constants | dict(R=layout.block, HAS_STATE=has_state),
        dict(SEED_AXIS=contiguous_axis(grad_seed), STATE_AXIS=contiguous_axis(result)),
        of=torch.float32,
    )
