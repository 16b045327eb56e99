"""Layouts without lists: what lies in a split's folder belongs to the split. Cityscapes, ADE20K, and one's own folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from models.data.classes import ADE20K, CITYSCAPES, CITYSCAPES_IDS
from models.data.files import DataError, check_name, read_mask
from models.data.layout import Entry, Layout, Reading, class_list, image_folder, mask_folder, mask_reader


def folders(root: Path, split: str, reading: Reading) -> Layout:
    """images/SPLIT/*, masks/SPLIT/*.png, and classes.txt. A split without masks/SPLIT has no ground truth."""
    entries = _pairs(root, root / "images" / split, root / "masks" / split, reading)
    return Layout(entries, class_list(root, None, reading.reduce_zero_label), mask_reader(reading), (root,))


def ade20k(root: Path, split: str, reading: Reading) -> Layout:
    """ADE20K as the scene parsing benchmark distributes it: 150 classes, 0 in a mask is void; 20,210 and 2,000 images."""
    root = next((r for r in (root, root / "ADEChallengeData2016") if (r / "annotations").is_dir()), root)
    folder = {"train": "training", "val": "validation"}.get(split, split)
    entries = _pairs(root, root / "images" / folder, root / "annotations" / folder, reading)
    reading = replace(reading, reduce_zero_label=True)
    return Layout(entries, class_list(root, ADE20K), mask_reader(reading, colours=False), (root,))


def cityscapes(root: Path, split: str, reading: Reading) -> Layout:
    """Cityscapes, 19 classes: masks of label ids, which are reduced here, or of train ids. The test split has none."""
    ending = reading.image_suffix or "_leftImg8bit.png"
    images = sorted((root / "leftImg8bit" / split).glob(f"*/*{ending}"))
    if not images:
        raise DataError(
            f"{root / 'leftImg8bit' / split}: holds no */*{ending}. Unpack leftImg8bit and gtFine below --data."
        )
    written = [f"_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
    masks = root / "gtFine" / split
    found = next((suffix for suffix in written if next(masks.glob(f"*/*{suffix}"), None)), written[1])
    suffix = reading.mask_suffix or found
    entries = []
    for image in images:
        name = check_name(image.name.removesuffix(ending), image)
        mask = masks / image.parent.name / f"{name}{suffix}"
        entries.append(Entry(name, image, None if split == "test" else mask))
    reader = mask_reader(reading, colours=False) if suffix != written[1] else _read_label_ids
    return Layout(entries, class_list(root, CITYSCAPES), reader, (root,))


def _read_label_ids(path: Path, classes: int) -> np.ndarray:
    ids = read_mask(path, len(CITYSCAPES_IDS), colours=False)
    return CITYSCAPES_IDS[np.minimum(ids, len(CITYSCAPES_IDS) - 1)]


def _pairs(root: Path, images: Path, masks: Path, reading: Reading) -> list[Entry]:
    found = image_folder(images, reading)
    if not found.files:
        have = sorted(path.name for path in images.parent.iterdir() if path.is_dir()) if images.parent.is_dir() else []
        raise DataError(
            f"{images}: holds no JPEG or PNG image; {images.parent.name}/ has {', '.join(have) or 'no split at all'}."
        )
    truths = mask_folder(masks, reading) if masks.is_dir() else None
    names = [check_name(name, images) for name in found.files]
    return [Entry(name, found.file(name), truths.file(name) if truths else None) for name in names]
