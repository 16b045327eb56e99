"""What a data set on disk is: pairs of image and mask, class names, and how a mask is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models.data.classes import IGNORE
from models.data.files import IMAGE_SUFFIXES, DataError, Folder, check_name, read_list, read_mask


@dataclass(frozen=True)
class Entry:
    """One image with its mask; `mask` is None where there is no ground truth."""

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Layout:
    """A split found on disk. `roots` are the folders nothing may leave."""

    entries: list[Entry]
    classes: tuple[str, ...]
    read_mask: Callable[[Path, int], np.ndarray]
    roots: tuple[Path, ...]


@dataclass(frozen=True)
class Reading:
    """What the user says about files: where SBD is, how names end, and whether 0 in a mask is void.

    image_suffix, mask_suffix: what follows the name of an image or of its mask, exactly ("_rgb.PNG"); None takes any
    JPEG or PNG. reduce_zero_label: 0 is void and k is class k - 1, as in ADE20K.
    """

    sbd_root: Path | None = None
    image_suffix: str | None = None
    mask_suffix: str | None = None
    reduce_zero_label: bool = False


def image_folder(path: Path, reading: Reading) -> Folder:
    return Folder(path, reading.image_suffix, IMAGE_SUFFIXES)


def mask_folder(path: Path, reading: Reading) -> Folder:
    return Folder(path, reading.mask_suffix, (".png",))


def mask_reader(reading: Reading, colours: bool = True) -> Callable[[Path, int], np.ndarray]:
    return partial(read_mask, reduce_zero_label=reading.reduce_zero_label, colours=colours)


def find(root: Path, folder: str, names: tuple[str, ...]) -> Path:
    """`root` or the first folder below it, along the paths that archives unpack to, that holds `folder`."""
    prefixes = ("", "VOCdevkit", "TrainVal/VOCdevkit")
    for candidate in [root, *(root / prefix / name for prefix in prefixes for name in names)]:
        if (candidate / folder).is_dir():
            return candidate
    raise DataError(
        f"{root}: holds no {folder}/ (nor does {' or '.join(names)} below it). Point --data at the folder that does, "
        "say with --kind which layout it has, or write a generated set with `python -m models.data.synthetic --out DIR`."
    )


def list_file(root: Path, folders: str | tuple[str, ...], split: str) -> Path:
    """The first existing list of a split; otherwise an error that says which splits there are."""
    folders = (folders,) if isinstance(folders, str) else folders
    for folder in folders:
        if (root / folder / f"{split}.txt").is_file():
            return root / folder / f"{split}.txt"
    have = sorted({path.stem for folder in folders for path in (root / folder).glob("*.txt")})
    shown = ", ".join(have[:12]) if have else "no list at all"
    raise DataError(f"{root / folders[0] / (split + '.txt')}: file is missing; the folder has {shown}.")


def names_of(path: Path) -> list[str]:
    """Ids of a list, spaces included; only VOC's Main lists have a second column (1, 0, −1), which is dropped."""
    names = []
    for line in read_list(path):
        parts = line.split()
        flagged = path.parent.name == "Main" and len(parts) == 2 and parts[1] in ("1", "0", "-1")
        names.append(check_name(parts[0] if flagged else line, path))
    refuse_duplicates(names, path)
    return names


def refuse_duplicates(names: list[str], path: Path) -> None:
    """DataError for a list that is empty or names something twice."""
    if not names:
        raise DataError(f"{path}: the list is empty.")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: each id may be listed once; {name} comes twice and would count twice.")
        seen.add(name)


def class_list(root: Path, default: tuple[str, ...] | None, reduce_zero_label: bool = False) -> tuple[str, ...]:
    """The names in `classes.txt`, line k the class of value k (of value k + 1 if zero is void); or the default."""
    path = root / "classes.txt"
    if not path.is_file():
        if default is None or reduce_zero_label:
            raise DataError(
                f"{path}: file is missing. Write the class names into it, one a line, in the order of the mask values"
                f"{', without the zero label' if reduce_zero_label else ''}."
            )
        return default
    names = tuple(check_name(line, path) for line in read_list(path))
    if not 2 <= len(names) <= IGNORE or len(set(names)) != len(names):
        raise DataError(f"{path}: must list 2 to {IGNORE} different class names; got {len(names)} lines.")
    return names
