"""Write a generated data set as a VOC tree, so that the ordinary loaders read it.

python -m models.data.synthetic --out DIR --preset easy|paper|hard|long|mixed --classes 21

Image i of a split depends on (seed, split, i), the preset, the class count and the size, never on how many are written:
a larger set contains the smaller one. What the scenes hold, and why, is said in `scenes.py`. `mixed` has the scenes of `easy`
in every kind of file that the readers take: suffixes, EXIF orientations, palette and grey masks, names with spaces and
umlauts, lists with a byte order mark.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
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
        forms = [FORMS[i % len(FORMS)] if preset == "mixed" else PLAIN for i in range(count)]
        names = [form.name.format(split=split, i=i) for i, form in enumerate(forms)]
        for i in tqdm(range(count), desc=f"generate {split}", disable=not progress):
            image, mask = encode(preset, classes, size, seed, FIRST_INDEX[split] + i, forms[i])
            (out / "JPEGImages" / f"{names[i]}{forms[i].image_suffix}").write_bytes(image)
            (out / "SegmentationClass" / f"{names[i]}{forms[i].mask_suffix}").write_bytes(mask)
        _write_lines(out / "ImageSets/Segmentation" / f"{split}.txt", names, preset == "mixed")
    names = list(class_names(classes))
    if preset == "mixed":
        names[1:] = [name.replace("class", "große Klasse ") for name in names[1:]]
    _write_lines(out / "classes.txt", names, preset == "mixed")
    # last and by rename: where this record stands, everything before it is complete
    (out / f"{_RECORD}.part").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(out / f"{_RECORD}.part", out / _RECORD)


@dataclass(frozen=True)
class Form:
    """How a pair is stored: as which files, which way up (EXIF orientation), and the mask with or without colours."""

    name: str
    image_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    orientation: int = 1
    palette: bool = True


PLAIN = Form("{split}_{i:06d}")
FORMS = (
    Form("{split} photo {i}"),
    Form("{split} Straße {i}", ".JPG", orientation=6),
    Form("{split}_{i}", ".png", palette=False),
    Form("{split} über (Kopf) {i}", ".jpeg", ".PNG", orientation=3),
    Form("{split}-{i}, naïve", ".PNG"),
    Form("{split} 日本 {i}", orientation=8, palette=False),
)
# how the stored pixels follow from the upright ones: the inverse of what an orientation asks a viewer to do
_STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def encode(
    preset: str, classes: int, size: tuple[int, int], seed: int, index: int, form: Form = PLAIN
) -> tuple[bytes, bytes]:
    """Scene `index` as the bytes of an image (a JPEG's quality is drawn from the preset's range) and of a PNG mask."""
    scene = render(preset, classes, size, seed, index)
    low, high = PRESETS[preset].quality
    quality = int(np.random.default_rng([seed, index, 1]).integers(low, high + 1))
    jpeg, png = io.BytesIO(), io.BytesIO()
    image, exif = Image.fromarray(scene.image), Image.Exif()
    if form.orientation != 1:
        image = image.transpose(_STORED[form.orientation])
        exif[ExifTags.Base.Orientation] = form.orientation
    if form.image_suffix.lower() == ".png":
        image.save(jpeg, "PNG")
    else:
        image.save(jpeg, "JPEG", quality=quality, **({"exif": exif} if form.orientation != 1 else {}))
    mask = Image.fromarray(scene.mask)
    if form.palette:
        mask.putpalette(_PALETTE)
    mask.save(png, "PNG")
    return jpeg.getvalue(), png.getvalue()


def _write_lines(path: Path, lines: Sequence[str], as_on_windows: bool) -> None:
    """A line each; as_on_windows: with a byte order mark and \\r\\n."""
    end, encoding = ("\r\n", "utf-8-sig") if as_on_windows else ("\n", "utf-8")
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode(encoding))


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
