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

import difnet_kernels.backends.triton
from tests.triton.interpreted.cascade import Problem, problem

PACKAGE = difnet_kernels.backends.triton.__name__
# the modules that launch kernels
LAUNCHERS = ("walk.prepare", "walk.host")


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


@dataclass(frozen=True)
class Fault:
    """In the module `stem`, `good` (found once) becomes `bad`; then the answer to `truth` is wrong."""

    name: str
    stem: str
    good: str
    bad: str
    truth: Callable[[], Problem] = ordinary


FAULTS = (
    Fault("padded columns vote", "walk.prepare", 'tl.where(n < N, bias, float("-inf"))', "bias"),
    Fault("the small products are left out", "walk.forward", "tl.dot(row_hi, tl.trans(col_lo))",
          "0.0 * tl.dot(row_hi, tl.trans(col_lo))", large_logits),
    Fault("a maximum is never raised", "walk.forward", "tl.maximum(peak, tl.max(x, axis=1) - SHIFT)", "peak", climbing),
    Fault("parts are added at different maxima", "walk.forward", "total * tl.exp2(top - higher)[:, None]", "total", climbing),
    Fault("delta is missing", "walk.gradient", "delta += tl.sum(delta_tile, axis=1)", "delta += 0.0"),
    Fault("P_ij and P_ji are swapped", "walk.backward", "split_hi_lo(back, tl.float16, VALUE_PRODUCTS)",
          "split_hi_lo(look * TRANSPOSED_SHIFT, tl.float16, VALUE_PRODUCTS)"),
    Fault("the spread is not looked at", "walk.backward",
          "(high - low < SPREAD) & (tl.maximum(tl.abs(high), tl.abs(low)) < LEVEL)", "high - low < 1e30", climbing),
    Fault("the node itself is left out for good", "walk.backward", "2.0 * itself[:, None] * own_psi", "0.0 * own_psi"),
)  # fmt: skip


def planted(fault: Fault, folder: Path) -> dict[tuple[ModuleType, str], object]:
    """What has to be set, (module, name) -> kernel, for the fault to be in use."""
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
    launchers = [importlib.import_module(f"{PACKAGE}.{stem}") for stem in LAUNCHERS]
    return {
        (launcher, name): getattr(faulty, name)
        for launcher in launchers
        for name in vars(launcher)
        if name.endswith("_kernel") and getattr(sound, name, None) is getattr(launcher, name)
    }
