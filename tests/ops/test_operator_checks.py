"""The operators check themselves: a traced graph or a direct call has lost the checks of the public functions, and kernels
trust their sizes. Every argument of every operator, one size off, of another dtype or on another device, must raise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from difnet_kernels import cascaded_random_walk, psi_projection
from difnet_kernels.backends import BACKENDS

OPS = torch.ops.difnet_kernels
B, K, D, N, T = 2, 3, 5, 20, 2


def _cascade() -> dict[str, Any]:
    return {
        "state": torch.randn(B, K, N),
        "seed": torch.randn(B, K, N),
        "psi": [torch.randn(B, D, N) for _ in range(T)],
        "mu": torch.rand(T),
        "beta": torch.rand(T),
        "precision": "high",
        "backend": "",
    }


def _bias() -> list[Tensor]:
    return [torch.randn(B, N) for _ in range(T)]


def _forward() -> dict[str, Any]:
    return {**_cascade(), "all_steps": True, "gradients": True, "bias": _bias(), "return_lse": True}


def _backward() -> dict[str, Any]:
    given = _cascade()
    states, walked, row_lse, lse = OPS.cascade_forward(*given.values(), True, True, bias := _bias(), True)
    start = {name: given.pop(name) for name in ("state", "seed", "psi")}
    ends = {"precision": given.pop("precision"), "backend": given.pop("backend")}
    return {
        "grad_states": [torch.randn_like(y) for y in states],
        "grad_lse": [torch.randn_like(x) for x in lse],
        **start,
        "bias": bias,
        **given,
        "walked": walked,
        "row_lse": row_lse,
        **ends,
        "wanted": [True] * (2 * T + 4),
    }


def _pooling() -> dict[str, Any]:
    return {
        "features": torch.randn(B, K, 1, 6, 7),
        "weight": torch.randn(D, K),
        "slope": torch.randn(D),
        "grid": [1, 2, 3],
        "statistics": True,
        "backend": "",
    }


def _unpooling() -> dict[str, Any]:
    given = _pooling()
    peak, position, mean, variance = OPS.projection_forward(*given.values())
    return {
        "grad_peak": torch.randn_like(peak),
        "grad_mean": torch.randn_like(mean),
        "grad_variance": torch.randn_like(variance),
        "features": given["features"],
        "weight": given["weight"],
        "position": position,
        "z": torch.einsum("dc,bczhw->bdzhw", given["weight"], given["features"]),
        "mean": mean,
        "want_features": True,
        "want_weight": True,
        "backend": "",
    }


def _solving() -> dict[str, Any]:
    given = {"seed": torch.randn(B, K, N), "psi": torch.randn(B, D, N), "mu": torch.full((1,), 0.5)}
    options = {"tol": 1e-3, "max_walks": None, "store": 0, "precision": "high", "backend": ""}
    return {**given, "bias": [torch.randn(B, N)], "mask": torch.rand(B, N) < 0.8, **options}


def _solving_back() -> dict[str, Any]:
    given = _solving()
    del given["mask"]
    return {"grad": torch.randn(B, K, N), "y": torch.randn(B, K, N), **given, "wanted": [True] * 4}


def _projecting() -> dict[str, Any]:
    vectors = {name: [torch.rand(D) for _ in range(T)] for name in ("offset", "mean", "variance", "slope", "shift")}
    return {
        "seed": torch.randn(B, K, N),
        "features": [torch.randn(B, K + t, 1, 6, 7) for t in range(T)],
        "weight": [torch.randn(D, K + t) for t in range(T)],
        **vectors,
        "eps": [1e-5] * T,
        "root": 0.5,
        "mu": torch.rand(T),
        "beta": torch.rand(T),
        "bias": torch.randn(B, N),
        "precision": "high",
        "backend": "reference",
        "all_steps": True,
    }


@pytest.fixture(autouse=True)
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of this machine that lets projected_cascade pass, behind its checks."""
    bringing = replace(BACKENDS["reference"], projected_cascade=lambda *given, states: None)
    monkeypatch.setitem(BACKENDS, "reference", bringing)


