"""What the sources promise a reader: every equation's label leads to the line that computes it, and imports point down."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path

import pytest

from difnet_kernels import cascade
from difnet_kernels.backends import BACKENDS
from tests.support.capability import device_of, takes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "difnet_kernels"
SOURCES = (".py", ".h", ".cpp", ".cu", ".cuh")

# the labels of docs/math.md that each direction computes
LABELS = {
    "cascade_forward": ("W1", "W2", "W3", "W4", "W5"),
    "cascade_backward": ("W1", "W3", "W4", "W5", "B1", "B2", "B3", "B4", "B5", "B6", "B7"),
    "projection_forward": ("Ψ1",),
    "projection_backward": ("Ψ2", "Ψ3", "Ψ4"),
}
# those of a bias and of the gradient of lse, where the backend takes them
BIASED = {"cascade_forward": ("W1b",), "cascade_backward": ("W1b", "B4b", "B8")}
# the gates of W3, W4 and B1 in code, whatever the language
GATES = re.compile(r"\b1(?:\.0)?f? - \*?\(?(?:mu|beta)\b")


def _files(folder: Path) -> list[Path]:
    found = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return [path for path in found if path.suffix in SOURCES and path.is_file()]


def _sources_of(name: str) -> list[Path]:
    """Its own module or folder in Python, its folder in C++, and cascade.py if that strings its walks."""
    homes = [PACKAGE / "backends" / f"{name}.py", PACKAGE / "backends" / name, ROOT / "csrc" / name]
    forward = BACKENDS[name].cascade_forward
    shared = isinstance(forward, partial) and forward.func is cascade.forward
    return [path for home in homes for path in _files(home)] + [PACKAGE / "cascade.py"] * shared


def _labelled(text: str, label: str) -> bool:
    """Whether a line carries `label` in parentheses, as in (W3) or (B1, B6)."""
    return re.search(rf"\((?:[WBΨ]\db?, )*{label}\b[^()]*\)", text) is not None


@pytest.mark.smoke
@pytest.mark.parametrize("direction", LABELS)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_every_label_is_found(name: str, direction: str) -> None:
    """`grep "(W3"` finds the lines that compute W3, in every backend and direction that it brings."""
    if getattr(BACKENDS[name], direction) is None:
        return
    text = "\n".join(path.read_text(encoding="utf-8") for path in _sources_of(name))
    labels = LABELS[direction]
    if takes(name, device_of(name), bias=True, lse=True):
        labels += BIASED.get(direction, ())
    missing = [label for label in labels if not _labelled(text, label)]
    assert not missing, f"no line of {name}'s {direction} carries {missing}"


@pytest.mark.smoke
def test_no_gate_is_computed_without_its_label() -> None:
    """The way back: a line that blends by μ or β says which equation it is."""
    bare = []
    for path in [*_files(PACKAGE), *_files(ROOT / "csrc")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if GATES.search(line) and not re.search(r"\((?:[WB]\d(?:, )?)+", line):
                bare.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not bare, "\n".join(bare)


# who may import whom: CONTRIBUTING.md draws it; a folder stands for what is in it
ARROWS = {
    "modules": {"modules", "functional", "mask", "backends", "batch_norm", "checks", "problem"},
    "functional": {"ops", "mask", "backends", "batch_norm", "checks", "composed", "problem"},
    "steady_state": {"ops", "mask", "backends", "checks", "problem"},
    "composed": {"problem"},
    "checks": {"problem"},
    "ops": {"ops", "backends", "checks", "iteration", "problem"},
    "backends": {"backends", "cascade", "problem"},
    "cascade": {"backends.reference"},
    "onnx": {"backends.reference"},
    "iteration": set(),
    "batch_norm": set(),
    "problem": set(),
    "__init__": {"backends", "functional", "modules", "onnx", "steady_state"},
    "__main__": {"", "backends"},
}


def _imports(path: Path) -> list[str]:
    """The modules of this repository that a file imports, wherever in the file, as dotted names."""
    found = []
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level], node.module or ""]) if node.level else str(node.module)
            base = base.rstrip(".")
            # `from package import module` names a module, `from module import thing` does not
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if _is_module(name) else base for name in names]
    return [name for name in found if name.split(".")[0] in ("difnet_kernels", "models", "benchmarks", "tests")]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.smoke
def test_imports_of_the_package_point_down() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in _imports(path):
            below = name.removeprefix("difnet_kernels").lstrip(".")
            allowed = any(below == other or below.startswith(f"{other}.") for other in ARROWS[layer] if other)
            if not (name.startswith("difnet_kernels") and (allowed or (below == "" and "" in ARROWS[layer]))):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.smoke
def test_a_backend_knows_no_other() -> None:
    """Only the table knows them all; modules and folders of backends import the problem, the loaders and themselves."""
    wrong = []
    for path in sorted((PACKAGE / "backends").rglob("*.py")):
        home = path.relative_to(PACKAGE / "backends").with_suffix("").parts[0]
        if home == "__init__":
            continue
        for name in _imports(path):
            below = name.removeprefix("difnet_kernels.backends.")
            if name != "difnet_kernels.problem" and below.split(".")[0] not in (home, "native", "imported"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.smoke
def test_tests_and_benchmarks_do_not_import_each_other() -> None:
    """Only the tests of the benchmarks know them, and nobody below knows models, benchmarks or tests."""
    wrong = []
    for folder, forbidden in (
        ("benchmarks", ("tests",)),
        ("models", ("tests", "benchmarks")),
        ("tests", ("benchmarks",)),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.is_relative_to(ROOT / "tests" / "benchmarks"):
                continue
            wrong += [
                f"{path.relative_to(ROOT)} imports {name}" for name in _imports(path) if name.split(".")[0] in forbidden
            ]
    assert not wrong, "\n".join(wrong)
