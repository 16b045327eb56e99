"""The truth that results are compared with before they are timed, in fp64 on the same rounded inputs.

An independent truth: W1-W4 are written once more here, and torch differentiates them, so that no benchmark is judged by
the code it measures. Rows come in blocks that the backward computes again, so that large cases fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.inputs import Inputs

# 2⁻ᵇ, the spacing of the 16-bit types around one
SPACING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MEDIUM_PER_LOGIT = 1e-4


@dataclass(frozen=True)
class Truth:
    """yᵀ and the gradients of ⟨grad, yᵀ⟩, node-major where they are fields; `largest_logit` = max ‖ψ_i‖²."""

    state: Tensor
    grads: list[Tensor] | None
    largest_logit: float
    walks: int


@dataclass(frozen=True)
class Verdict:
    """The largest error relative to the largest value, against its bound; `worst` says where."""

    error: float
    bound: float
    worst: str

    @property
    def passed(self) -> bool:
        return self.error <= self.bound

    @property
    def told(self) -> str:
        return f"{self.worst}: error {self.error:.2g} exceeds {self.bound:.2g}"


def truth_of(inputs: Inputs, *, backward: bool) -> Truth:
    fields = [_nodes(x) for x in (inputs.seed, *inputs.psi)]
    s, *psi, mus, betas = (x.detach().double().requires_grad_() for x in (*fields, inputs.mu, inputs.beta))
    y = s
    with torch.set_grad_enabled(backward):
        for p, mu, beta in zip(psi, mus, betas, strict=True):
            blocks = [checkpoint(_walked, p[:, rows], p, y, use_reentrant=False) for rows in _row_blocks(p)]
            y = beta * (mu * torch.cat(blocks, 1) + (1 - mu) * s) + (1 - beta) * y  # (W3, W4)
    largest = max(p.detach().square().sum(-1).max().item() for p in psi)
    if not backward:
        return Truth(y, None, largest, len(psi))
    found = torch.autograd.grad(y, [s, *psi, mus, betas], _nodes(inputs.grad))
    return Truth(y.detach(), list(found), largest, len(psi))


def _walked(rows: Tensor, psi: Tensor, state: Tensor) -> Tensor:
    return torch.softmax(rows @ psi.mT, -1) @ state  # (W1, W2)


def judge(
    inputs: Inputs,
    truth: Truth,
    state: Tensor,
    grads: list[Tensor] | None,
    *,
    fp32_logits: bool = True,
    precision: str = "high",
) -> Verdict:
    """Compare a result (and gradients, in the order of `Inputs.differentiable`) with the truth.

    fp32_logits: hold it to fp32 logits. Peers whose 16-bit path rounds S or P to 16 bits are held to that rounding,
    which at large logits means nearly nothing: read the error that is printed next to their time.
    precision: "medium" allows what one 16-bit product makes of a logit.
    """
    dtype, walks = inputs.seed.dtype, len(inputs.psi)
    bound = logit_bound(truth.largest_logit, walks, dtype, fp32_logits, precision)
    checks = [("output", _relative(state.flatten(2).mT, truth.state), bound)]
    if grads is not None and truth.grads is not None:
        names = ["seed", *(f"psi[{t}]" for t in range(walks)), "mu", "beta"]
        gate = max(1e-4 if dtype == torch.float32 else 2e-2, bound)
        factors = [2 * bound, *[8 * bound] * walks, gate, gate]
        # ∂ψ of a node that looks at itself alone is a difference of equal numbers: what is left is their rounding
        noise = _cancellation(inputs, truth)
        for name, ours, true, limit in zip(names, grads, truth.grads, factors, strict=True):
            floor = 0.0
            if name.startswith("psi"):
                floor = noise / max(true.abs().max().item(), 1e-30)
            elif name in ("mu", "beta"):
                floor = gate * _gate_scale(inputs) / max(true.abs().max().item(), 1e-30)
            checks.append((f"gradient of {name}", _relative(ours, true), limit + floor))
    return worst_of(Verdict(error, bound, name) for name, error, bound in checks)


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=lambda v: v.error / v.bound if v.error == v.error else float("inf"))


def logit_bound(
    largest: float, walks: int, dtype: torch.dtype, fp32_logits: bool = True, precision: str = "high"
) -> float:
    """Of the output of so many walks, relative to its largest value: what rounding does to the largest logit."""
    spacing = SPACING.get(dtype, 0.0)
    bound = 4 * 2.0**-24 * largest + 2e-6 + spacing
    if spacing and not fp32_logits:
        bound = min(1.0, spacing * largest) + 4 * spacing
    if precision == "medium":
        bound = max(bound, min(1.0, MEDIUM_PER_LOGIT * largest))
    return walks * bound


def _nodes(x: Tensor) -> Tensor:
    return x.detach().double().flatten(2).mT.contiguous()  # (B, N, C)


def _row_blocks(psi: Tensor) -> list[slice]:
    # about 64 MB of fp64 per block of rows
    rows = max(1, 2**23 // (psi.shape[0] * psi.shape[1]))
    return [slice(i, i + rows) for i in range(0, psi.shape[1], rows)]


def _relative(ours: Tensor, true: Tensor) -> float:
    ours = ours.detach()
    if ours.dim() > 3:
        ours = ours.flatten(2).mT
    return ((ours.double() - true).abs().max() / true.abs().max()).item()


def _cancellation(inputs: Inputs, truth: Truth) -> float:
    spacing = max(2.0**-24, SPACING.get(inputs.seed.dtype, 0.0) * 0.5)
    assert truth.grads is not None
    h = max(_nodes(inputs.grad).abs().sum(-1).max().item(), truth.grads[0].abs().sum(-1).max().item())
    return 8 * spacing * h * inputs.seed.double().abs().max().item() * truth.largest_logit**0.5


def _gate_scale(inputs: Inputs) -> float:
    return inputs.grad.double().norm().item() * inputs.seed.double().std().item()
