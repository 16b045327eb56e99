"""Mistakes that such kernels are known to contain, each as an edit of one Triton source, and the problem that shows it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from triton.runtime.interpreter import InterpretedFunction

import difnet_kernels.backends.triton
from tests.triton.interpreted.bounds import assert_as_plain_fp32, assert_right
from tests.triton.interpreted.cascade import Problem, biased, nearly_one_hot, outlier, problem, rare_classes, tiny

PACKAGE = difnet_kernels.backends.triton.__name__
# the modules that launch kernels or call their functions
NAMES = ("prepare", "state", "lse", "forward", "gradient", "backward", "backward_rows", "host", "host_backward")
USERS = tuple(f"walk.{name}" for name in NAMES)


def ordinary() -> Problem:
    return problem(1, 5, 35, (16,))


def large_logits() -> Problem:
    return problem(1, 5, 35, (16,), size=12.0)


def climbing() -> Problem:
    """Norms that grow along the nodes: far maxima, and row sums further apart than one exponential reaches."""
    p = problem(1, 5, 35, (8,), size=0.3, offset=0.0)
    direction = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
    p.psi = [p.psi[0] + direction[None, :, None] * torch.linspace(0, 30.0, 35)]
    return p


def rare() -> Problem:
    return rare_classes(problem(1, 6, 40, (16,)), 1e-8)


def far_outlier() -> Problem:
    return outlier(1e4)


def with_bias() -> Problem:
    return biased(ordinary())


def one_hot_with_bias() -> Problem:
    return nearly_one_hot(0.999)


def pulled_by_lse() -> Problem:
    """Gradients of lse a thousand times those of the scores."""
    p = with_bias()
    p.grad_lse = [1e3 * p.grad_lse[0]]
    return p


def without_their_own_column() -> Problem:
    """A whole tile of columns without weight comes first."""
    p = with_bias()
    p.bias[0][:, :17] = -torch.inf
    return p


def three_walks() -> Problem:
    return problem(1, 5, 35, (16, 3, 8))


def wide() -> Problem:
    return problem(1, 3, 35, (300,))


def tiny_embeddings() -> Problem:
    return tiny(1e-5)


@dataclass(frozen=True)
class Fault:
    """In the module `stem`, `good` (found once) becomes `bad`; then `judge` finds the answer to `truth` wrong."""

    name: str
    stem: str
    good: str
    bad: str
    truth: Callable[[], Problem] = ordinary
    judge: Callable[[Problem], object] = assert_right


FAULTS = (
    Fault("padded columns vote", "walk.prepare", 'tl.where(n < N, bias, float("-inf"))', "bias"),
    Fault(
        "the small products are left out", "arithmetic", "tl.dot(a_hi, b_hi, small)", "tl.dot(a_hi, b_hi)", large_logits
    ),
    Fault("a maximum is never raised", "walk.forward", "tl.maximum(peak, tl.max(x, axis=1) - SHIFT)", "peak", climbing),
    Fault(
        "parts are added at different maxima",
        "walk.forward",
        "total * tl.exp2(top - higher)[:, None]",
        "total",
        climbing,
    ),
    Fault("delta is missing", "walk.gradient", "delta += tl.sum(delta_tile, axis=1)", "delta += 0.0"),
    Fault(
        "P_ij and P_ji are swapped",
        "walk.backward",
        "split_hi_lo(back, tl.float16, VALUE_PRODUCTS)",
        "split_hi_lo(look * TRANSPOSED_SHIFT, tl.float16, VALUE_PRODUCTS)",
    ),
    Fault(
        "the spread is not looked at",
        "walk.backward",
        "(high - low < SPREAD) & (high < LEVEL) & (low > -LEVEL)",
        "high - low < 1e30",
        climbing,
    ),
    Fault(
        "the node itself is left out for good", "walk.backward_rows", "2.0 * itself[:, None] * own_psi", "0.0 * own_psi"
    ),
    Fault(
        "gradients are streamed in units of the image",
        "walk.gradient",
        "own = 0.5 / power_of_two_below(tl.abs(mu * beta) * reach)",
        "own = h_scale / scale",
        rare,
    ),
    Fault("h meets y in units of its class", "walk.gradient", "tl.minimum(h_scale / scale / own, 4.0)", "1.0", rare),
    Fault(
        "small embeddings stay small",
        "walk.prepare",
        "tl.maximum(exponent - 13, -113)",
        "tl.maximum(exponent - 13, 0)",
        tiny_embeddings,
        assert_as_plain_fp32,
    ),
    Fault(
        "the centre is the mean",
        "walk.prepare",
        "tl.where(used & (below == middle), mean, 0.0)",
        "tl.where(used, mean * count[:, None] / N, 0.0)",
        far_outlier,
        assert_as_plain_fp32,
    ),
    Fault(
        "a row that looks at an outlier alone keeps what cancels",
        "walk.backward_rows",
        "sum_psi -= wrong[:, None] * their_psi",
        "sum_psi -= 0.0 * their_psi",
        far_outlier,
        assert_as_plain_fp32,
    ),
    Fault("the first program adds the parts", "arithmetic", "== programs - 1", "== 0"),
    Fault("the last channels of a wide psi", "arithmetic", "range(0, depths)", "range(0, depths - 1)", wide),
    Fault("a slice of a wide psi for another", "walk.backward", "d += own_chunk * DP", "d += 0", wide),
    Fault(
        "every state is made of the first",
        "walk.gradient",
        "tl.where(inside, blend(mixed, y, tl.load(given_beta_ptr + t - 1)), 0.0)",
        "tl.where(inside, blend(mixed, s, tl.load(given_beta_ptr + t - 1)), 0.0)",
        three_walks,
    ),
    Fault(
        "a column without weight looks at nobody",
        "walk.gradient",
        'idle = (level == float("-inf")) & (most == 0.0) & (delta == 0.0)',
        'idle = level == float("-inf")',
        without_their_own_column,
    ),
    Fault("a bias in other units", "walk.prepare", "LOG2E * given.to(tl.float32)", "given.to(tl.float32)", with_bias),
    Fault(
        "a row starts at a logit that it lacks",
        "walk.prepare",
        'tl.where(bias == float("-inf"), LOWEST, floor)',
        "floor",
        without_their_own_column,
    ),
    Fault("lse of the centred logits", "walk.lse", "other=0.0) + left_out", "other=0.0)", with_bias),
    Fault("lse has no gradient", "walk.gradient", "delta -= pull  # (B4b)", "delta -= 0.0", with_bias),
    Fault(
        "T is scaled for the scores alone",
        "walk.gradient",
        "reach_of_t += tl.load(lse_reach_ptr + image).to(tl.float32, bitcast=True)",
        "reach_of_t += 0.0",
        pulled_by_lse,
    ),
    Fault(
        "the node itself forgets the gradient of lse",
        "walk.backward_rows",
        "against -= TRANSPOSED_SHIFT",
        "against -= 0.0",
        one_hot_with_bias,
        assert_as_plain_fp32,
    ),
    Fault(
        "the bias of a node forgets its own look",
        "walk.backward_rows",
        "(looked_at * unit)",
        "(sum_t * unit)",
        with_bias,
    ),
    Fault(
        "the centre meets half of the gradient of lse",
        "walk.backward_rows",
        "looked_at += TRANSPOSED_SHIFT",
        "looked_at += 0.0",
        with_bias,
    ),
)


def planted(fault: Fault, folder: Path) -> dict[tuple[ModuleType, str], object]:
    """What has to be set, (module, name) -> function, for the fault to be in use."""
    sound = importlib.import_module(f"{PACKAGE}.{fault.stem}")
    text = Path(str(sound.__file__)).read_text(encoding="utf-8")
    count = text.count(fault.good)
    assert count == 1, f"{fault.stem}.py holds {fault.good!r} {count} times, not once: it changed, adjust this file"
    package, _, name = f"{PACKAGE}.{fault.stem}".rpartition(".")
    path = folder / f"{name}.py"
    path.write_text(text.replace(fault.good, fault.bad), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{package}.faulty_{name}", path)
    assert spec is not None and spec.loader is not None
    faulty = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = faulty  # Triton looks the globals of a kernel up by its module's name
    spec.loader.exec_module(faulty)
    users = [importlib.import_module(f"{PACKAGE}.{stem}") for stem in USERS]
    return {
        (user, name): getattr(faulty, name)
        for user in users
        for name in vars(user)
        if isinstance(getattr(sound, name, None), InterpretedFunction) and getattr(sound, name) is getattr(user, name)
    }
