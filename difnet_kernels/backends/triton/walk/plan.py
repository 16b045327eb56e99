"""From tensors to sizes and tiles of a cascade: padded fields, chunks of classes, operand types, launch rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..launch import Card, ceil_div, power_of_two
from ..rows import Case, Launch
from . import rows


@dataclass(frozen=True)
class Layout:
    """Sizes of the padded fields of one cascade: C chunks of KC classes in KP columns, n_pad nodes in units of PAD."""

    batch: int
    classes: int
    nodes: int
    chunks: int
    KC: int
    KP: int
    PAD: int
    units: int

    @cached_property
    def n_pad(self) -> int:
        return self.PAD * self.units

    @cached_property
    def block(self) -> int:
        """Rows per program of the elementwise kernels: fewer for wide tiles, which live in registers."""
        return min(self.PAD, 64 if self.KP <= 32 else 32)

    @cached_property
    def sizes(self) -> dict[str, int]:
        return dict(N=self.nodes, K=self.classes, KC=self.KC, pad_units=self.units, chunks=self.chunks)

    @cached_property
    def constants(self) -> dict[str, int]:
        return dict(KP=self.KP, PAD=self.PAD)

    @staticmethod
    def of(seed: Tensor, pad: int) -> Layout:
        batch, classes, nodes = seed.shape
        chunks, KC, KP = class_chunks(classes)
        return Layout(batch, classes, nodes, chunks, KC, KP, pad, ceil_div(nodes, pad))

    def columns(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty((self.batch, self.chunks, self.n_pad, self.KP), dtype=dtype, device=like.device)

    def vector(self, like: Tensor) -> Tensor:
        return torch.empty((self.batch, self.n_pad), dtype=torch.float32, device=like.device)


SLICE = 256  # channels of ψ in one tile, at most: a wider ψ has several
DEPTH = 64  # channels of one product of a wide ψ
FULL = 128  # columns of a chunk of classes, at most


def class_chunks(classes: int) -> tuple[int, int, int]:
    """(chunks, classes per chunk, columns per chunk with the spare one): chunks of up to 128 columns. Every chunk computes
    the logits again, so few large ones."""
    chunks = ceil_div(classes, FULL - 1)
    per_chunk = ceil_div(classes, chunks)
    return chunks, per_chunk, power_of_two(per_chunk + 1)


def reduction_blocks(nodes: int) -> tuple[int, int]:
    """(blocks, nodes per block) of a two-step reduction. Depends on the nodes alone: an image gives the same bits in
    any batch."""
    per_block = max(64, ceil_div(nodes, 64 * 64) * 64)
    return ceil_div(nodes, per_block), per_block


@dataclass(frozen=True)
class Walk:
    """How one walk runs: operand type, products, tiles, and ψ's padded width: `slices` of DP channels. A wide walk reads its
    rows of ψ again for every tile, DEPTH channels at a time, because they do not fit its registers."""

    operand: torch.dtype
    centred: bool
    embed: int
    DP: int
    wide: bool
    logit_products: int
    value_products: int
    launch: Launch

    @cached_property
    def slices(self) -> int:
        return ceil_div(self.embed, self.DP)

    @cached_property
    def width(self) -> int:
        return self.slices * self.DP

    @cached_property
    def sizes(self) -> dict[str, int]:
        return dict(slices=self.slices, depths=ceil_div(self.embed, DEPTH))

    @cached_property
    def constants(self) -> dict[str, int]:
        return dict(DP=self.DP, WIDE=self.wide, DEPTH=DEPTH, LOGIT_PRODUCTS=self.logit_products)


def plan_walks(direction: str, psi: Sequence[Tensor], seed: Tensor, precision: str, card: Card) -> list[Walk]:
    """One plan for all walks of one width and dtype."""
    KP = class_chunks(seed.shape[1])[2]
    kinds = {(p.shape[1], p.dtype): p for p in psi}
    plans = {kind: plan_walk(direction, p, seed, KP, precision, card) for kind, p in kinds.items()}
    return [plans[p.shape[1], p.dtype] for p in psi]


def plan_walk(direction: str, psi: Tensor, seed: Tensor, KP: int, precision: str, card: Card) -> Walk:
    """fp32 ψ is centred and split ("high") or rounded once ("medium"); 16-bit ψ is used as it is."""
    sixteen_bit = psi.dtype in (torch.float16, torch.bfloat16)
    high = precision == "high"
    logit_products = 3 if high and not sixteen_bit else 1
    value_products = 3 if high and seed.dtype == torch.float32 else 1
    embed = psi.shape[1]
    DP = min(SLICE, power_of_two(embed))
    wide = embed > SLICE or (DP == SLICE and KP == FULL)
    sizes = dict(DP=DP, KP=KP, products=max(logit_products, value_products), nodes=seed.shape[2])
    launch = rows.select(Case(f"wide_{direction}" if wide else direction, card.arch, sizes))
    operand = psi.dtype if sixteen_bit else torch.float16
    return Walk(operand, not sixteen_bit, embed, DP, wide, logit_products, value_products, launch)
