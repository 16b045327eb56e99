"""Simulated cards: torch's operators for CUDA, the launches and the kernels of csrc/cuda as they are shipped, on tensors of the
CPU. g++ compiles them against a CUDA runtime (cuda_runtime.h) whose launches run on the twin's fibers.

Only three words differ from what nvcc and a card get: the operators are those of torch.ops.difnet_simulated, registered for the
CPU, and the device of a tensor is a variable.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from tests.cuda.twin import FLAGS, HOST, KERNELS, MADE, ROOT, run_compiler, sources

HERE = Path(__file__).parent
# file of csrc: what becomes what, and how often it stands there
CHANGED = {
    "library.cpp": (("FRAGMENT(difnet_kernels,", "FRAGMENT(difnet_simulated,", 1),),
    "cuda/register.cpp": (
        ("IMPL(difnet_kernels, CUDA,", "IMPL(difnet_simulated, CPU,", 1),
        ("IMPL(difnet_kernels, Comp", "IMPL(difnet_simulated, Comp", 1),
    ),
    "cuda/register_projection.cpp": (("IMPL(difnet_kernels, CUDA,", "IMPL(difnet_simulated, CPU,", 1),),
    "cuda/on_card.h": (
        ("x.get_device()", "simulated_device", 2),
        ('#include "tensors.h"\n', '#include "tensors.h"\nextern "C" int32_t simulated_device;\n', 1),
    ),
}
OPERATORS = ("cascade_forward", "cascade_backward", "projected_cascade", "projection_forward", "projection_backward")


def _copy(to: Path) -> list[Path]:
    """csrc with those words changed; the files to compile."""
    texts = {str(path.relative_to(ROOT / "csrc")): path.read_text() for path in sources(KERNELS)}
    texts["library.cpp"] = (ROOT / "csrc" / "library.cpp").read_text()
    del texts["cuda/device.h"]  # the twin's is found instead
    for file, changes in CHANGED.items():
        for old, new, count in changes:
            assert texts[file].count(old) == count, f"{file} holds {old!r} {texts[file].count(old)} times, not {count}"
            texts[file] = texts[file].replace(old, new)
    for name, text in texts.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_text(text)
    return [to / name for name in texts if name.endswith((".cpp", ".cu"))]


@cache
def runtime() -> ctypes.CDLL:
    """Compiled unless the same was compiled before, and loaded: torch.ops.difnet_simulated has its operators."""
    digest = hashlib.sha256(repr((FLAGS, CHANGED, torch.__version__)).encode())
    shared = [ROOT / "csrc" / name for name in ("library.cpp", "tensors.h", "field.h")]
    for path in (*shared, *(path for folder in (KERNELS, HOST, HERE) for path in sources(folder))):
        digest.update(path.read_bytes())
    made = MADE / f"simulated-{digest.hexdigest()[:16]}.so"
    if not made.exists():
        _build(made)
    torch.ops.load_library(made)
    loaded = ctypes.CDLL(str(made))
    return loaded


def _build(made: Path) -> None:
    folder = MADE / f"{made.stem}.{os.getpid()}"
    own = Path(torch.__file__).parent
    places = [f"-I{place}" for place in (HERE, HOST, folder, ROOT / "csrc")]
    flags = ["-O0", "-g0", "-fPIC", "-DDIFNET_HAS_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", *places]
    flags += ["-isystem", str(own / "include")]

    def compiled(source: Path) -> str:
        to = source.with_suffix(source.suffix + ".o")
        run_compiler(*flags, "-x", "c++", "-c", str(source), "-o", str(to))
        return str(to)

    files = _copy(folder)
    files.append(Path(shutil.copy(HERE / "cards.cpp", folder)))
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, files))
    # its own stream and not torch's; torch is in the process before it is loaded
    link = ["-shared", "-Wl,-Bsymbolic", "-Wl,--no-as-needed", str(own / "lib" / "libtorch.so")]
    run_compiler(*objects, *link, "-o", str(folder / made.name))
    (folder / made.name).replace(made)
    shutil.rmtree(folder)