OPERATORS: dict[str, Callable[[], dict[str, Any]]] = {
    "cascade_forward": _forward,
    "cascade_backward": _backward,
    "projected_cascade": _projecting,
    "projection_forward": _pooling,
    "projection_backward": _unpooling,
    "steady_state_forward": _solving,
    "steady_state_backward": _solving_back,
}
# sizes that fit whatever the others are: the images and pixels of features, and the width of each embedding
FREE = {("projection_forward", "features", axis) for axis in (0, 2, 3, 4)}
FREE |= {("projected_cascade", "features", axis) for axis in (2, 3, 4)} | {("projected_cascade", "seed", 1)}
FREE |= {(operator, "psi", 1) for operator in ("cascade_forward", "cascade_backward")}
FREE |= {(operator, "psi", 1) for operator in ("steady_state_forward", "steady_state_backward")} | {
    ("steady_state_forward", "seed", 1)
}
# a list of none of them is right: no walk has a bias, no lse was asked for
NONE = {("cascade_forward", "bias"), ("cascade_backward", "grad_lse"), ("steady_state_forward", "bias")}


def _spoilt(x: Any) -> list[tuple[str, Any]]:
    """The ways in which one argument can be wrong."""
    if isinstance(x, Tensor):
        ways = [
            (
                f"axis {axis} {how}",
                x.narrow(axis, 0, x.shape[axis] - 1) if how == "short" else torch.cat([x, x.narrow(axis, 0, 1)], axis),
            )
            for axis in range(x.dim())
            for how in ("short", "long")
        ]
        ways += [("an axis less", x.flatten(0, 1) if x.dim() > 1 else x[0]), ("an axis more", x.unsqueeze(0))]
        ways += [("integers", x.long()), ("on another device", x.to("meta"))]
        return ways
    if isinstance(x, list) and isinstance(x[0], Tensor):
        inside = [(f"[{t}] {what}", [*x[:t], bad, *x[t + 1 :]]) for t in range(len(x)) for what, bad in _spoilt(x[t])]
        return [*inside, ("three of them", [*x, x[0]]), ("none", [])]
    if isinstance(x, list):
        return [("longer", [*x, x[0]]), ("shorter", x[:-1])]
    return [("unknown", "nonsense")] if isinstance(x, str) else []


@pytest.mark.smoke
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_argument_that_does_not_fit_is_refused(operator: str) -> None:
    """With a sentence that names an argument; none is computed with, none crashes."""
    call = getattr(OPS, operator)
    call(*OPERATORS[operator]().values())
    accepted, unclear = [], []
    for name, value in OPERATORS[operator]().items():
        for what, bad in _spoilt(value):
            axis = re.search(r"axis (\d)", what)
            if (axis and (operator, name, int(axis[1])) in FREE) or (what == "none" and (operator, name) in NONE):
                continue
            given = {**OPERATORS[operator](), name: bad}
            try:
                call(*given.values())
            except (ValueError, TypeError, RuntimeError) as error:
                if not any(argument in str(error) for argument in given):
                    unclear.append(f"{name} {what}: {error}")
            else:
                accepted.append(f"{name} {what}")
    assert not accepted, accepted
    assert not unclear, unclear


@pytest.mark.smoke
@pytest.mark.parametrize("gate", ["mu", "beta"])
def test_gates_of_another_dtype_are_refused(gate: str) -> None:
    given = _forward()
    given[gate] = given[gate].half()
    with pytest.raises(TypeError, match=rf"{gate} must be torch.float32.*float16"):
        OPS.cascade_forward(*given.values())


def _walk(seed: Tensor, psi: Tensor) -> Tensor:
    y = cascaded_random_walk(seed, [psi], [0.5], [0.5])
    assert isinstance(y, Tensor)
    return y


def _traced(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    example = torch.randn(2, 2, 20), torch.randn(2, 3, 20)
    if how == "jit.trace":
        return torch.jit.trace(_walk, example)  # type: ignore[no-any-return]
    if how == "make_fx":
        return torch.fx.experimental.proxy_tensor.make_fx(_walk)(*example)

    class Walk(torch.nn.Module):
        def forward(self, seed: Tensor, psi: Tensor) -> Tensor:
            return _walk(seed, psi)

    module = torch.export.export(Walk(), example).graph_module
    return lambda seed, psi: module(seed, psi)[0]


@pytest.mark.parametrize("how", ["jit.trace", "make_fx", "export"])
def test_a_traced_graph_checks_other_sizes(how: str) -> None:
    """It was traced for small fields; other fields that fit each other run, those that do not are refused."""
    run = _traced(how)
    seed, psi = torch.randn(3, 4, 33), torch.randn(3, 6, 33)
    torch.testing.assert_close(run(seed, psi), _walk(seed, psi))
    for bad_seed, bad_psi in (
        (torch.randn(64, 2, 4000), torch.randn(1, 64, 4000)),
        (torch.randn(2, 2, 20), torch.randn(2, 3, 10)),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"psi\[0\] must be \(B, C, \*S\) on the batch and grid"):
            run(bad_seed, bad_psi)


def test_a_traced_projection_checks_other_sizes() -> None:
    example = torch.randn(2, 3, 6, 7), torch.randn(4, 3)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x, w: psi_projection(x, w, None, None, (2, 3)))(*example)
    with pytest.raises(ValueError, match=r"weight must be \(D, C\)"):
        traced(example[0], torch.randn(4, 5))


