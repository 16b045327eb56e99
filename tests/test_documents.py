"""What the documents say can be followed: links lead somewhere, examples run, commands exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import difnet_kernels

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.smoke
@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.smoke
@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_commands_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.smoke
@pytest.mark.parametrize("name", [name for name in difnet_kernels.__all__ if callable(getattr(difnet_kernels, name))])
def test_the_examples_of_the_docstrings_run(name: str) -> None:
    """Each public function and module shows one call; an exception is shown by what raises it."""
    public = getattr(difnet_kernels, name)
    if isinstance(public, type) and issubclass(public, Exception):
        return
    (found,) = [test for test in doctest.DocTestFinder(recurse=False).find(public, name) if test.examples]
    found.globs |= {"torch": torch, **vars(difnet_kernels)}
    assert doctest.DocTestRunner().run(found).failed == 0


@pytest.mark.smoke
def test_the_examples_of_the_readme_run() -> None:
    """The first on embeddings; the second around the head of a network, which keeps its scores and gets the rates of a walk."""
    bare, around = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classifier = nn.Conv2d(3, 2048, 3, stride=2), nn.Conv2d(2048, 5, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(image))

    torch.manual_seed(0)
    names: dict = {"network": Network()}
    image = torch.randn(2, 3, 13, 11)
    scores = names["network"](image)
    exec(around, names)
    assert torch.equal(names["network"](image), scores)
    walk = names["network"].classifier.walk
    rates = {id(x): group["lr"] for group in names["optimizer"].param_groups for x in group["params"]}
    assert rates[id(walk.gamma)] > rates[id(walk.psi[0].weight)] < rates[id(walk.mu_raw)]

    names = {"scores": scores, "psi1": torch.randn(2, 4, 6, 5), "psi2": torch.randn(2, 7, 6, 5)}
    exec(bare, names)
    assert names["y"].shape == scores.shape
