"""One cascade through the Triton backend, and the same one in dense fp64, differentiated by autograd."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from difnet_kernels.backends import triton as triton_backend


@dataclass
class Problem:
    """Inputs (B, C, N) of one cascade, and the gradients of its steps (S, B, K, N)."""

    seed: Tensor
    psi: list[Tensor]
    mu: Tensor
    beta: Tensor
    grad: Tensor
    state: Tensor | None = None
    precision: str = "high"

    @property
    def largest_logit(self) -> float:
        return max(p.double().square().sum(1).max().item() for p in self.psi)


@dataclass
class Answer:
    states: Tensor
    grad_seed: Tensor
    grad_psi: list[Tensor]
    grad_mu: Tensor
    grad_beta: Tensor
    grad_state: Tensor | None = None
    saved: tuple[Tensor, ...] = field(default=(), repr=False)

    def tensors(self) -> dict[str, Tensor]:
        named = {
            "states": self.states,
            "grad_seed": self.grad_seed,
            "grad_mu": self.grad_mu,
            "grad_beta": self.grad_beta,
        }
        named |= {f"grad_psi[{t}]": p for t, p in enumerate(self.grad_psi)}
        return named | ({} if self.grad_state is None else {"grad_state": self.grad_state})


def problem(
    batch: int = 1,
    classes: int = 5,
    nodes: int = 33,
    embeds: tuple[int, ...] = (16,),
    *,
    size: float = 4.0,
    offset: float = 0.3,
    steps: int | None = None,
    state: bool = False,
    precision: str = "high",
) -> Problem:
    """Random fields; `size` is about the root of a node's own logit, `offset` moves all nodes away from zero."""
    chance = torch.Generator().manual_seed(nodes + 1000 * classes + 31 * sum(embeds))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    walks = len(embeds)
    psi = [normal(batch, D, nodes) * (size / D**0.5) + offset for D in embeds]
    seed = 2 * normal(batch, classes, nodes) + 0.5
    mu, beta = (0.3 + 0.6 * torch.rand(walks, generator=chance) for _ in range(2))
    grad = normal(walks if steps is None else steps, batch, classes, nodes) + 0.2
    return Problem(seed, psi, mu, beta, grad, normal(batch, classes, nodes) if state else None, precision)


def rare_classes(p: Problem, level: float) -> Problem:
    """Seed and state as probabilities of the classes, the last three of them `level` times as likely."""
    likely = torch.ones(1, p.seed.shape[1], 1)
    likely[:, -3:] = level
    p.seed = torch.softmax(p.seed, 1) * likely
    p.state = None if p.state is None else torch.softmax(p.state, 1) * likely
    return p


def outlier(norm: float) -> Problem:
    """One node of this norm beside others of 0.5: half of them look at it alone."""
    p = problem(1, 3, 40, (16,), size=0.5, offset=0.0)
    p.psi[0][:, :, 7] *= norm / p.psi[0][:, :, 7].norm()
    return p


def tiny(size: float) -> Problem:
    return problem(1, 3, 40, (16,), size=size, offset=0.3 * size)


def _nan(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def _nan_like(x: Tensor) -> Tensor:
    """NaN everywhere, with the strides of x."""
    out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    return out.fill_(float("nan"))


def run(p: Problem, out_like: Tensor | None = None) -> Answer:
    """The backend on NaN-filled outputs; what it leaves unwritten stays NaN and fails every comparison."""
    B, K, N = p.seed.shape
    walks, steps = len(p.psi), p.grad.shape[0]
    states = _nan(steps, B, K, N, dtype=p.seed.dtype) if out_like is None else _nan_like(out_like)
    walked, row_lse = _nan(walks, B, N, K, dtype=torch.float32), _nan(walks, B, N, dtype=torch.float32)
    given = (p.state, p.seed, p.psi, p.mu, p.beta)
    triton_backend.cascade_forward(*given, p.precision, states=states, walked=walked, row_lse=row_lse)
    answer = Answer(
        states,
        _nan_like(p.seed),
        [_nan_like(x) for x in p.psi],
        _nan_like(p.mu),
        _nan_like(p.beta),
        None if p.state is None else _nan_like(p.state),
        (walked, row_lse),
    )
    triton_backend.cascade_backward(
        p.grad,
        *given,
        walked,
        row_lse,
        p.precision,
        grad_state=answer.grad_state,
        grad_seed=answer.grad_seed,
        grad_psi=answer.grad_psi,
        grad_mu=answer.grad_mu,
        grad_beta=answer.grad_beta,
    )
    return answer


def truth(p: Problem) -> Answer:
    """W1-W5 written out in dense fp64 on the same rounded numbers; the gradients are autograd's."""
    leaves = [x.double().requires_grad_() for x in (p.seed, p.mu, p.beta, *p.psi)]
    seed, mu, beta, *psi = leaves
    state = seed if p.state is None else p.state.double().requires_grad_()
    y, steps = state, []
    for t, x in enumerate(psi):
        P = torch.softmax(x.mT @ x, dim=-1)
        y = beta[t] * (mu[t] * (y @ P.mT) + (1 - mu[t]) * seed) + (1 - beta[t]) * y
        steps.append(y)
    states = torch.stack(steps if p.grad.shape[0] == len(psi) else steps[-1:])
    wanted = leaves if p.state is None else [*leaves, state]
    grads = torch.autograd.grad(states, wanted, p.grad.double())
    grad_state = None if p.state is None else grads[-1]
    return Answer(states.detach(), grads[0], list(grads[3 : 3 + len(psi)]), grads[1], grads[2], grad_state)
