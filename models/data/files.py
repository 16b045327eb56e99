"""Reading images, masks and lists from a folder that may be broken or hostile. Every error names the file.

Promises: a name from a list never leads out of the data set, a file is measured before it is decoded, a mask that comes
back holds only classes and 255, and a photograph comes back as people see it: its EXIF orientation is applied, everywhere
and always. A mask has no orientation; it belongs to the photograph as seen.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from models.data.classes import IGNORE, palette

MAX_PIXELS = 2**25  # 33.5 million; VOC's largest image has 250,000
MAX_LIST_BYTES = 2**26
MAX_MAT_BYTES = 2**23  # a .mat is zlib-compressed, so its size on disk is the only thing known before it is unpacked
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # in any case


class DataError(ValueError):
    """A data set that cannot be used. The message says which file, which rule, and what to do."""


def check_name(name: str, source: Path | str) -> str:
    """Return `name`, in Unicode's composed form, if it can be one component of a path, else raise DataError.

    Spaces, umlauts and any other printable letter are fine; slashes, control characters and a leading dot are not.
    """
    name = unicodedata.normalize("NFC", name)
    if not name or not name.isprintable() or name.startswith(".") or "/" in name or "\\" in name:
        raise DataError(
            f"{source}: a name must be printable, without '/' and '\\', and must not begin with a dot; "
            f"got {name[:80]!r}. Correct the list, and distrust where it came from."
        )
    return name


class Folder:
    """The files of a folder by their names without suffix, as lists name them (in Unicode's composed form).

    suffix: what follows the name, exactly; None accepts any of `suffixes`, in any case.
    """

    def __init__(self, path: Path, suffix: str | None, suffixes: tuple[str, ...]) -> None:
        self.path, self.default = path, suffix or suffixes[0]
        self.files: dict[str, list[str]] = {}
        for file in sorted(os.listdir(path)) if path.is_dir() else ():
            if file.startswith("."):
                continue  # nobody's pictures: what macOS and editors leave
            stem, ending = (file[: -len(suffix)], suffix) if suffix else os.path.splitext(file)
            if file.endswith(suffix) if suffix else ending.lower() in suffixes:
                self.files.setdefault(unicodedata.normalize("NFC", stem), []).append(file)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def file(self, name: str) -> Path:
        """The file called `name`; where none exists, the path at which it is missing. DataError if two fit."""
        found = self.files.get(name, [f"{name}{self.default}"])
        if len(found) > 1:
            raise DataError(
                f"{self.path}: one file must belong to {name}; got {' and '.join(found)}. Move one away, or say which "
                "with --image-suffix (--mask-suffix)."
            )
        return self.path / found[0]


def confined(root: Path, path: Path, follow_links: bool = False) -> Path:
    """Return `path` if it stays under `root` once every link is resolved, else raise DataError."""
    if not follow_links and not path.resolve().is_relative_to(_resolved(root)):
        raise DataError(
            f"{path}: leads to {path.resolve()}, outside the data set {root}. "
            "If you made this link yourself, allow it with follow_links=True (--follow-links)."
        )
    return path


@cache
def _resolved(root: Path) -> Path:
    # a few roots, asked for with every file
    return root.resolve()


def read_list(path: Path) -> list[str]:
    """Lines of a text file, stripped, without the empty ones."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path}: a list may have {MAX_LIST_BYTES} bytes; got {path.stat().st_size}.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 list ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def read_image(path: Path) -> np.ndarray:
    """Decode a JPEG or PNG photograph to RGB uint8 (H, W, 3), upright."""
    return read_photograph(path)[0]


def read_photograph(path: Path) -> tuple[np.ndarray, int]:
    """RGB uint8 (H, W, 3), upright, and the EXIF orientation that was applied (1: none)."""
    image = _decode(path, formats=("JPEG", "PNG"))
    if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
        raise DataError(f"{path}: an image must be an 8-bit picture; got mode {image.mode}. Convert it to RGB.")
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        upright = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    except Exception:  # damaged EXIF raises almost anything, and says nothing about the pixels
        orientation, upright = 1, image
    return np.asarray(upright.convert("RGB")), orientation if orientation in range(1, 9) else 1


def read_mask(path: Path, classes: int, reduce_zero_label: bool = False, colours: bool = True) -> np.ndarray:
    """Decode a palette or grey PNG to class indices uint8 (H, W), all below `classes` or equal to 255.

    reduce_zero_label: 0 in the file is void, and k is class k - 1, as in ADE20K.
    colours: distrust a palette that gives an index the VOC colour of another class.
    """
    image = _decode(path, formats=("PNG",))
    if image.mode not in ("P", "L"):
        raise DataError(
            f"{path}: a mask must be an 8-bit palette or grey PNG (mode P or L) whose values are class indices; "
            f"got mode {image.mode}. Convert its colours to indices first: python -m models.data.masks."
        )
    mask = np.asarray(image)
    seen = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if colours and image.mode == "P":
        _check_palette(image, seen, classes + reduce_zero_label, path)
    if reduce_zero_label:
        mask, seen = _REDUCED[mask], np.unique(_REDUCED[seen])
    _check_seen(seen, classes, path)
    return mask


_REDUCED = np.concatenate([[IGNORE], np.arange(254), [IGNORE]]).astype(np.uint8)  # 0 -> void, k -> k - 1, void -> void


_COLOURS = palette()


def _check_palette(image: Image.Image, seen: np.ndarray, classes: int, path: Path) -> None:
    """A program that optimises PNGs may renumber the indices and move the colours along: then the colours are right."""
    written = np.frombuffer(bytes(image.getpalette("RGB") or b""), dtype=np.uint8).reshape(-1, 3)
    used = seen[seen < len(written)]
    colours = written[used]
    if (colours == _COLOURS[used]).all() or (colours == used[:, None]).all():
        return  # VOC's colours, or a grey ramp
    of_class = {tuple(colour): index for index, colour in enumerate(_COLOURS[:classes].tolist())}
    of_class[tuple(_COLOURS[IGNORE].tolist())] = IGNORE
    for index, colour in zip(used.tolist(), map(tuple, colours.tolist()), strict=True):
        other = of_class.get(colour, index)
        if other != index and (index, other) != (IGNORE, 0):
            raise DataError(
                f"{path}: in a palette mask, index and colour must mean the same class; index {index} has the colour "
                f"{colour}, which is that of class {other} in VOC's palette. Was it saved by a program that renumbers "
                "palettes? If the colours are right, python -m models.data.masks writes the indices anew; if the "
                "indices are, save it as a grey PNG."
            )


def read_mat(path: Path, variable: str) -> Any:
    """The named variable of a MATLAB 5 file. SciPy parses it; nothing in the format can run code."""
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_MAT_BYTES:
            raise DataError(f"{path}: a .mat mask may have {MAX_MAT_BYTES} bytes; got {path.stat().st_size}.")
        content = loadmat(path, variable_names=[variable])
    except DataError:
        raise
    except Exception as error:  # a damaged file makes SciPy raise almost anything, zlib and struct errors included
        raise DataError(f"{path}: cannot be read as a MATLAB 5 file ({type(error).__name__}: {error}).") from error
    if variable not in content:
        raise DataError(f"{path}: holds no variable {variable}; is this folder really of that data set?")
    return content[variable]


def check_mask_values(mask: np.ndarray, classes: int, path: Path) -> None:
    """Raise DataError unless every value is a class or 255."""
    _check_seen(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)), classes, path)


