"""Write a generated data set as a VOC tree, so that the ordinary loaders read it.

python -m models.data.synthetic --out DIR --preset easy|paper|hard --classes 21

Image i of a split depends on (seed, split, i), the preset, the class count and the size, never on how many are written:
a larger set contains the smaller one. What the scenes hold, and why, is said in `scenes.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from models.data.classes import IGNORE, VOC, palette
from models.data.files import DataError
from models.data.scenes import PRESETS, render
from models.writing import writing

VERSION = 1  # raise it when the same (seed, index) would give another picture
FIRST_INDEX = {"train": 0, "val": 10**6, "test": 2 * 10**6}
_RECORD = "synthetic.json"


def generate(
    out: str | Path,
    preset: str = "paper",
    classes: int = 21,
    counts: Mapping[str, int] | None = None,
    size: int | tuple[int, int] = 97,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write the set to `out` and return that path; a finished set of the same description is left as it is.

    counts: images per split, by default {"train": 200, "val": 50}.
    size: side, or (height, width), in pixels; at least 48, below which the shapes have no room.
    Raises DataError if `out` holds anything else, ValueError for a description that makes no sense, OSError if `out`
    cannot be written; what it holds then is not a finished set.
    """
    counts = dict(counts or {"train": 200, "val": 50})
    height, width = size if not isinstance(size, int) else (size, size)
    _check(preset, classes, counts, (height, width))
    out = Path(out)
    record = {
        "version": VERSION,
        "preset": preset,
        "classes": classes,
        "counts": counts,
        "size": [height, width],
        "seed": seed,
    }
    if _is_finished(out, record):
        return out
    with writing(out):
        _write(out, record, progress)
    return out


def _write(out: Path, record: dict[str, Any], progress: bool) -> None:
    preset, classes, size, seed = record["preset"], record["classes"], tuple(record["size"]), record["seed"]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, count in record["counts"].items():
        names = [f"{split}_{i:06d}" for i in range(count)]
        for i in tqdm(range(count), desc=f"generate {split}", disable=not progress):
            jpeg, png = encode(preset, classes, size, seed, FIRST_INDEX[split] + i)
            (out / "JPEGImages" / f"{names[i]}.jpg").write_bytes(jpeg)
            (out / "SegmentationClass" / f"{names[i]}.png").write_bytes(png)
        (out / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in class_names(classes)))
    # last and by rename: where this record stands, everything before it is complete
    (out / f"{_RECORD}.part").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(out / f"{_RECORD}.part", out / _RECORD)


def encode(preset: str, classes: int, size: tuple[int, int], seed: int, index: int) -> tuple[bytes, bytes]:
    """Scene `index` as the bytes of a JPEG (quality drawn from the preset's range) and of a VOC palette PNG."""
    scene = render(preset, classes, size, seed, index)
    low, high = PRESETS[preset].quality
    quality = int(np.random.default_rng([seed, index, 1]).integers(low, high + 1))
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=quality)
    mask = Image.fromarray(scene.mask)
    mask.putpalette(_PALETTE)
    mask.save(png, "PNG")
    return jpeg.getvalue(), png.getvalue()


def class_names(classes: int) -> tuple[str, ...]:
    """The names written to classes.txt. They are not VOC's: a generated "cat" would only mislead."""
    return ("background", *(f"class{c:02d}" for c in range(1, classes)))


_PALETTE = palette().tobytes()


def _check(preset: str, classes: int, counts: Mapping[str, int], size: tuple[int, int]) -> None:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    if not 2 <= classes <= IGNORE:
        raise ValueError(f"classes must be 2…{IGNORE}, background included; got {classes}.")
    if min(size) < 48:
        raise ValueError(f"size must be a side or (height, width) of at least 48 pixels; got {size}.")
    for split, count in counts.items():
        if split not in FIRST_INDEX or not 1 <= count <= 10**6:
            raise ValueError(f"counts must give 1…1000000 for any of {', '.join(FIRST_INDEX)}; got {split}: {count}.")


def _is_finished(out: Path, record: dict) -> bool:
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / _RECORD).read_text())
    except (OSError, ValueError):
        found = None
    if found == record:
        return True
    what = f"a generated set with {found}" if found else "files, and no finished generated set"
    raise DataError(f"{out}: holds {what}; asked for {record}. Choose another folder, or delete this one.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.data.synthetic", description="Write a generated data set as a VOC tree."
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--classes", type=int, default=len(VOC), help="background included")
    parser.add_argument("--train", type=int, default=200, help="training images")
    parser.add_argument("--val", type=int, default=50, help="validation images")
    parser.add_argument("--size", type=int, nargs="+", default=[97], help="side, or height and width")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if len(options.size) > 2:
        parser.error(f"--size takes a side, or height and width; got {options.size}.")
    counts = {"train": options.train, "val": options.val}
    try:
        size = (options.size * 2)[:2]
        what = options.out, options.preset, options.classes, counts, (size[0], size[1]), options.seed
        out = generate(*what, progress=sys.stderr.isatty())
    except (
        OSError,
        ValueError,
    ) as error:  # DataError included: these are the user's to correct, a traceback says no more
        parser.error(str(error))
    print(f"{out}: {options.train} + {options.val} images, preset {options.preset}, {options.classes} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
