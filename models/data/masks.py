"""Masks whose colours mean classes -> masks whose values do: what every loader here reads.

python -m models.data.masks --masks colour_masks --colours colours.txt --out SegmentationClass

colours.txt has one class a line, in the order of their values: red, green, blue, name ("128 64 128 road"). A line "255
255 255 void" names a colour that belongs to no class. `--colours voc` is VOC's palette. Beside the masks, classes.txt is
written. Any colour that is not listed is an error that names file, colour and pixel: anti-aliased borders and JPEG masks
show there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from models.commands import guarded
from models.data.classes import IGNORE, VOC, palette
from models.data.files import DataError, check_name, read_image, read_list
from models.writing import write_atomically, write_text, writing


@dataclass(frozen=True)
class Colours:
    """Class names, and which class (or 255) each colour is. `table` is indexed by 65536 r + 256 g + b; -1 is unknown."""

    classes: tuple[str, ...]
    table: np.ndarray


def colours_of(entries: Sequence[tuple[tuple[int, int, int], str]], source: Path | str) -> Colours:
    """(colour, name) in the order of the classes; the name "void" is no class. DataError for a colour listed twice."""
    table = np.full(256**3, -1, dtype=np.int16)
    classes: list[str] = []
    for colour, name in entries:
        key = _key(np.array(colour))
        if table[key] != -1:
            raise DataError(f"{source}: a colour may stand for one class; {colour} comes twice.")
        table[key] = IGNORE if name == "void" else len(classes)
        classes += [] if name == "void" else [name]
    if not 2 <= len(classes) <= IGNORE or len(set(classes)) < len(classes):
        raise DataError(f"{source}: must list 2 to {IGNORE} different class names; got {len(classes)}.")
    return Colours(tuple(classes), table)


def read_colours(path: Path) -> Colours:
    """The file described above."""
    entries = []
    for line in read_list(path):
        parts = line.replace(",", " ").split(maxsplit=3)
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts[:3]):
            raise DataError(
                f"{path}: each line must read 'red green blue name', e.g. '128 64 128 road'; got {line[:80]!r}."
            )
        red, green, blue = map(int, parts[:3])
        entries.append(((red, green, blue), check_name(parts[3], path)))
    return colours_of(entries, path)


def voc_colours() -> Colours:
    """VOC's 21 classes, and its cream for void."""
    colours = [tuple(colour) for colour in palette().tolist()]
    return colours_of([*zip(colours[: len(VOC)], VOC, strict=True), (colours[IGNORE], "void")], "voc")


def to_indices(picture: np.ndarray, colours: Colours, path: Path) -> np.ndarray:
    """Colours (H, W, 3) -> indices (H, W). DataError naming `path` for a colour that is not listed."""
    found = colours.table[_key(picture)]
    if (found < 0).any():
        y, x = np.argwhere(found < 0)[0]
        count = len(np.unique(_key(picture)[found < 0]))
        raise DataError(
            f"{path}: every colour must be listed; {tuple(picture[y, x].tolist())} at row {y}, column {x} is not "
            f"({count} such colours, {int((found < 0).sum())} of {found.size} pixels). Add it, as void if it is no class; "
            "if there are many, the mask was resized or saved as JPEG."
        )
    return found.astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Class indices (H, W) as a PNG with VOC's palette, whatever the class names are."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette().tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


def convert(source: Path, out: Path, colours: Colours, workers: int | None = None, progress: bool = False) -> int:
    """Every PNG in `source` -> a mask of the same name in `out`; returns their number. Stops at the first that is wrong."""
    files = sorted(path for path in source.glob("*") if path.suffix.lower() == ".png" and not path.name.startswith("."))
    if not files:
        raise DataError(f"{source}: holds no PNG.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: must not be the folder of the colour masks, which stay as they are.")

    def one(path: Path) -> None:
        write_mask(out / f"{path.stem}.png", to_indices(read_image(path), colours, path))

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for _ in tqdm(pool.map(one, files), total=len(files), desc="convert", disable=not progress):
            pass
    return len(files)


def _key(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.data.masks", description="Colour masks to class indices.")
    parser.add_argument("--masks", required=True, type=Path, help="folder of PNG masks whose colours mean classes")
    parser.add_argument("--colours", required=True, help="file of 'red green blue name' lines, or voc")
    parser.add_argument("--out", required=True, type=Path, help="folder for the masks, e.g. SegmentationClass")
    options = parser.parse_args(arguments)

    def run() -> None:
        colours = voc_colours() if options.colours == "voc" else read_colours(Path(options.colours))
        count = convert(options.masks, options.out, colours, progress=sys.stderr.isatty())
        names = options.out / "classes.txt"
        write_text(names, "".join(f"{name}\n" for name in colours.classes))
        print(
            f"{options.out}: {count} masks, {len(colours.classes)} classes; move {names.name} to the root of the data set"
        )

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
