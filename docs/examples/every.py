"""All recipes whose library is installed, one after the other: python -m docs.examples.every [--out DIR]

Finished runs in DIR are kept. What there is then goes to docs/results/recipes.json, which the tables are made of.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

# recipe -> the package that it is for, the extra that installs it, and its networks
RECIPES = {
    "torchvision_heads": ("torchvision", "examples", ("fcn", "deeplabv3", "lraspp")),
    "smp_decoders": ("segmentation_models_pytorch", "examples", ("unet", "deeplabv3plus")),
    "timm_encoders": ("timm", "examples", ("resnet", "swin")),
    "vit_tokens": ("timm", "examples", ("vit",)),
    "transformers_heads": ("transformers", "ecosystem", ("segformer", "upernet")),
    "monai_volumes": ("monai", "ecosystem", ("unet3d",)),
}
SEEDS = {"fcn": 2}  # of the others one
RESULTS = Path(__file__).parents[1] / "results" / "recipes.json"


def missing(recipe: str) -> str | None:
    """What to install for a recipe, if anything."""
    package, extra, _ = RECIPES[recipe]
    return None if importlib.util.find_spec(package) else f"{package} is not installed: pip install .[{extra}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/examples"))
    parser.add_argument("--only-finished", action="store_true", help="take what there is, train nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    lines = []
    for recipe, (_, _, networks) in RECIPES.items():
        for network, seed in ((n, seed) for n in networks for seed in range(SEEDS.get(n, 1))):
            file = options.out / f"{network}-{seed}.json"
            if not file.exists() and not options.only_finished:
                if (lacks := missing(recipe)) is not None:
                    print(f"LEFT OUT: {network} ({lacks})")
                    continue
                run = importlib.import_module(f"docs.examples.{recipe}").main
                run(["--network", network, "--seed", str(seed), "--out", str(options.out)])
            lines += [file.read_text().strip()] if file.exists() else []
    json.loads(text := "[\n" + ",\n".join(lines) + "\n]\n")
    options.results.write_text(text)


if __name__ == "__main__":
    main()
