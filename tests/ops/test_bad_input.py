"""Errors come at the door, before any work, and name the rule, what was got and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from difnet_kernels import BACKENDS, BackendUnavailable, cascaded_random_walk, random_walk, transition_rows
from tests.support.cases import placed

SEED, PSI = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
HALF = torch.tensor([0.5])


def cascade(**changes: Any) -> object:
    arguments: dict[str, Any] = {"seed": placed(SEED), "psi": [placed(PSI)], "mu": HALF, "beta": HALF, **changes}
    return cascaded_random_walk(**arguments)


def step(**changes: Any) -> object:
    arguments: dict[str, Any] = {"state": SEED, "psi": PSI, "seed": SEED, "mu": 0.5, "beta": 0.5, **changes}
    return random_walk(**arguments)


def rows(psi: Any = PSI, nodes: Any = None) -> object:
    return transition_rows(psi, torch.zeros(2, 1, dtype=torch.long) if nodes is None else nodes)


META = torch.device("meta")
# name: the call, the exception, what the message must say (the rule, what was got, what to do)
BAD: dict[str, tuple[Callable[[], object], type[Exception], tuple[str, ...]]] = {
    "seed is no tensor": (lambda: cascade(seed=[1.0]), TypeError, ("seed must be a tensor", "list", "torch.as_tensor")),
    "seed of integers": (
        lambda: cascade(seed=SEED.long()),
        TypeError,
        ("seed must be float16", "torch.int64", "float()"),
    ),
    "seed of booleans": (lambda: cascade(seed=SEED > 0), TypeError, ("seed must be float16", "torch.bool")),
    "seed of complex numbers": (
        lambda: cascade(seed=SEED + 0j),
        TypeError,
        ("seed must be float16", "torch.complex64"),
    ),
    "seed of 8-bit floats": (lambda: cascade(seed=SEED.to(torch.float8_e4m3fn)), TypeError, ("float8", "seed.float()")),
    "seed that is sparse": (lambda: cascade(seed=SEED.to_sparse()), TypeError, ("seed must be a dense", "to_dense()")),
    "psi that is sparse": (
        lambda: cascade(psi=[PSI.to_sparse()]),
        TypeError,
        ("psi[0] must be", "sparse_coo", "psi[0].to"),
    ),
    "seed without a grid": (
        lambda: cascade(seed=SEED[:, :, 0, 0]),
        ValueError,
        ("spatial axis", "(2, 3)", "unsqueeze"),
    ),
    "seed without classes": (lambda: cascade(seed=SEED[:, :0]), ValueError, ("seed", "one channel", "(2, 0, 4, 5)")),
    "psi is no sequence": (lambda: cascade(psi=3.0), TypeError, ("psi must be a sequence", "float")),
    "psi is a single walk": (lambda: cascade(psi=PSI), ValueError, ("(T, B, D, *S)", "(2, 6, 4, 5)", "[psi]")),
    "psi is empty": (lambda: cascade(psi=[]), ValueError, ("at least one embedding", "none")),
    "psi holds a list": (lambda: cascade(psi=[[1.0]]), TypeError, ("psi[0] must be a tensor", "list")),
    "psi of integers": (lambda: cascade(psi=[PSI.int()]), TypeError, ("psi[0] must be float16", "torch.int32")),
    "psi of complex numbers": (lambda: cascade(psi=[PSI + 0j]), TypeError, ("psi[0] must be float16", "complex")),
    "psi without channels": (lambda: cascade(psi=[PSI[:, :0]]), ValueError, ("psi[0]", "one channel", "(2, 0, 4, 5)")),
    "psi on another grid": (
        lambda: cascade(psi=[PSI[..., 1:]]),
        ValueError,
        ("psi[0]", "grid of seed (2, 3, 4, 5)", "(2, 6, 4, 4)", "PsiProjection"),
    ),
    "psi of another batch": (lambda: cascade(psi=[PSI[:1]]), ValueError, ("psi[0]", "batch", "(1, 6, 4, 5)")),
    "psi of another rank": (
        lambda: cascade(psi=[PSI.flatten(2)]),
        ValueError,
        ("psi[0]", "grid of seed", "(2, 6, 20)"),
    ),
    "second psi is wrong": (
        lambda: cascade(psi=[PSI, PSI[..., 1:]], mu=[0.5] * 2, beta=[0.5] * 2),
        ValueError,
        ("psi[1]", "(2, 6, 4, 4)"),
    ),
    "psi on another device": (
        lambda: cascade(psi=[PSI.to(META)]),
        ValueError,
        ("psi[0]", "device of seed, cpu", "meta", ".to("),
    ),
    "mu on another device": (
        lambda: cascade(mu=HALF.to(META)),
        ValueError,
        ("mu", "device of seed, cpu", "meta", ".to("),
    ),
    "mu too long": (lambda: cascade(mu=torch.ones(2)), ValueError, ("mu must be (1,)", "one value per walk", "(2,)")),
    "mu is 0-d": (lambda: cascade(mu=torch.tensor(0.5)), ValueError, ("mu must be (1,)", "()")),
    "mu list too short": (
        lambda: cascade(psi=[PSI] * 2, mu=[0.5], beta=[0.5] * 2),
        ValueError,
        ("mu", "2 in all", "got 1"),
    ),
    "beta list too long": (lambda: cascade(beta=[0.5, 0.5]), ValueError, ("beta", "1 in all", "got 2")),
    "mu a bare number": (lambda: cascade(mu=0.5), TypeError, ("mu must be", "sequence of 1 floats", "float")),
    "mu of integers": (
        lambda: cascade(mu=torch.tensor([1])),
        TypeError,
        ("mu must be floating point", "int64", "float()"),
    ),
    "mu above one": (lambda: cascade(mu=[1.5]), ValueError, ("mu[0]", "probability in [0, 1]", "1.5", "sigmoid")),
    "beta below zero": (
        lambda: cascade(beta=[-0.1]),
        ValueError,
        ("beta[0]", "probability in [0, 1]", "-0.1", "sigmoid"),
    ),
    "beta is NaN": (lambda: cascade(beta=[float("nan")]), ValueError, ("beta[0]", "probability in [0, 1]", "nan")),
    "mu a list of tensors": (lambda: cascade(mu=[HALF[0]]), TypeError, ("mu", "list of tensors", "torch.stack")),
    "mu a string": (lambda: cascade(mu="0.5"), TypeError, ("mu must be", "str")),
    "mu a list of strings": (lambda: cascade(mu=["0.5"]), TypeError, ("mu[0] must be", "str")),
    "unknown precision": (
        lambda: cascade(precision="low"),
        ValueError,
        ("precision must be one of", "'high'", "'low'"),
    ),
    "unknown backend": (
        lambda: cascade(backend="tpu"),
        ValueError,
        ("backend must be None or one of", "'reference'", "'tpu'"),
    ),
    "walk: state of other classes": (lambda: step(state=SEED[:, :2]), ValueError, ("same classes", "2 and 3")),
    "walk: state on another grid": (
        lambda: step(state=SEED[..., 1:]),
        ValueError,
        ("state", "grid of seed", "(2, 3, 4, 4)"),
    ),
    "walk: state of integers": (lambda: step(state=SEED.int()), TypeError, ("state must be float16", "int32")),
    "walk: psi a list": (lambda: step(psi=[PSI]), TypeError, ("psi must be a tensor", "list")),
    "walk: psi on another grid": (lambda: step(psi=PSI[..., 1:]), ValueError, ("psi", "grid of seed", "(2, 6, 4, 4)")),
    "walk: mu above one": (lambda: step(mu=2.0), ValueError, ("mu", "probability in [0, 1]", "2.0")),
    "walk: two betas": (lambda: step(beta=torch.ones(2)), ValueError, ("beta must be a scalar", "(2,)")),
    "walk: unknown backend": (lambda: step(backend="x"), ValueError, ("backend must be None or one of", "'x'")),
    "rows: nodes of floats": (
        lambda: rows(nodes=torch.zeros(2, 1)),
        TypeError,
        ("integer indices", "float32", "long()"),
    ),
    "rows: nodes of booleans": (lambda: rows(nodes=torch.zeros(2, 1) > 0), TypeError, ("integer indices", "bool")),
    "rows: nodes without batch": (lambda: rows(nodes=torch.zeros(1).long()), ValueError, ("(B, M)", "(1,)")),
    "rows: nodes of another batch": (lambda: rows(nodes=torch.zeros(3, 1).long()), ValueError, ("(B, M)", "(3, 1)")),
    "rows: coordinates too long": (
        lambda: rows(nodes=torch.zeros(2, 1, 3).long()),
        ValueError,
        ("(B, M, 2)", "(2, 1, 3)"),
    ),
    "rows: outside the grid": (lambda: rows(nodes=torch.full((2, 1), 20)), IndexError, ("grid (4, 5)", "outside")),
    "rows: negative": (lambda: rows(nodes=torch.full((2, 1), -1)), IndexError, ("grid (4, 5)", "outside")),
    "rows: coordinate outside": (
        lambda: rows(nodes=torch.tensor([[[0, 5]]] * 2)),
        IndexError,
        ("grid (4, 5)", "outside"),
    ),
    "rows: psi without a grid": (lambda: rows(psi=PSI[:, :, 0, 0]), ValueError, ("psi", "spatial axis", "(2, 6)")),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_says_what_is_wrong(name: str) -> None:
    call, kind, words = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert type(caught.value) is kind
    assert re.search(r"\.$", message), f"not a sentence: {message}"


@pytest.mark.parametrize("name", [name for name in BAD if not name.startswith(("rows", "walk"))])
def test_a_bad_call_is_refused_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend is reached: a bad call costs nothing and changes nothing."""
    reached = []
    for backend in BACKENDS.values():
        monkeypatch.setitem(BACKENDS, backend.name, replace(backend, cascade_forward=lambda *a, **k: reached.append(1)))
    with pytest.raises((TypeError, ValueError)):
        BAD[name][0]()
    assert not reached