def _check_seen(seen: np.ndarray, classes: int, path: Path) -> None:
    wrong = [int(value) for value in seen if value >= classes and value != IGNORE]
    if wrong:
        raise DataError(
            f"{path}: mask values must be 0…{classes - 1} or {IGNORE} (void); also found {wrong[:8]}. "
            "Is the class count right, or was the mask saved with resampling or as colours?"
        )


def check_same_size(
    image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path, orientation: int = 1
) -> None:
    """Raise DataError unless the photograph, upright, and its mask have the same height and width."""
    if image.shape[:2] == mask.shape:
        return
    (h, w), (mh, mw) = image.shape[:2], mask.shape
    if orientation >= 5 and (mh, mw) == (w, h):
        raise DataError(
            f"{mask_path}: a mask belongs to its photograph as seen; {image_path.name} has EXIF orientation "
            f"{orientation} and is {w}×{h} upright, the mask is {mw}×{mh} as the pixels are stored (width × height). "
            "Turn the mask, or remove the tag from the photograph."
        )
    raise DataError(
        f"{mask_path}: a mask must have its image's size; got {mw}×{mh} for {image_path.name} of {w}×{h} "
        "(width × height). Was one of them resized?"
    )


def _decode(path: Path, formats: tuple[str, ...]) -> Image.Image:
    """Open, measure, then decode: a small file that unpacks to gigapixels is refused by its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap below is the stricter one
            image = Image.open(path, formats=formats)
        width, height = image.size
        if width * height <= MAX_PIXELS:
            image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: an image may have {MAX_PIXELS} pixels ({error}).") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways of saying "damaged"
        raise DataError(f"{path}: cannot be read as {' or '.join(formats)} ({error}).") from error
    if width * height > MAX_PIXELS:
        image.close()
        raise DataError(f"{path}: an image may have {MAX_PIXELS} pixels; got {width}×{height}. Scale it down first.")
    return image
