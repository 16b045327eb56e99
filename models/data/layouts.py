"""Where images, masks and lists lie on users' disks, and how each kind of mask is read.

voc             JPEGImages/*.jpg, SegmentationClass/*.png, lists in ImageSets/Segmentation
voc_aug         the same images; SegmentationClassAug/*.png with lists in ImageSets/SegmentationAug, or VOC's own masks
                and SBD's cls/*.mat, with the list (VOC ∪ SBD) − VOC val
sbd             img/*.jpg, cls/*.mat, train.txt, val.txt
context         JPEGImages/*.jpg of VOC 2010; SegmentationClassContext/*.png, or trainval/*.mat with 459 labels and
                labels.txt; lists in ImageSets/SegmentationContext or ImageSets/Main
context_detail  the same, with masks in the alphabetical class order of the Detail API

The root may be the folder itself or one above it (VOCdevkit/VOC2012, VOC2012, …).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models.data.classes import CONTEXT, CONTEXT_DETAIL, IGNORE, VOC
from models.data.files import DataError, check_mask_values, check_name, read_list, read_mask, read_mat


@dataclass(frozen=True)
class Entry:
    """One image with its mask; `mask` is None for the test split, whose ground truth is not published."""

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


def voc(root: Path, split: str) -> Layout:
    """VOC 2012 as distributed, or any tree written like it; a `classes.txt` in the root replaces the 21 names."""
    root = _find(root, "JPEGImages", ("VOC2012",))
    names = _names(_list(root, "ImageSets/Segmentation", split))
    masked = split != "test" or (root / "SegmentationClass").is_dir()
    entries = [_voc_entry(root, name, "SegmentationClass" if masked else None) for name in names]
    return Layout(entries, _class_list(root), read_mask, (root,))


def voc_aug(root: Path, split: str, sbd_root: Path | None = None) -> Layout:
    """VOC augmented by SBD: 10,582 training images; validation is VOC's own.

    A pre-converted SegmentationClassAug wins. Otherwise the training split is (VOC train ∪ SBD train ∪ SBD val) − VOC
    val; VOC's own masks are preferred, because they have a void border and SBD's do not.
    """
    voc_root = _find(root, "JPEGImages", ("VOC2012",))
    if (voc_root / "SegmentationClassAug").is_dir():
        return _preconverted(voc_root, split)
    if split not in ("train", "trainaug"):
        return voc(root, split)
    sbd_root = _find_sbd(voc_root, sbd_root)
    voc_train, voc_val = (_names(_list(voc_root, "ImageSets/Segmentation", s)) for s in ("train", "val"))
    extra = {name for s in ("train", "val") for name in _names(_list(sbd_root, ".", s))} - set(voc_train) - set(voc_val)
    entries = [_voc_entry(voc_root, name, "SegmentationClass") for name in voc_train]
    entries += [_sbd_entry(sbd_root, name) for name in sorted(extra)]
    return Layout(entries, VOC, _read_png_or_sbd, (voc_root, sbd_root))


def sbd(root: Path, split: str) -> Layout:
    """SBD alone, with its own split: 8498 and 2857 images, no void border."""
    root = _find_sbd(root, root)
    return Layout([_sbd_entry(root, n) for n in _names(_list(root, ".", split))], VOC, _read_png_or_sbd, (root,))


def context(root: Path, split: str, classes: tuple[str, ...] = CONTEXT) -> Layout:
    """Pascal Context, 59 classes and background, over VOC 2010 images (4998 and 5105)."""
    root = _find(root, "JPEGImages", ("VOC2010",))
    folder = root / "SegmentationClassContext"
    if folder.is_dir():
        path = _list(root, ("ImageSets/SegmentationContext", "ImageSets/Main"), split)
        entries = [_voc_entry(root, name, folder.name) for name in _names(path)]
        return Layout(entries, classes, read_mask, (root,))
    mats = next((root / f for f in ("trainval", "Context", "annotations") if (root / f).is_dir()), None)
    if mats is None:
        raise DataError(
            f"{root}: holds neither SegmentationClassContext/ (PNG masks) nor trainval/ (the .mat files). "
            "Unpack the Context annotations there."
        )
    path = _list(root, ("ImageSets/SegmentationContext", "ImageSets/Main"), split)
    entries = [
        Entry(name, root / "JPEGImages" / f"{name}.jpg", mats / f"{name}.mat") for name in _names(path, flags=True)
    ]
    labels = next((f / "labels.txt" for f in (root, mats) if (f / "labels.txt").is_file()), root / "labels.txt")
    return Layout(entries, classes, partial(_read_context, reduce=context_reduction(labels, classes)), (root,))


LAYOUTS: dict[str, Callable[..., Layout]] = {
    "voc": voc,
    "voc_aug": voc_aug,
    "sbd": sbd,
    "context": context,
    "context_detail": partial(context, classes=CONTEXT_DETAIL),
}


def context_reduction(labels: Path, classes: tuple[str, ...]) -> np.ndarray:
    """Table from the annotators' label numbers (lines `7: aeroplane`) to class indices; all other labels become 0."""
    aliases = {"diningtable": "table"}
    wanted = {name: index for index, name in enumerate(classes) if index}
    table = np.zeros(65536, dtype=np.uint8)
    found = set()
    for line in read_list(labels):
        number, _, label = (part.strip() for part in line.partition(":"))
        if not (number.isascii() and number.isdigit() and int(number) < len(table) and label):
            raise DataError(f"{labels}: each line must read 'number: name'; got {line[:80]!r}.")
        label = aliases.get(label, label)
        if label in wanted and label not in found:
            table[int(number)] = wanted[label]
            found.add(label)
    if missing := sorted(set(wanted) - found):
        raise DataError(f"{labels}: lacks the labels {missing[:8]}; it must list the names of all 459.")
    return table


