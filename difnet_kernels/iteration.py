"""Fixed points x = c + M x to a tolerance, for M = μP or its transpose: Chebyshev steps while they pay, else plain walks.

P is similar to a positive semi-definite matrix, so the spectrum of I - M lies in [1 - μ, 1] and Chebyshev steps need about
the root of the number of walks. But P is far from normal where the norms of ψ vary, and then they grow by hundreds before
they fall. Plain walks contract by μ in every case, so an image stays with Chebyshev only while it does no worse than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

EVERY = 8  # walks between two looks at the residual: each makes the host wait for the device

Step = Callable[[Tensor, Tensor | None], Tensor]  # (x of some images, which of them, None for all) -> c + M x
Measure = Callable[[Tensor, Tensor | None], Tensor]  # (residual of some images, which) -> its size (images, K)


def plain_walks(mu: float, tol: float) -> int:
    """How many walks plain iteration needs at most, a multiple of EVERY: the error is μᵗ times the first one."""
    needed = math.log(tol * (1 - mu) / 2) / math.log(mu) if mu > 0 else 1.0  # (W6)
    return EVERY * max(1, math.ceil(needed / EVERY))


def fixed_point(step: Step, start: Tensor, measure: Measure, bound: Tensor, mu: float, most: int) -> Tensor:
    """x (B, K, N) with measure(step(x) - x) <= bound (B, K) at the state before the last.

    Stop and method are per image, and an image that has stopped is not computed any more: it has the bits that it has
    alone, if `step` gives it those. An image that is not finite from the first walk on is returned as it is. RuntimeError
    after `most` walks, with the residual reached, or where plain walks leave the range of numbers.
    """
    solved = torch.empty_like(start)
    images: Tensor | None = None  # those that are still iterated; None for all
    x, moved = start, torch.zeros_like(start)
    chebyshev = torch.full((start.shape[0],), mu > 0, device=start.device)
    safe, reached = x, torch.full((start.shape[0],), math.inf, device=start.device, dtype=start.dtype)
    worst = math.inf
    weights = chebyshev_weights(mu)
    for walk in range(1, most + 1):
        following = step(x, images)
        residual = following - x
        look = walk % EVERY == 0 or walk == most
        if walk == 1 or look:
            limit, size = bound if images is None else bound[images], measure(residual, images)
            error = torch.where(limit > 0, size / limit, size).amax(1)  # of a class without seeds 0, as it must be
            finite = residual.flatten(1).isfinite().all(1)
        if walk == 1:
            reached, began = torch.where(finite, error, math.inf), finite
        if look:
            lost = ~finite & ~chebyshev
            stopped = finite & (error <= 1) | lost & ~began
            failed = chebyshev & ~stopped & ~(finite & _pays(error, reached, mu))
            worst = float(torch.where(stopped, 0.0, error).max())
            if bool((lost & began).any()):
                most = walk
                break
            if bool(stopped.any()):
                here = images if images is not None else torch.arange(start.shape[0], device=start.device)
                solved[here[stopped]] = following[stopped]
                if bool(stopped.all()):
                    return solved
                images, keep = here[~stopped], ~stopped
                x, moved, safe, residual = x[keep], moved[keep], safe[keep], residual[keep]
                chebyshev, reached, began = chebyshev[keep], reached[keep], began[keep]
                error, failed = error[keep], failed[keep]
            back = _each_image(failed, x)
            x, residual = torch.where(back, safe, x), torch.where(back, 0, residual)
            moved = torch.where(back, 0, moved)
            safe, reached = x, torch.where(failed, reached, error)
            chebyshev = chebyshev & ~failed
        momentum, rate = next(weights)
        of_chebyshev = _each_image(chebyshev, x)
        moved = torch.where(of_chebyshev, momentum * moved + rate * residual, residual)
        x = x + moved
    raise RuntimeError(
        f"diffuse did not converge: after {most} walks the residual of an image is {worst:.3g} times what tol allows. Allow "
        "more walks by max_walks, or a larger tol: below the rounding of the sums (about 1e-6 in fp32) none is enough. Take "
        "fp64 where mu is closer to 1 than the rounding of the logits (6e-8 of the largest in fp32): backward diverges there."
    )


def chebyshev_weights(mu: float) -> Iterator[tuple[float, float]]:
    """(momentum, rate) of every step for a spectrum in [1 - μ, 1]: d ← momentum d + rate r; x ← x + d."""
    centre, half = 1 - mu / 2, mu / 2  # (W6)
    if half == 0:
        while True:
            yield 0.0, 1.0
    ratio = half / centre
    yield 0.0, 1 / centre
    while True:
        following = 1 / (2 * centre / half - ratio)
        yield following * ratio, 2 * following / half
        ratio = following


def _pays(error: Tensor, reached: Tensor, mu: float) -> Tensor:
    """Whether Chebyshev steps brought the residual down by at least as much as plain walks promise."""
    return error < reached * mu**EVERY


def _each_image(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *(1,) * (x.dim() - 1))
