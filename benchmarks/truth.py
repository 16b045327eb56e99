"""The truth that results are compared with before they are timed: W1-W4 and B1-B7 in fp64, on the same rounded inputs.

An independent truth: the equations are written once more here, apart from the package, so that no benchmark is judged by
the code it measures. It goes in blocks of rows, so that large cases fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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
    s = _nodes(inputs.seed)
    psi = [_nodes(p) for p in inputs.psi]
    gates = [(m.item(), b.item()) for m, b in zip(inputs.mu.double(), inputs.beta.double(), strict=True)]
    states, walked, lse = [s], [], []
    for p, (mu, beta) in zip(psi, gates, strict=True):
        w, row_lse = _walk(p, states[-1])
        walked.append(w)
        lse.append(row_lse)
        states.append(beta * (mu * w + (1 - mu) * s) + (1 - beta) * states[-1])
    largest = max(p.square().sum(-1).max().item() for p in psi)
    if not backward:
        return Truth(states[-1], None, largest, len(psi))

    g, grad_seed = _nodes(inputs.grad), torch.zeros_like(s)
    grad_psi, grad_mu, grad_beta = [], [], []
    for t in reversed(range(len(psi))):
        mu, beta = gates[t]
        mixed = mu * walked[t] + (1 - mu) * s
        grad_mu.insert(0, beta * ((walked[t] - s) * g).sum())  # (B7)
        grad_beta.insert(0, ((mixed - states[t]) * g).sum())  # (B7)
        grad_seed += beta * (1 - mu) * g  # (B1)
        dpsi, dy = _walk_backward(psi[t], states[t], walked[t], lse[t], beta * mu * g)
        grad_psi.insert(0, dpsi)
        g = (1 - beta) * g + dy
    grads = [grad_seed + g, *grad_psi, torch.stack(grad_mu), torch.stack(grad_beta)]
    return Truth(states[-1], grads, largest, len(psi))


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
    dtype, walks, bound = inputs.seed.dtype, len(inputs.psi), output_bound(inputs, truth, fp32_logits, precision)
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


def output_bound(inputs: Inputs, truth: Truth, fp32_logits: bool, precision: str = "high") -> float:
    return logit_bound(truth.largest_logit, len(inputs.psi), inputs.seed.dtype, fp32_logits, precision)


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


def _walk(psi: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    walked, lse = torch.empty_like(state), psi.new_empty(psi.shape[:2])
    for rows in _row_blocks(psi):
        logits = psi[:, rows] @ psi.mT  # (W1)
        lse[:, rows] = logits.logsumexp(-1)
        walked[:, rows] = logits.sub_(lse[:, rows].unsqueeze(-1)).exp_() @ state  # (W2)
    return walked, lse


def _walk_backward(psi: Tensor, state: Tensor, walked: Tensor, lse: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The generic form, ∂S then ∂ψ = (∂S + ∂Sᵀ) ψ in two products: not the symmetric one of the kernels."""
    grad_psi, grad_state = torch.zeros_like(psi), torch.zeros_like(state)
    delta = (h * walked).sum(-1, keepdim=True)  # (B2)
    for rows in _row_blocks(psi):
        P = (psi[:, rows] @ psi.mT).sub_(lse[:, rows].unsqueeze(-1)).exp_()
        grad_state += P.mT @ h[:, rows]  # (B6)
        grad_logits = P.mul_((h[:, rows] @ state.mT).sub_(delta[:, rows]))
        grad_psi[:, rows] += grad_logits @ psi
        grad_psi += grad_logits.mT @ psi[:, rows]  # (B5)
    return grad_psi, grad_state


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