def _read_png_or_sbd(path: Path, classes: int) -> np.ndarray:
    if path.suffix == ".png":
        return read_mask(path, classes)
    try:
        mask = np.asarray(read_mat(path, "GTcls")[0, 0]["Segmentation"])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: GTcls must be a struct with the field Segmentation ({error}).") from error
    return _as_mask(mask, path, classes)


def _read_context(path: Path, classes: int, reduce: np.ndarray) -> np.ndarray:
    labels = np.asarray(read_mat(path, "LabelMap"))
    if labels.ndim != 2 or labels.dtype.kind not in "uif" or labels.min() < 0 or labels.max() >= len(reduce):
        raise DataError(f"{path}: LabelMap must be a matrix of label numbers; got {labels.dtype} {labels.shape}.")
    return _as_mask(reduce[labels.astype(np.int64)], path, classes)


def _as_mask(values: np.ndarray, path: Path, classes: int) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.size == 0 or values.max() > IGNORE:
        raise DataError(f"{path}: a mask must be a matrix of small integers; got {values.dtype} {values.shape}.")
    mask = np.ascontiguousarray(values, dtype=np.uint8)
    check_mask_values(mask, classes, path)
    return mask


def _preconverted(root: Path, split: str) -> Layout:
    """SegmentationClassAug with lists of ids, or of 'image label' pairs with a leading slash."""
    candidates = [root / "ImageSets/SegmentationAug" / f"{split}.txt"]
    if split in ("train", "trainaug"):
        candidates += [root / "ImageSets" / f for f in ("SegmentationAug/trainaug.txt", "Segmentation/trainaug.txt")]
        candidates += [root / "ImageSets/Segmentation/train_aug.txt"]
    else:
        candidates += [root / "ImageSets/Segmentation" / f"{split}.txt"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise DataError(f"{root}: none of the lists {', '.join(str(p.relative_to(root)) for p in candidates)} exists.")
    entries = []
    for line in read_list(path):
        parts = line.split()
        if len(parts) == 1 and "/" not in line:
            entries.append(_voc_entry(root, check_name(line, path), "SegmentationClassAug"))
        elif len(parts) == 2:
            image, mask = (_listed_path(root, part, path) for part in parts)
            entries.append(Entry(image.stem, image, mask))
        else:
            raise DataError(f"{path}: each line must be an id or 'image label'; got {line[:80]!r}.")
    _refuse_duplicates([entry.name for entry in entries], path)
    return Layout(entries, VOC, read_mask, (root,))


def _listed_path(root: Path, written: str, source: Path) -> Path:
    parts = [check_name(part, source) for part in written.removeprefix("/").split("/")]
    return root.joinpath(*parts)


def _voc_entry(root: Path, name: str, masks: str | None) -> Entry:
    return Entry(name, root / "JPEGImages" / f"{name}.jpg", root / masks / f"{name}.png" if masks else None)


def _sbd_entry(root: Path, name: str) -> Entry:
    return Entry(name, root / "img" / f"{name}.jpg", root / "cls" / f"{name}.mat")


def _find(root: Path, folder: str, names: tuple[str, ...]) -> Path:
    """`root` or the first folder below it, along the paths that archives unpack to, that holds `folder`."""
    prefixes = ("", "VOCdevkit", "TrainVal/VOCdevkit")
    for candidate in [root, *(root / prefix / name for prefix in prefixes for name in names)]:
        if (candidate / folder).is_dir():
            return candidate
    raise DataError(
        f"{root}: holds no {folder}/ (nor does {' or '.join(names)} below it). Point --data at the folder that does, "
        "or write a generated set with `python -m models.data.synthetic --out DIR`."
    )


def _find_sbd(root: Path, given: Path | None) -> Path:
    bases = [given] if given is not None else [root, root.parent, root.parent.parent]
    for base in bases:
        for below in (".", "dataset", "benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "sbd"):
            if (base / below / "cls").is_dir():
                return base / below
    raise DataError(
        f"{bases[0]}: no SBD found (a folder with img/, cls/, train.txt, val.txt), nor SegmentationClassAug/ in VOC. "
        "Say where it is with sbd_root (--sbd)."
    )


def _list(root: Path, folders: str | tuple[str, ...], split: str) -> Path:
    """The first existing list of a split; otherwise an error that says which splits there are."""
    folders = (folders,) if isinstance(folders, str) else folders
    for folder in folders:
        if (root / folder / f"{split}.txt").is_file():
            return root / folder / f"{split}.txt"
    have = sorted({path.stem for folder in folders for path in (root / folder).glob("*.txt")})
    shown = ", ".join(have[:12]) if have else "no list at all"
    raise DataError(f"{root / folders[0] / (split + '.txt')}: file is missing; the folder has {shown}.")


def _names(path: Path, flags: bool = True) -> list[str]:
    """Ids of a list; the second column of VOC's Main lists (1, 0, −1) is dropped."""
    names = []
    for line in read_list(path):
        parts = line.split()
        if flags and len(parts) == 2 and parts[1] in ("1", "0", "-1"):
            line = parts[0]
        names.append(check_name(line, path))
    _refuse_duplicates(names, path)
    return names


def _refuse_duplicates(names: list[str], path: Path) -> None:
    if not names:
        raise DataError(f"{path}: the list is empty.")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: each id may be listed once; {name} comes twice and would count twice.")
        seen.add(name)


def _class_list(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    if not path.is_file():
        return VOC
    names = tuple(check_name(line, path) for line in read_list(path))
    if not 2 <= len(names) <= IGNORE or len(set(names)) != len(names):
        raise DataError(f"{path}: must list 2 to {IGNORE} different class names; got {len(names)} lines.")
    return names
