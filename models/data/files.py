"""Reading images, masks and lists from a folder that may be broken or hostile. Every error names the file.

Three promises: a name from a list never leads out of the data set, a file is measured before it is decoded, and a mask
that comes back holds only classes and 255.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.data.classes import IGNORE

MAX_PIXELS = 2**25  # 33.5 million; VOC's largest image has 250,000
MAX_LIST_BYTES = 2**26
MAX_MAT_BYTES = 2**23  # a .mat is zlib-compressed, so its size on disk is the only thing known before it is unpacked

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class DataError(ValueError):
    """A data set that cannot be used. The message says which file, which rule, and what to do."""


def check_name(name: str, source: Path | str) -> str:
    """Return `name` if it is one plain path component (letters, digits, `_`, `.`, `-`), else raise DataError."""
    if not _NAME.fullmatch(name) or set(name) == {"."}:
        raise DataError(
            f"{source}: a name may hold only letters, digits, '_', '.', '-' and must not be dots alone; "
            f"got {name[:80]!r}. Correct the list, and distrust where it came from."
        )
    return name


def confined(root: Path, path: Path, follow_links: bool = False) -> Path:
    """Return `path` if it stays under `root` once every link is resolved, else raise DataError."""
    if not follow_links and not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{path}: leads to {path.resolve()}, outside the data set {root}. "
            "If you made this link yourself, allow it with follow_links=True (--follow-links)."
        )
    return path


def read_list(path: Path) -> list[str]:
    """Lines of a text file, stripped, without the empty ones."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path}: a list may have {MAX_LIST_BYTES} bytes; got {path.stat().st_size}.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 list ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def read_image(path: Path) -> np.ndarray:
    """Decode a JPEG or PNG photograph to RGB uint8 (H, W, 3)."""
    image = _decode(path, formats=("JPEG", "PNG"))
    if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
        raise DataError(f"{path}: an image must be an 8-bit picture; got mode {image.mode}. Convert it to RGB.")
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path, classes: int) -> np.ndarray:
    """Decode a palette or grey PNG to class indices uint8 (H, W), all below `classes` or equal to 255."""
    image = _decode(path, formats=("PNG",))
    if image.mode not in ("P", "L"):
        raise DataError(
            f"{path}: a mask must be an 8-bit palette or grey PNG (mode P or L) whose values are class indices; "
            f"got mode {image.mode}. Convert its colours to indices first."
        )
    mask = np.asarray(image)
    check_mask_values(mask, classes, path)
    return mask


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
    seen = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    wrong = [int(value) for value in seen if value >= classes and value != IGNORE]
    if wrong:
        raise DataError(
            f"{path}: mask values must be 0…{classes - 1} or {IGNORE} (void); also found {wrong[:8]}. "
            "Is the class count right, or was the mask saved with resampling or as colours?"
        )


def check_same_size(image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raise DataError unless image and mask have the same height and width."""
    if image.shape[:2] != mask.shape:
        (h, w), (mh, mw) = image.shape[:2], mask.shape
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
