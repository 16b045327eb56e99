"""What the machine code of walks and Ψ promises: `python -m benchmarks.gpu.prediction`, after every change of a kernel.

Compiles for an H200 on any machine (not under TRITON_INTERPRET) and writes the results files that `benchmarks.report`
puts beside what was measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import triton

from benchmarks.gpu import psi_prediction, walk_prediction
from benchmarks.predicted import PSI, WALK
from benchmarks.results import FOLDER


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder (default {FOLDER.name})")
    options = parser.parse_args()
    for name, entries in ((WALK, walk_prediction.entries), (PSI, psi_prediction.entries)):
        made = {"triton": triton.__version__, "entries": entries()}
        (options.out / name).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{WALK}, {PSI} in {options.out}. Next: python -m benchmarks.report")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
