"""The compiled library: where it is, whether it loads, which instruction sets it holds and uses (csrc/cpu/isa.def)."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import distributions
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent.parent
LIBRARY = PACKAGE / "libdifnet_kernels.so"
# the operators that write their results into arguments, and so return nothing under a compiler either
KERNELS = ("walk_forward", "walk_backward", "project_pool_forward", "project_pool_backward")


def _load() -> str | None:
    """Load the library and register its fake kernels; the reason if it cannot be used. Doing so twice changes nothing."""
    if not LIBRARY.exists():
        return _missing()
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled library does not load under torch {torch.__version__}: {error}"
    for name in KERNELS:
        torch.library.register_fake(f"difnet_kernels::{name}", _writes_into_arguments)
    try:
        instruction_set()
    except RuntimeError as error:  # DIFNET_KERNELS_ISA names no set, or one that this processor does not run
        reason = str(error).splitlines()[0]
        warnings.warn(f"the CPU kernels of difnet_kernels are not used: {reason}", stacklevel=2)
        return reason
    return None


def _missing() -> str:
    """Why there is no library beside this file, as far as it is known: from the tree it lies in, what is installed beside it,
    and what the build reported."""
    if (tree := source_tree()) is not None:
        use = "start Python in another folder to use it"
        elsewhere = [f"; an installed copy that has one is {copy}: {use}" for copy in _installed()]
        return (
            f"this is the source tree {tree}, in which no library was built (`python setup.py build_ext --inplace` builds it)"
            f"{''.join(elsewhere[:1])}"
        )
    report = PACKAGE / "build_report.json"
    notes = "; ".join(json.loads(report.read_text())["notes"]) if report.exists() else ""
    return f"the compiled library is missing: {notes or f'{LIBRARY} does not exist, and no build left a report'}"


def source_tree() -> Path | None:
    """The source tree that this package was imported from, or None if it is installed elsewhere."""
    root = PACKAGE.parent
    return root if (root / "setup.py").exists() and (root / "csrc").is_dir() else None


def _installed() -> list[Path]:
    """Installed copies of the package that are not this one and have a library."""
    found = (Path(str(copy.locate_file(PACKAGE.name))) for copy in distributions(name="difnet-kernels"))
    return [copy for copy in found if copy.resolve() != PACKAGE.resolve() and (copy / LIBRARY.name).exists()]


def _writes_into_arguments(*args: object) -> None:
    pass


def instruction_set() -> str:
    """The set in use: the last preferred one that this processor runs, or the one that DIFNET_KERNELS_ISA names."""
    return str(torch.ops.difnet_kernels.instruction_set())


def instruction_sets(*, runnable: bool = True) -> tuple[str, ...]:
    """The sets that the library holds, and of these, unless not `runnable`, only what this processor runs."""
    return tuple(torch.ops.difnet_kernels.instruction_sets(runnable))


_MISSING = _load()


def unusable() -> str | None:
    """Why the library cannot be used on this machine, or None."""
    return _MISSING
