"""One cascade through the Triton backend, and the same one in dense fp64, differentiated by autograd."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from difnet_kernels.backends import triton as triton_backend


@dataclass
class Problem:
    """Inputs (B, C, N) of one cascade, and the gradients of its steps (S, B, K, N); bias and the gradient of lse: (B, N) of
    every walk, or none. With bias or that gradient, lse and its results are part of the answer."""

    seed: Tensor
    psi: list[Tensor]
    mu: Tensor
    beta: Tensor
    grad: Tensor
    state: Tensor | None = None
    precision: str = "high"
    bias: list[Tensor | None] = field(default_factory=list)
    grad_lse: list[Tensor | None] = field(default_factory=list)

    @property
    def largest_logit(self) -> float:
        added = [b.double() for b in self.bias if b is not None]
        largest_bias = max((b[b.isfinite()].abs().max().item() for b in added), default=0.0)
        return max(p.double().square().sum(1).max().item() for p in self.psi) + largest_bias


@dataclass
class Answer:
    states: Tensor
    grad_seed: Tensor
    grad_psi: list[Tensor]
    grad_mu: Tensor
    grad_beta: Tensor
    grad_state: Tensor | None = None
    saved: tuple[Tensor, ...] = field(default=(), repr=False)
    lse: list[Tensor] = field(default_factory=list)
    grad_bias: list[Tensor | None] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        named = {
            "states": self.states,
            "grad_seed": self.grad_seed,
            "grad_mu": self.grad_mu,
            "grad_beta": self.grad_beta,
        }
        named |= {f"grad_psi[{t}]": p for t, p in enumerate(self.grad_psi)}
        named |= {f"lse[{t}]": x for t, x in enumerate(self.lse)}
        named |= {f"grad_bias[{t}]": x for t, x in enumerate(self.grad_bias) if x is not None}
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


def biased(p: Problem, size: float = 3.0) -> Problem:
    """A bias of every walk, and a gradient of every lse."""
    chance = torch.Generator().manual_seed(3)
    B, _, N = p.seed.shape
    p.bias = [size * torch.randn((B, N), generator=chance) for _ in p.psi]
    p.grad_lse = [torch.randn((B, N), generator=chance) for _ in p.psi]
    return p


def nearly_one_hot(confidence: float) -> Problem:
    """N orthogonal nodes of norm² L, a bias and gradients of lse: P_ii = 1 / (1 + (N-1) e^-L) without the bias."""
    N = 64
    p = biased(problem(1, 5, N, (N,)), 0.5)
    level = torch.tensor(confidence / (1 - confidence) * (N - 1)).log()
    p.psi = [(level**0.5 * torch.linalg.qr(p.psi[0][0].double())[0]).float()[None]]
    return p


def rare_classes(p: Problem, level: float) -> Problem:
    """Seed and state as probabilities of the classes, the last three of them `level` times as likely."""
    likely = torch.ones(1, p.seed.shape[1], 1)
    likely[:, -3:] = level
    p.seed = torch.softmax(p.seed, 1) * likely
    p.state = None if p.state is None else torch.softmax(p.state, 1) * likely
    return p


def outlier(norm: float, embed: int = 16) -> Problem:
    """One node of this norm beside others of 0.5: half of them look at it alone."""
    p = problem(1, 3, 40, (embed,), size=0.5, offset=0.0)
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
    lse = [_nan(B, N, dtype=torch.float32) for _ in p.psi if p.bias or p.grad_lse]
    triton_backend.cascade_forward(
        *given, p.precision, states=states, walked=walked, row_lse=row_lse, bias=p.bias, lse=lse
    )
    answer = Answer(
        states,
        _nan_like(p.seed),
        [_nan_like(x) for x in p.psi],
        _nan_like(p.mu),
        _nan_like(p.beta),
        None if p.state is None else _nan_like(p.state),
        (walked, row_lse),
        lse,
        [None if b is None else _nan_like(b) for b in p.bias],
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
        bias=p.bias,
        grad_lse=p.grad_lse,
        grad_bias=answer.grad_bias,
    )
    return answer


def truth(p: Problem) -> Answer:
    """W1-W5 and W1b written out in dense fp64 on the same rounded numbers; the gradients are autograd's."""
    leaves = [x.double().requires_grad_() for x in (p.seed, p.mu, p.beta, *p.psi)]
    seed, mu, beta, *psi = leaves
    state = seed if p.state is None else p.state.double().requires_grad_()
    bias = [None if b is None else b.double().requires_grad_() for b in p.bias]
    y, steps, lse = state, [], []
    for t, x in enumerate(psi):
        S = x.mT @ x
        if bias and bias[t] is not None:
            S = S + bias[t][:, None, :]
        lse.append(torch.logsumexp(S, -1))
        P = torch.softmax(S, dim=-1)
        y = beta[t] * (mu[t] * (y @ P.mT) + (1 - mu[t]) * seed) + (1 - beta[t]) * y
        steps.append(y)
    states = torch.stack(steps if p.grad.shape[0] == len(psi) else steps[-1:])
    wanted = [*leaves, *(b for b in bias if b is not None), *([] if p.state is None else [state])]
    pulled = [(x, g.double()) for x, g in zip(lse, p.grad_lse, strict=False) if g is not None]
    outputs, given = [states, *(x for x, _ in pulled)], [p.grad.double(), *(g for _, g in pulled)]
    grads = list(torch.autograd.grad(outputs, wanted, given))
    grad_state = None if p.state is None else grads.pop()
    grad_seed, grad_mu, grad_beta, *rest = grads
    grad_psi, of_bias = rest[: len(psi)], iter(rest[len(psi) :])
    return Answer(
        states.detach(),
        grad_seed,
        grad_psi,
        grad_mu,
        grad_beta,
        grad_state,
        lse=[x.detach() for x in lse],
        grad_bias=[None if b is None else next(of_bias) for b in bias],
    )
