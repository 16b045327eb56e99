"""`python -m models.demo [PART ...]`: runs the parts of the demo, by default all; figures and results go to OUT.

photo     segments a photograph from scribbles, and compares time and memory with other ways to do it
networks  trains a small DifNet and its baseline on generated images, and draws what they learned
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A module with run(out, **options), and what it imports beyond the library's own dependencies."""

    module: str
    needs: tuple[str, ...]
    options: tuple[str, ...]


PARTS = {
    "photo": Part("models.demo.photo", ("matplotlib", "scipy", "skimage"), ("longer_side",)),
    "networks": Part(
        "models.demo.networks", ("matplotlib", "scipy", "PIL", "safetensors", "tqdm"), ("images", "epochs")
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for figures and results")
    parser.add_argument(
        "--grid",
        type=int,
        default=104,
        dest="longer_side",
        metavar="N",
        help="photo: nodes along the longer side of the photograph",
    )
    parser.add_argument("--images", type=int, default=480, help="networks: generated images to train on")
    parser.add_argument("--epochs", type=int, default=5, help="networks: how often each image is seen")
    options = parser.parse_args(argv)
    for part in options.part or PARTS:
        if part not in PARTS:
            parser.error(f"PART must be one of {', '.join(PARTS)}; got {part!r}. Leave it out to run all.")
    for index, name in enumerate(options.part or PARTS):
        part = PARTS[name]
        missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
        if missing:
            print(f"the demo needs {', '.join(missing)}; install it with: pip install .[demo]", file=sys.stderr)
            return 1
        print("\n" * (index > 0) + f"---- {name}", flush=True)
        try:
            importlib.import_module(part.module).run(options.out, **{k: getattr(options, k) for k in part.options})
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
