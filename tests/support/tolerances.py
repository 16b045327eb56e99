"""Every tolerance of the tests, with its reason. e = ours - r; r is the dense fp64 truth on the same rounded inputs.

Rounding psi is not an error here (both sides see the rounded numbers); rounding a logit is. A logit of size G carries
an absolute error of about 2⁻²⁴ G in fp32, which exp turns into the same relative error of a weight: hence bounds in G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALF_ULP = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# half of the smallest number that a dtype stores: what rounding leaves of numbers near zero
LEAST = {torch.float64: 2.0**-1075, torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}

# a logit is a sum of D products: four roundings of its largest partial sum cover D up to 200
ROUNDINGS_PER_LOGIT = 4
# what is left at small logits: exp by polynomial, sums over N and the gates, 33 roundings in all
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6}
# one rounding of the result, and one of P or y where the products are 16-bit
SIXTEEN_BIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# "medium": logits from one fp16 or TF32 product, whose other factors (P, T, y, h) have fp16's or TF32's 11 digits, too
MEDIUM_PER_LOGIT = 1e-4
# d psi sums T_ij = P_ij(h·y - δ) + transpose: two weights, a difference and a product where a walk has one weight
PSI_GRADIENT = 8
# the others are as linear in P as the walk itself, once for y and once for the walks above it
SEED_GRADIENT = 2
# h·y_j - h·w_i of a node that looks at itself alone: two sums of K equal products leave their rounding · ‖psi‖
# Relative to the gradient itself this has no bound, because the gradient vanishes with 1 - P_ii.
CANCELLATION = 8
# relative to the gradient, the same rounding at P_ii = 1 - ε is about 2⁻²⁴/ε for each of the K products and sums
NEARLY_ONE_HOT = 32 * 2.0**-24
# one sum of B·N·K terms per walk, relative to the root of the sum of their squares (or the sum, if larger)
GATE_GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
# the typical error: far below the largest one; at G above 168 it is the rounding of the logits again
TYPICAL = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 5e-3}
# rows of P sum to one: the sum and the quotient, whatever the logits
ROW_SUM = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Ψ: a product over the channels, statistics over the pixels, and the two differences of batch normalisation backward
PROJECTION = {torch.float64: 1e-12, torch.float32: 1e-5}
# fp64 gradcheck: central differences at 1e-6 leave 1e-10 of truncation and 1e-10 of rounding
GRADCHECK = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-5, "nondet_tol": 0.0}


@dataclass(frozen=True)
class Setting:
    """What a bound depends on: the fields' dtypes, the number of walks, the largest logit, the precision asked for."""

    dtypes: frozenset[torch.dtype]
    walks: int
    largest_logit: float
    precision: str = "high"

    @property
    def accumulate(self) -> torch.dtype:
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def walk(self) -> float:
        """The logit-aware bound on max|e| / max|y|."""
        logits = ROUNDINGS_PER_LOGIT * HALF_ULP[self.accumulate] * self.largest_logit
        if self.precision == "medium" and self.accumulate == torch.float32:
            logits = max(logits, min(1.0, MEDIUM_PER_LOGIT * self.largest_logit))
        sixteen_bit = max((SIXTEEN_BIT[dtype] for dtype in self.factors if dtype in SIXTEEN_BIT), default=0.0)
        return self.walks * (logits + FLOOR[self.accumulate] + sixteen_bit)

    @property
    def factors(self) -> frozenset[torch.dtype]:
        """What the factors of W2, B5 and B6 may be rounded to."""
        medium = self.precision == "medium" and self.accumulate == torch.float32
        return self.dtypes | {torch.float16} if medium else self.dtypes

    @property
    def product(self) -> torch.dtype:
        """What h and y are multiplied in (B2, B4): matrix units take 16-bit scores as they are, and "medium" rounds."""
        sixteen_bit = self.precision == "medium" or bool(self.dtypes & SIXTEEN_BIT.keys())
        return torch.float16 if sixteen_bit and self.accumulate == torch.float32 else self.accumulate

    @property
    def typical(self) -> float:
        """The bound on RMS(e) / RMS(r)."""
        sixteen_bit = max(
            (TYPICAL[dtype] for dtype in self.factors if dtype in SIXTEEN_BIT), default=TYPICAL[self.accumulate]
        )
        logits = HALF_ULP[self.accumulate] * self.largest_logit
        if self.precision == "medium" and self.accumulate == torch.float32:
            logits = min(1.0, MEDIUM_PER_LOGIT * self.largest_logit)
        return self.walks * max(sixteen_bit, logits)

    @property
    def gate(self) -> float:
        return max(self.walks * max(GATE_GRADIENT[dtype] for dtype in self.dtypes | {self.accumulate}), 2 * self.walk)


def assert_within(name: str, ours: Tensor, truth: Tensor, bound: float, *, floor: float = 0.0) -> None:
    """max|ours - truth| <= bound * max|truth| + floor, and finite; storing the result may cost half an ulp more."""
    if truth.numel() == 0:
        assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)} for {tuple(truth.shape)}"
        return
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)} for {tuple(truth.shape)}"
    assert bool(ours.isfinite().all()), (
        f"{name}: not finite in {int((~ours.isfinite()).sum())} of {ours.numel()} places"
    )
    error = (ours.double() - truth.double()).abs()
    bound = bound + HALF_ULP[ours.dtype]
    limit = bound * truth.double().abs().max().item() + floor
    worst = error.max().item()
    assert worst <= limit, (
        f"{name}: largest error {worst:.3g} exceeds {limit:.3g} = {bound:.3g} of {truth.abs().max():.3g} + {floor:.3g} "
        f"at {tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))}"
    )


def assert_typical(name: str, ours: Tensor, truth: Tensor, bound: float) -> None:
    """RMS(ours - truth) <= bound * RMS(truth), and half an ulp of the result."""
    if truth.numel() == 0:
        return
    error = (ours.double() - truth.double()).square().mean().sqrt().item()
    scale = truth.double().square().mean().sqrt().item()
    bound = bound + HALF_ULP[ours.dtype]
    assert error <= bound * scale, f"{name}: RMS error {error:.3g} exceeds {bound:.3g} of {scale:.3g}"


def assert_each(name: str, axis: int, ours: Tensor, truth: Tensor, bound: float, *, floor: float = 0.0) -> None:
    """`assert_within` for every class or channel by itself: an error in a small one cannot hide behind a large one."""
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)} for {tuple(truth.shape)}"
    for number, (mine, theirs) in enumerate(zip(ours.unbind(axis), truth.unbind(axis), strict=True)):
        # a class that 16 bits cannot tell from zero is stored with the rounding of their smallest number
        least = LEAST[ours.dtype]
        assert_within(f"{name}, number {number} of axis {axis}", mine, theirs, bound, floor=floor + least)
