"""A source tree without a library says that it is one, and where the installed copy is; nothing is guessed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _copy(to: Path, *, library: bool) -> Path:
    skipped = shutil.ignore_patterns("__pycache__", *([] if library else ["*.so", "build_report.json"]))
    shutil.copytree(ROOT / "difnet_kernels", to / "difnet_kernels", ignore=skipped)
    return to


def _info(folder: Path, *path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "difnet_kernels", "info"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = _copy(tmp_path / "tree", library=False)
    (made / "setup.py").touch()
    (made / "csrc").mkdir()
    return made


@pytest.mark.smoke
def test_a_tree_without_a_library_says_so(tree: Path) -> None:
    told = _info(tree)
    assert f"this is the source tree {tree}, in which no library was built" in told
    assert "build_ext --inplace" in told and "never installed" not in told and "no C++ compiler" not in told


@pytest.mark.smoke
def test_a_tree_names_the_installed_copy_that_it_shadows(tree: Path, tmp_path: Path, native: str) -> None:
    installed = _copy(tmp_path / "site", library=True)
    metadata = installed / "difnet_kernels-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: difnet-kernels\nVersion: 0.1.0\n")
    told = _info(tree, installed)
    assert f"an installed copy that has one is {installed / 'difnet_kernels'}: start Python in another folder" in told
    elsewhere = _info(tmp_path, installed)
    assert f"at {installed / 'difnet_kernels'}" in elsewhere and "uses " in elsewhere


@pytest.mark.smoke
def test_an_installation_without_a_library_gives_the_report_of_its_build(tmp_path: Path) -> None:
    installed = _copy(tmp_path, library=False)
    assert "no build left a report" in _info(tmp_path)
    (installed / "difnet_kernels" / "build_report.json").write_text('{"notes": ["the flux compiler was asleep"]}')
    assert "the compiled library is missing: the flux compiler was asleep" in _info(tmp_path)
