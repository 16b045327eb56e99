"""A thousand random calls with one argument that does not fit: none is silent, none has an unclear message.

Clear is an exception of a kind that a caller expects whose message names the argument as the caller knows it and is a
sentence. Each call prints its number; `make` of that number is the call again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from difnet_kernels import (
    BackendUnavailable,
    CascadedRandomWalk,
    DiffusedHead,
    ImportanceMap,
    PsiProjection,
    cascaded_random_walk,
    diffuse,
    parameter_groups,
    psi_projection,
    random_walk,
    transition_rows,
)

B, K, D, C, GRID = 2, 3, 6, 5, (4, 7)
CALLS = 1000

NO_TENSORS = [None, 3, 2.5, "seed", [1.0], {"a": 1}, object(), np.zeros((B, K, *GRID)), [torch.zeros(2)], True, {1, 2}]
NOT_FIELDS = [
    torch.zeros(()),
    torch.zeros(3),
    torch.zeros(B, K),
    torch.zeros(B, 0, *GRID),
    torch.zeros(B, K, *GRID).long(),
    torch.zeros(B, K, *GRID) > 0,
    torch.zeros(B, K, *GRID).to(torch.complex64),
    torch.zeros(B, K, *GRID, device="meta"),
    torch.zeros(B, K, *GRID).to(torch.float8_e4m3fn),
    torch.zeros(B, *GRID, 9),
    torch.zeros(B + 1, K, *GRID),
    torch.zeros(B, K, 4, 6),
    torch.zeros(B, K, 28),
    torch.zeros(B, K, *GRID, 1),
]
NO_STRINGS = ["", "HIGH", 3, None, ["high"], b"high", torch.zeros(1), True]
NO_BACKENDS = ["", "gpu", 3, [], ["cpu"], torch.zeros(1), True, ("cpu",), {}]
BAD_GRIDS = [
    8,
    None,
    (8,),
    (4, 7, 1),
    (4.0, 7.0),
    (0, 7),
    (-4, 7),
    "47",
    {},
    torch.Size([4]),
    (True, 7),
    (4, None),
    2.5,
    [],
]


def _gates(walks: int) -> list[Any]:
    return [
        0.5,
        None,
        "0.5",
        [0.5] * (walks + 1),
        [],
        [1.5] * walks,
        [float("nan")] * walks,
        [-0.1] * walks,
        ["a"] * walks,
        torch.zeros(walks + 1),
        torch.zeros(walks, 1),
        torch.zeros(walks).long(),
        torch.zeros(walks, device="meta"),
        [torch.tensor(0.5)] * walks,
        {"mu": 0.5},
        [None] * walks,
        torch.zeros(walks).to(torch.complex64),
        [1j] * walks,
        np.array([0.5] * walks),
        {0.5},
    ]


def _gate() -> list[Any]:
    return [
        None,
        "0.5",
        1.5,
        -1,
        float("nan"),
        torch.zeros(2),
        torch.zeros(1).long(),
        torch.zeros((), device="meta"),
        [0.5],
        {"mu": 1},
        1j,
        torch.zeros(0),
    ]


def _bias() -> list[Any]:
    """What is no bias of one walk."""
    return [
        *NO_TENSORS[1:],
        *NOT_FIELDS,
        torch.zeros(B + 1, *GRID),
        torch.zeros(B, GRID[1], GRID[0]),
        torch.zeros(B, *GRID).long(),
        torch.zeros(B, *GRID) > 0,
        torch.zeros(B, *GRID, device="meta"),
    ]


def _mask() -> list[Any]:
    there = torch.ones(B, *GRID, dtype=torch.bool)
    return [
        *NO_TENSORS[1:],
        *NOT_FIELDS,
        there[:1],
        there[0],
        there[:, :-1],
        there.unsqueeze(1),
        there.int(),
        there.float(),
        there.to("meta"),
    ]


def _cascade() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    psi = [torch.randn(B, D, *GRID)] * 2
    wrong = [*NOT_FIELDS[:8], torch.zeros(B, D, 4, 6), torch.zeros(B + 1, D, *GRID), *NO_TENSORS[1:]]
    return (
        cascaded_random_walk,
        {
            "seed": torch.randn(B, K, *GRID),
            "psi": psi,
            "mu": [0.5] * 2,
            "beta": torch.rand(2),
            "bias": None,
            "mask": None,
            "precision": "high",
            "backend": None,
        },
        {
            "seed": [*NO_TENSORS, *NOT_FIELDS],
            "psi": [
                None,
                3,
                "psi",
                [],
                {},
                psi[0],
                torch.zeros(0, B, D, *GRID),
                *[[psi[0], x] for x in wrong],
                {"a": psi[0]},
            ],
            "mu": _gates(2),
            "beta": _gates(2),
            "bias": [*_bias(), torch.zeros(3, B, *GRID), [None] * 3, *[[None, x] for x in _bias()]],
            "mask": _mask(),
            "precision": NO_STRINGS,
            "backend": NO_BACKENDS,
        },
    )


def _walk() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    field = torch.randn(B, K, *GRID)
    given = {"state": field, "psi": torch.randn(B, D, *GRID), "seed": field, "mu": 0.5, "beta": torch.tensor(0.5)}
    other = [torch.zeros(B, K + 1, *GRID)]
    wrong = {
        "state": [*NO_TENSORS, *NOT_FIELDS, *other],
        "psi": [*NO_TENSORS, *NOT_FIELDS],
        "seed": [*NO_TENSORS, *NOT_FIELDS, *other],
        "mu": _gate(),
        "beta": _gate(),
        "bias": [*_bias(), torch.zeros(1, B, *GRID), [None]],
        "mask": _mask(),
        "precision": NO_STRINGS,
        "backend": NO_BACKENDS,
    }
    return random_walk, {**given, "bias": None, "mask": None, "precision": "high", "backend": None}, wrong


def _projection() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    given = {
        "features": torch.randn(B, C, 8, 9),
        "weight": torch.randn(D, C),
        "bias": torch.randn(D),
        "norm": nn.BatchNorm2d(D),
        "grid": GRID,
        "backend": None,
    }
    features = [x for x in NOT_FIELDS if not (isinstance(x, torch.Tensor) and x.dim() > 2 and x.shape[1] == C)]
    wrong = {
        "features": [
            *NO_TENSORS,
            *features,
            torch.zeros(B, C, 0, 9),
            torch.zeros(B, 8, 9, C),
            torch.zeros(B, C, 1, 1, 1, 1),
        ],
        "weight": [
            *NO_TENSORS,
            torch.zeros(D),
            torch.zeros(D, C + 1),
            torch.zeros(0, C),
            torch.zeros(D, C).long(),
            torch.zeros(D, C, 1, 1),
            torch.zeros(D, C, device="meta"),
        ],
        "bias": [
            *NO_TENSORS[1:],
            torch.zeros(D + 1),
            torch.zeros(D, 1),
            torch.zeros(D).long(),
            torch.zeros(D, device="meta"),
        ],
        "norm": [
            3,
            "batch",
            nn.BatchNorm2d(D + 1),
            [nn.BatchNorm2d(D)],
            {},
            torch.zeros(D),
            nn.BatchNorm2d(D, device="meta"),
        ],
        "grid": BAD_GRIDS,
        "backend": NO_BACKENDS,
    }
    return psi_projection, given, wrong


def _rows() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    nodes = [
        None,
        3,
        "nodes",
        [],
        [[0.5], [0.5]],
        [[True], [False]],
        [0, 1],
        [[0]],
        [[[0]], [[1]]],
        [[28], [0]],
        [[-1], [0]],
        [[[0, 7]], [[0, 0]]],
        torch.zeros(B, 1),
        torch.zeros(B, 1, dtype=torch.long, device="meta"),
        {"a": 1},
        object(),
        [["a"], ["b"]],
        np.zeros((B, 1)),
        [[0], [1, 2]],
    ]
    psi = [
        x
        for x in NOT_FIELDS[:9]
        if not (
            x.dim() > 3 and x.is_floating_point() and x.shape[1] and x.device.type == "cpu" and x.element_size() > 1
        )
    ]
    return (
        transition_rows,
        {"psi": torch.randn(B, D, *GRID), "nodes": torch.zeros(B, 1, dtype=torch.long), "bias": None, "mask": None},
        {"psi": [*NO_TENSORS, *psi], "nodes": nodes, "bias": _bias(), "mask": _mask()},
    )


def _diffuse() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    seed = torch.randn(B, K, *GRID)
    psi = [
        torch.randn(B, D, *GRID[:1]),
        torch.randn(B + 1, D, *GRID),
        torch.randn(B, D, 4, 8),
        torch.randn(B, D, *GRID).long(),
    ]
    return (
        diffuse,
        {"seed": seed, "psi": torch.randn(B, D, *GRID), "mu": 0.5},
        {
            "seed": [*NO_TENSORS, *NOT_FIELDS],
            "psi": [*NO_TENSORS, *psi],
            "mu": [*_gate(), 1.0, torch.ones(()), torch.tensor(-0.1), torch.tensor(float("nan"))],
            "bias": [3, "b", torch.zeros(B, K, *GRID), torch.zeros(B, *GRID).long(), torch.zeros(B + 1, *GRID)],
            "mask": [3, torch.zeros(B, *GRID), torch.zeros(B, 3, 7) > 0],
            "tol": [0.0, -1e-3, None, "1e-3", 1.0, float("nan"), True],
            "max_walks": [0, -8, 2.5, "8"],
            "store": [-1, 1.5, None, "1 GB"],
            "precision": [None, "low"],
            "backend": [3, "tpu"],
        },
    )


def _module() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    walk = CascadedRandomWalk((C, C + 1), D)
    features = [torch.randn(B, C, 8, 9), torch.randn(B, C + 1, *GRID)]
    wrong = [
        None,
        3,
        "maps",
        [],
        features[0],
        features[:1],
        [*features, features[0]],
        features[::-1],
        [features[0], None],
        {"a": features[0], "b": 3},
    ]
    wrong += [
        [features[0].long(), features[1]],
        [features[0].movedim(1, -1), features[1]],
        [features[0][0], features[1]],
    ]
    return (
        walk,
        {"seed": torch.randn(B, K, *GRID), "features": features},
        {"seed": [*NO_TENSORS, *NOT_FIELDS[:4]], "features": wrong},
    )


def _psi_module() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    wrong = [*NO_TENSORS, torch.zeros(B, C + 1, 8, 9), torch.zeros(B, C), torch.zeros(B, 8, 9, C)]
    return (
        PsiProjection(C, D),
        {"features": torch.randn(B, C, 8, 9), "grid": GRID},
        {"features": wrong, "grid": BAD_GRIDS},
    )


def _construction() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    sizes = [None, 3.5, "35", [], (3, 0), (3, -1), (3, 2.0), {"a": 3}, (None,), 0]
    return (
        CascadedRandomWalk,
        {"in_channels": (3, 5), "embed_dim": 4, "gate": 0.5},
        {
            "scale": [0.0, -1.0, None, "1", float("nan"), float("inf"), True],
            "affinity": [None, "gauss", 1],
            "norm": ["instance", 3, True, nn.BatchNorm2d(4), lambda channels: channels],
            "precision": [None, "low", 1],
            "backend": ["tpu", 3],
            "in_channels": sizes,
            "embed_dim": [0, -1, 2.5, "64", None, (64,)],
            "gate": [0.0, 1.0, -1, 2, "a", None, float("nan"), [0.5]],
        },
    )


def _constructed_head() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    return (
        DiffusedHead,
        {"head": nn.Conv2d(3, 2, 1), "in_channels": [3], "stride": 2},
        {"head": [None, torch.relu, "head"], "in_channels": [3, [], [0], "3", None], "stride": [0, -1, 2.0, "2"]},
    )


def _head() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    def of(stride: int) -> Any:
        return DiffusedHead(nn.Conv2d(C, K, 1), [C], stride=stride)(torch.randn(B, C, 8, 12))

    return of, {"stride": 4}, {"stride": [3, 5, 6, 8]}


def _rates() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    return parameter_groups, {"model": nn.Linear(2, 2), "lr": 0.1}, {"lr": [0, -1.0, None, "0.1", float("nan"), True]}


def _constructed_psi() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    sizes = [0, -1, 2.5, "64", None, (64,)]
    return PsiProjection, {"in_channels": 3, "embed_dim": 4}, {"in_channels": sizes, "embed_dim": sizes}


def _importance() -> tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]:
    return ImportanceMap, {"num_classes": 3}, {"num_classes": [0, -1, 2.5, "3", None]}


FUNCTIONS = (_cascade, _walk, _projection, _rows, _module, _psi_module, _construction, _constructed_psi, _importance)
FUNCTIONS += (_constructed_head, _head, _rates, _diffuse)


def make(number: int) -> tuple[Callable[..., Any], dict[str, Any], str, Any]:
    draw = random.Random(number)
    call, given, wrong = draw.choice(FUNCTIONS)()
    name = draw.choice(sorted(wrong))
    value = draw.choice(wrong[name])
    return call, {**given, name: value}, name, value


def _told(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype} {value.device}" if isinstance(value, torch.Tensor) else repr(value)[:80]


@pytest.mark.smoke
@pytest.mark.parametrize("first", range(0, CALLS, 100))
def test_every_invalid_call_is_refused_clearly(first: int) -> None:
    silent, unclear = [], []
    for number in range(first, first + 100):
        call, given, name, value = make(number)
        told = f"{number}: {getattr(call, '__name__', type(call).__name__)}({name}={_told(value)})"
        try:
            call(**given)
        except (TypeError, ValueError, IndexError, BackendUnavailable) as error:
            message = str(error)
            if name not in message or not message.rstrip().endswith((".", ")", "`")):
                unclear.append(f"{told}: {type(error).__name__}: {message}")
        except Exception as error:
            unclear.append(f"{told}: {type(error).__name__}: {error}")
        else:
            silent.append(told)
    assert not silent and not unclear, "\n".join(["silent:", *silent, "unclear:", *unclear])


def test_the_calls_are_valid_without_the_wrong_argument() -> None:
    """Else everything would be refused for another reason."""
    for made in FUNCTIONS:
        call, given, _ = made()
        call(**given)
