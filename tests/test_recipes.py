"""Every snippet of docs/recipes.md runs, in order, and gives what the text beside it says, against dense fp64."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.dense import dense

RECIPES = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", RECIPES, re.MULTILINE | re.DOTALL))
B, K, D, H, W = 2, 3, 8, 7, 9


def _names() -> dict[str, Any]:
    chance = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    centres = normal(2, 768)
    side = (torch.arange(W) < 4).long().expand(B, H, W)
    angle = torch.rand(80, generator=chance).double() * torch.pi
    moons = torch.stack([angle.cos(), angle.sin()], 1)
    moons[40:] = torch.tensor([1.0, 0.4]).double() - moons[40:]
    scribbles = torch.full((B, H, W), -1)
    scribbles[:, 3, 1], scribbles[:, 3, 7] = 0, 1
    return {
        "B": B, "H": H, "W": W,
        "scores": normal(B, K, H, W), "psi": normal(B, D, H, W), "image": normal(B, 3, H, W).sigmoid() / 4,
        "q": normal(B, 16, H, W), "k": normal(B, 16, H, W), "v": normal(B, 16, H, W),
        "padded_scores": normal(2, K, 12, 16), "padded_psi": normal(2, D, 12, 16),
        "known": normal(B, 1, H, W) > 1, "mu": normal(B, 1, H, W).sigmoid(), "beta": normal(B, 1, H, W).sigmoid(),
        "features": centres[side].movedim(-1, 1) + 0.5 * normal(B, 768, H, W),
        "points": moons, "labels": torch.where(torch.arange(80) % 10 == 0, torch.arange(80) // 40, -1), "scribbles": scribbles,
        "photo": 0.7 - 0.3 * side.unsqueeze(1) + 0.02 * normal(B, 3, H, W),
        "queries": normal(B, 2, 5, D), "keys": normal(B, 2, 9, D), "values": normal(B, 2, 9, D),
    }  # fmt: skip


def _rows(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _gram(psi: Tensor) -> Tensor:
    wide = psi.double().flatten(2)
    return wide.mT @ wide


def _walked(P: Tensor, y: Tensor) -> Tensor:
    return (y.double().flatten(2) @ P.mT).reshape(y.shape)


def _close(ours: Tensor, true: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), true, rtol=tolerance, atol=tolerance)


def _temperature(given: dict[str, Any]) -> None:
    psi, scores = given["psi"], given["scores"]
    unit = psi.double() / psi.double().norm(dim=1, keepdim=True)
    _close(given["sharp"], _walked(_rows(4 * _gram(psi)), scores))
    _close(given["scaled"], _walked(_rows(_gram(psi) / D**0.5), scores))
    _close(given["cosine"], _walked(_rows(20 * _gram(unit)), scores))


def _attention(given: dict[str, Any]) -> None:
    def attend(x: Tensor) -> Tensor:
        q, v = (t.double().reshape(B, 8, 2, H * W).mT for t in (x, given["v"]))
        return (_rows(q @ q.mT / 2**0.5) @ v).mT.reshape(x.shape)

    _close(given["attended"], attend(given["q"]))
    _close(given["correlative"], attend(given["q"]) + attend(given["k"]))


def _sizes(given: dict[str, Any]) -> None:
    seed, psi = given["padded_scores"].double(), given["padded_psi"].double()
    for image, (height, width) in enumerate([(12, 9), (7, 16)]):
        crop = (slice(image, image + 1), slice(None), slice(height), slice(width))
        gates = torch.tensor([0.9]).double(), torch.tensor([0.5]).double()
        (alone,), _ = dense(seed[crop], [psi[crop]], *gates)
        _close(given["y"][crop], alone)
        assert torch.equal(given["y"][image, :, height:], given["padded_scores"][image, :, height:])


def _kernels(given: dict[str, Any]) -> None:
    place = torch.stack(torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")).double() / 8
    f = torch.cat([place.expand(B, -1, -1, -1), given["image"].double() / 0.1], 1).flatten(2).mT
    kernel = (-(f.unsqueeze(1) - f.unsqueeze(2)).square().sum(-1) / 2).exp()
    _close(given["smoothed"], _walked(kernel / kernel.sum(-1, keepdim=True), given["scores"]))
    kernel.diagonal(dim1=-2, dim2=-1).zero_()
    _close(given["message"], _walked(kernel / kernel.sum(-1, keepdim=True), given["scores"]), 1e-4)


def _hard(given: dict[str, Any]) -> None:
    P, seed = _rows(_gram(given["psi"])), given["scores"].double()
    y = seed
    for _ in range(10):
        y = torch.where(given["known"], seed, 0.9 * _walked(P, y) + 0.1 * seed)
    _close(given["hard"], y)
    mu, beta = given["mu"].double(), given["beta"].double()
    _close(given["y"], beta * (mu * _walked(P, seed) + (1 - mu) * seed) + (1 - beta) * seed)


def _power(given: dict[str, Any]) -> None:
    _close(given["y"], _walked(torch.linalg.matrix_power(_rows(_gram(given["psi"])), 4), given["scores"]))


def _normalised(psi: Tensor) -> Tensor:
    logits = _gram(psi)
    half = logits.logsumexp(-1) / 2
    return (logits - half.unsqueeze(1) - half.unsqueeze(2)).exp()


def _symmetric(given: dict[str, Any]) -> None:
    _close(given["x"], _walked(_normalised(given["psi"]), given["scores"]), 1e-4)
    b = given["b"].double().flatten(1)
    sums = (_gram(given["psi"]) + b.unsqueeze(1) + b.unsqueeze(2)).exp().sum(-1)
    _close(sums, torch.ones_like(sums), 1e-2)


def _spreading(given: dict[str, Any]) -> None:
    """As scikit-learn has it, and where that is not installed as its definition says."""
    points, labels = given["points"], given["labels"]
    kernel = (-20 * torch.cdist(points, points).square()).exp().fill_diagonal_(0)
    root = kernel.sum(1).sqrt()
    start = torch.stack([labels == k for k in range(2)], 1).double()
    y = start
    for _ in range(30):
        y = 0.2 * (kernel / root / root[:, None]) @ y + 0.8 * start
    _close(given["shares"], y / y.sum(1, keepdim=True), 1e-9)
    if importlib.util.find_spec("sklearn"):
        from sklearn.semi_supervised import LabelSpreading

        theirs = LabelSpreading(kernel="rbf", gamma=20, alpha=0.2, max_iter=30, tol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tol=0 is not reached
            theirs.fit(points.numpy(), labels.numpy())
        _close(given["shares"], torch.as_tensor(theirs.label_distributions_), 1e-9)


def _interactive(given: dict[str, Any]) -> None:
    f = given["psi"].double().flatten(2).mT
    P = _rows(-torch.cdist(f, f).square() / 2)
    seed = given["scribbled"].double().flatten(2).mT
    true = torch.linalg.solve(torch.eye(H * W).double() - 0.99 * P, 0.01 * seed).mT.reshape(B, 2, H, W)
    _close(given["shares"], true, 1e-3)
    assert torch.equal(given["segmentation"], (torch.arange(W) >= 4).long().expand(B, H, W)), "at the edge of the image"


def _cut(given: dict[str, Any]) -> None:
    features = given["features"].double()
    psi = features / features.norm(dim=1, keepdim=True) * 10**0.5
    true = torch.linalg.eigvalsh(_normalised(psi)).flip(-1)
    _close(given["values"], true[:, :2], 1e-5)
    left = given["segment"][..., :4].flatten(1).double().mean(1)
    right = given["segment"][..., 4:].flatten(1).double().mean(1)
    assert ((left - right).abs() == 1).all(), "the cut runs between the two kinds of features"


def _attended(given: dict[str, Any]) -> None:
    q, k, v = (given[name].double() for name in ("queries", "keys", "values"))
    _close(given["attended"], _rows(q @ k.mT / D**0.5) @ v)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "Temperature, 1/√D, cosine": _temperature,
    "Attention with shared queries and keys": _attention,
    "Images of different sizes in one batch": _sizes,
    "Gaussian and bilateral kernels": _kernels,
    "Hard seeds, and a μ for every pixel": _hard,
    "Pⁿ": _power,
    "Symmetric normalisation": _symmetric,
    "Label spreading": _spreading,
    "Interactive segmentation": _interactive,
    "Normalised cut on features of a foundation model": _cut,
    "Where a walk is the wrong tool": _attended,
}


# recipes that use the functions of another one
USES = {
    "Label spreading": ("Gaussian and bilateral kernels",),
    "Interactive segmentation": ("Gaussian and bilateral kernels",),
    "Normalised cut on features of a foundation model": ("Symmetric normalisation",),
}


def _snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_every_recipe_is_checked() -> None:
    assert list(SECTIONS) == list(CHECKS)
    assert all(_snippets(text) for text in SECTIONS.values())


@pytest.mark.smoke
@pytest.mark.parametrize("recipe", CHECKS)
def test_a_recipe_gives_what_it_says(recipe: str) -> None:
    torch.manual_seed(0)
    given = _names()
    (imports,) = _snippets(RECIPES[: RECIPES.index("\n## ")])
    exec(imports, given)
    for before in USES.get(recipe, ()):
        for snippet in _snippets(SECTIONS[before]):
            exec(snippet, given)
    for number, snippet in enumerate(_snippets(SECTIONS[recipe])):
        exec(snippet, given)
        if "Hard" in recipe and number == 0:
            given["hard"] = given["y"]
    CHECKS[recipe](given)