def _native() -> dict[str, dict[str, Any]]:
    """Arguments of the library's own operators, as backends/cpu.py passes them."""
    field, psi, gates = torch.randn(B, K, N), torch.randn(B, D, N), torch.rand(T)
    walked, row_lse = torch.zeros(B, N, K), torch.zeros(B, N)
    walk = {"state": field, "seed": field, "psi": psi, "bias": torch.randn(B, N), "mu": gates, "beta": gates, "t": 0}
    saved = {"walked": walked, "row_lse": row_lse}
    grads = {"grad_state": torch.zeros_like(walked), "grad_seed": torch.zeros_like(walked)}
    grads |= {"grad_psi": torch.zeros_like(psi), "grad_bias": torch.zeros_like(row_lse)}
    grads |= {"grad_mu": torch.zeros(T), "grad_beta": torch.zeros(T)}
    features, weight, channels = torch.randn(B, K, 1, 6, 7), torch.randn(D, K), torch.zeros(D)
    peak, position = torch.zeros(B, 1, 2, 3, D), torch.zeros(B, 1, 2, 3, D).int()
    z = torch.randn(B, 1, 6, 7, D)
    return {
        "walk_forward": {**walk, "next_state": torch.zeros_like(field), **saved},
        "walk_backward": {"grad_next": field, "grad_row_lse": torch.randn(B, N), **walk, **saved, **grads},
        "project_pool_forward": {
            "features": features,
            "weight": weight,
            "slope": channels + 1,
            "peak": peak.movedim(-1, 1),
            "position": position.movedim(-1, 1),
            "mean": channels.clone(),
            "variance": channels.clone(),
        },
        "project_pool_backward": {
            "grad_peak": peak,
            "grad_mean": channels,
            "grad_variance": channels,
            "features": features,
            "weight": weight,
            "position": position,
            "z": z,
            "mean": channels,
            "grad_features": torch.zeros_like(features),
            "grad_weight": torch.zeros_like(weight),
        },
    }


# sizes that fit whatever the others are: the width of an embedding, and the pixels that are pooled
NATIVE_FREE = {("walk_forward", "psi", 1)} | {("project_pool_forward", "features", axis) for axis in (2, 3, 4)}
# read and written straight, without strides
DENSE = (
    "mu",
    "beta",
    "walked",
    "row_lse",
    "grad_state",
    "grad_seed",
    "bias",
    "grad_row_lse",
    "grad_bias",
    "grad_mu",
    "grad_beta",
    "weight",
    "slope",
    "mean",
)
DENSE += ("variance", "grad_peak", "grad_mean", "grad_variance", "z", "grad_weight")


@pytest.mark.smoke
@pytest.mark.parametrize("operator", ["walk_forward", "walk_backward", "project_pool_forward", "project_pool_backward"])
def test_the_librarys_own_operators_check_too(native: str, operator: str) -> None:
    """They write through pointers: a tensor of other sizes, dtype or strides must not reach a kernel."""
    call = getattr(OPS, operator)
    call(*_native()[operator].values())
    accepted = []
    for name, value in _native()[operator].items():
        if not isinstance(value, Tensor):
            continue
        ways = [(what, bad) for what, bad in _spoilt(value) if what != "on another device"]
        if name in DENSE:
            ways += [("fp64", value.double()), ("every other number", torch.stack([value, value], -1)[..., 0])]
        for what, bad in ways:
            axis = re.search(r"axis (\d)", what)
            if (axis and (operator, name, int(axis[1])) in NATIVE_FREE) or bad.dtype == torch.long == value.dtype:
                continue
            try:
                call(*{**_native()[operator], name: bad}.values())
            except (RuntimeError, TypeError, ValueError):
                continue
            accepted.append(f"{name} {what}")
    assert not accepted, accepted
