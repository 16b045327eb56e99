"""`python -m models.demo [PART ...]`: runs the parts of the demo, by default all; figures and results go to OUT."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

# part -> (its module, with run(out, grid), and what it imports beyond the library's own dependencies)
PARTS = {"photo": ("models.demo.photo", ("matplotlib", "scipy", "skimage"))}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.demo", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for figures and results")
    parser.add_argument("--grid", type=int, default=104, help="nodes along the longer side of the photograph")
    options = parser.parse_args(argv)
    for part in options.part or PARTS:
        if part not in PARTS:
            parser.error(f"PART must be one of {', '.join(PARTS)}; got {part!r}. Leave it out to run all.")
        module, needs = PARTS[part]
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"the demo needs {', '.join(missing)}; install it with: pip install .[demo]", file=sys.stderr)
            return 1
        importlib.import_module(module).run(options.out, options.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