def test_a_named_backend_that_cannot_run_raises_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent fall back: the message gives the reason, and what would run instead."""
    monkeypatch.setitem(BACKENDS, "cpu", replace(BACKENDS["cpu"], unusable=lambda: "its library is on strike"))
    with pytest.raises(BackendUnavailable, match="cpu: its library is on strike") as caught:
        cascade(backend="cpu")
    assert "reference" in str(caught.value)
    assert isinstance(cascade(), torch.Tensor), "unnamed, the next backend takes over"


def test_when_nothing_can_run_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backend in BACKENDS.items():
        refusing = replace(
            backend, unusable=lambda: None, refuses=lambda p, name=name: f"{name} refuses {p.nodes} nodes"
        )
        monkeypatch.setitem(BACKENDS, name, refusing)
    with pytest.raises(BackendUnavailable) as caught:
        cascade()
    assert all(f"{name}: {name} refuses 20 nodes" in str(caught.value) for name in BACKENDS)


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_gates_given_as_tensors_are_used_as_they_are(backend: str, value: float) -> None:
    """Reading them would make the host wait for the device: outside [0, 1] the formula still holds."""
    gates = torch.tensor([value])
    y = cascade(mu=gates, beta=torch.ones(1), backend=backend)
    seed, psi = placed(SEED).double().flatten(2), placed(PSI).double().flatten(2)
    P = torch.softmax(psi.mT @ psi, dim=-1)
    true = value * seed @ P.mT + (1 - value) * seed
    torch.testing.assert_close(y.double().flatten(2), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["list", "tuple", "fp16", "fp64", "integers 0 and 1", "strided"])
def test_gates_in_every_accepted_form(backend: str, kind: str) -> None:
    gates = {
        "list": [0.5, 0.25],
        "tuple": (0.5, 0.25),
        "fp16": torch.tensor([0.5, 0.25], dtype=torch.float16),
        "fp64": torch.tensor([0.5, 0.25], dtype=torch.float64),
        "integers 0 and 1": [1, 0],
        "strided": torch.tensor([0.5, 9.0, 0.25, 9.0])[::2],
    }[kind]
    plain = torch.tensor([1.0, 0.0] if kind == "integers 0 and 1" else [0.5, 0.25])
    psi = [placed(PSI)] * 2
    ours = cascade(psi=psi, mu=gates, beta=plain, backend=backend)
    assert torch.equal(ours, cascade(psi=psi, mu=plain, beta=plain, backend=backend))
