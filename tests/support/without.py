"""`python tests/support/without.py DISTRIBUTION ... -- ARGUMENTS`: pytest in an interpreter that does not find these.

What `pip install .[test]` leaves out may not be needed by the tests of the kernels.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from typing import Any

import pytest


def hide(distributions: set[str]) -> None:
    """Their modules are not found from now on."""
    hidden = {
        module for module, names in packages_distributions().items() if distributions & {n.lower() for n in names}
    }

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return None if fullname.split(".")[0] in hidden else super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]


if __name__ == "__main__":
    split = sys.argv.index("--")
    hide({name.lower() for name in sys.argv[1:split]})
    sys.path.insert(0, "")
    raise SystemExit(pytest.main(sys.argv[split + 1 :]))
