"""The options of every command that reads a data set: one list, so that none of them lacks one."""

from __future__ import annotations

import argparse
from typing import Any

from models.data.dataset import SegmentationDataset, build_dataset
from models.data.layouts import LAYOUTS
from models.data.transforms import Transform

READING = ("sbd", "follow_links", "image_suffix", "mask_suffix", "reduce_zero_label")


def add_data_arguments(parser: Any, required: bool = True) -> None:
    """--data, --kind, and how its files are read; `parser` may be a group."""
    parser.add_argument("--data", required=required, help="root of the data set")
    parser.add_argument("--kind", default="voc", help=f"its layout: {', '.join(LAYOUTS)} (docs/models.md)")
    parser.add_argument("--sbd", help="root of SBD, for --kind voc_aug")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of the root")
    parser.add_argument("--image-suffix", help="what follows an image's name, e.g. _rgb.png; default: any JPEG or PNG")
    parser.add_argument("--mask-suffix", help="what follows its mask's name, e.g. _labels.png; default: .png")
    parser.add_argument("--reduce-zero-label", action="store_true", help="0 in masks is void, and k is class k - 1")


def dataset_of(
    options: argparse.Namespace, split: str, transform: Transform | None = None, seed: int = 0
) -> SegmentationDataset:
    """The split of the data set that the options describe."""
    return build_dataset(options.data, options.kind, split, transform, seed=seed, **reading_of(options))


def reading_of(options: Any) -> dict[str, Any]:
    """How files are read, for `build_dataset`: from options, or from anything with the same attributes."""
    reading = {name: getattr(options, name) for name in READING}
    return {"sbd_root": reading.pop("sbd"), **reading}
