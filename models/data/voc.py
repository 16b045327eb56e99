"""VOC 2012, SBD and Pascal Context as their archives unpack, and any tree written like VOC's.

The root may be the folder itself or one above it (VOCdevkit/VOC2012, VOC2012, …).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from models.data.classes import CONTEXT, CONTEXT_DETAIL, IGNORE, VOC
from models.data.files import DataError, check_mask_values, check_name, read_list, read_mat
from models.data.layout import (
    Entry,
    Layout,
    Reading,
    class_list,
    find,
    image_folder,
    list_file,
    mask_folder,
    mask_reader,
    names_of,
    refuse_duplicates,
)


def voc(root: Path, split: str, reading: Reading) -> Layout:
    """VOC 2012 as distributed, or any tree written like it; a `classes.txt` in the root replaces the 21 names."""
    root = find(root, "JPEGImages", ("VOC2012",))
    names = names_of(list_file(root, "ImageSets/Segmentation", split))
    masked = split != "test" or (root / "SegmentationClass").is_dir()
    classes = class_list(root, VOC, reading.reduce_zero_label)
    return Layout(
        _entries(root, names, "SegmentationClass" if masked else None, reading), classes, mask_reader(reading), (root,)
    )


def voc_aug(root: Path, split: str, reading: Reading) -> Layout:
    """VOC augmented by SBD: 10,582 training images; validation is VOC's own.

    A pre-converted SegmentationClassAug wins. Otherwise the training split is (VOC train ∪ SBD train ∪ SBD val) − VOC
    val; VOC's own masks are preferred, because they have a void border and SBD's do not.
    """
    voc_root = find(root, "JPEGImages", ("VOC2012",))
    if (voc_root / "SegmentationClassAug").is_dir():
        return _preconverted(voc_root, split, reading)
    if split not in ("train", "trainaug"):
        return voc(root, split, reading)
    sbd_root = _find_sbd(voc_root, reading.sbd_root)
    voc_train, voc_val = (names_of(list_file(voc_root, "ImageSets/Segmentation", s)) for s in ("train", "val"))
    extra = {n for s in ("train", "val") for n in names_of(list_file(sbd_root, ".", s))} - set(voc_train) - set(voc_val)
    entries = _entries(voc_root, voc_train, "SegmentationClass", reading)
    entries += [_sbd_entry(sbd_root, name) for name in sorted(extra)]
    return Layout(entries, VOC, _read_png_or_sbd, (voc_root, sbd_root))


def sbd(root: Path, split: str, reading: Reading) -> Layout:
    """SBD alone, with its own split: 8498 and 2857 images, no void border."""
    root = _find_sbd(root, root)
    names = names_of(list_file(root, ".", split))
    return Layout([_sbd_entry(root, name) for name in names], VOC, _read_png_or_sbd, (root,))


def context(root: Path, split: str, reading: Reading, classes: tuple[str, ...] = CONTEXT) -> Layout:
    """Pascal Context, 59 classes and background, over VOC 2010 images (4998 and 5105)."""
    root = find(root, "JPEGImages", ("VOC2010",))
    folder = root / "SegmentationClassContext"
    lists = ("ImageSets/SegmentationContext", "ImageSets/Main")
    if folder.is_dir():
        names = names_of(list_file(root, lists, split))
        return Layout(_entries(root, names, folder.name, reading), classes, mask_reader(reading), (root,))
    mats = next((root / f for f in ("trainval", "Context", "annotations") if (root / f).is_dir()), None)
    if mats is None:
        raise DataError(
            f"{root}: holds neither SegmentationClassContext/ (PNG masks) nor trainval/ (the .mat files). "
            "Unpack the Context annotations there."
        )
    images = image_folder(root / "JPEGImages", reading)
    names = names_of(list_file(root, lists, split))
    entries = [Entry(name, images.file(name), mats / f"{name}.mat") for name in names]
    labels = next((f / "labels.txt" for f in (root, mats) if (f / "labels.txt").is_file()), root / "labels.txt")
    return Layout(entries, classes, partial(_read_context, reduce=context_reduction(labels, classes)), (root,))


context_detail = partial(context, classes=CONTEXT_DETAIL)


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
    if path.suffix.lower() == ".png":
        return mask_reader(Reading())(path, classes)
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


def _preconverted(root: Path, split: str, reading: Reading) -> Layout:
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
    images, masks = image_folder(root / "JPEGImages", reading), mask_folder(root / "SegmentationClassAug", reading)
    entries = []
    for line in read_list(path):
        parts = line.split()
        if "/" not in line:
            name = check_name(line, path)
            entries.append(Entry(name, images.file(name), masks.file(name)))
        elif len(parts) == 2:
            image, mask = (_listed_path(root, part, path) for part in parts)
            entries.append(Entry(image.stem, image, mask))
        else:
            raise DataError(f"{path}: each line must be an id or 'image label'; got {line[:80]!r}.")
    refuse_duplicates([entry.name for entry in entries], path)
    return Layout(entries, VOC, mask_reader(reading), (root,))


def _listed_path(root: Path, written: str, source: Path) -> Path:
    parts = [check_name(part, source) for part in written.removeprefix("/").split("/")]
    return root.joinpath(*parts)


def _entries(root: Path, names: list[str], masks: str | None, reading: Reading) -> list[Entry]:
    images = image_folder(root / "JPEGImages", reading)
    truths = mask_folder(root / masks, reading) if masks else None
    return [Entry(name, images.file(name), truths.file(name) if truths else None) for name in names]


def _sbd_entry(root: Path, name: str) -> Entry:
    return Entry(name, root / "img" / f"{name}.jpg", root / "cls" / f"{name}.mat")


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
