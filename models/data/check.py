"""Scan a data set before training: open every file, check every rule, report everything that is wrong at once.

python -m models.data.check --data DIR [--kind voc] [--split train val] exits with 1 if anything is wrong. What is allowed
and yet probably a mistake (a class without a pixel, photographs that were turned) is a warning.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from models.data.arguments import add_data_arguments, dataset_of
from models.data.classes import IGNORE
from models.data.dataset import SegmentationDataset
from models.data.files import DataError

Look = tuple[str | None, np.ndarray | None, int]  # problem, mask, EXIF orientation


@dataclass
class Report:
    """What a scan found: one line per problem, and over the files that were fine: pixels per class, sizes, turned ones."""

    split: str
    images: int
    classes: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)
    turned: list[str] = field(default_factory=list)  # names of photographs with an EXIF orientation and a mask

    def table(self, classes: Sequence[str]) -> str:
        """Pixels per class as text, rarest classes visible."""
        total = max(1, int(self.pixels.sum()))
        rows = [(name, int(self.pixels[index])) for index, name in enumerate(classes)]
        rows.append(("(void)", int(self.pixels[IGNORE])))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}} {count:>14,} px {count / total:8.3%}" for name, count in rows)

    def warnings(self) -> list[str]:
        """What can be right and mostly is not, a line each."""
        found = []
        counted = self.pixels[: len(self.classes)]
        if not counted.any():
            return ["there is no ground truth: every pixel is void"] if self.sizes else []
        absent = [name for name, count in zip(self.classes, counted, strict=True) if not count]
        if not counted[1:].any() and self.pixels[IGNORE]:
            found.append(
                f"only 0 and 255 occur in the masks, and {IGNORE} is void: is 255 your class {self.classes[1]}? Then write "
                "it as 1 (python -m models.data.masks)"
            )
        elif absent:
            shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
            found.append(f"{len(absent)} of {len(self.classes)} classes have no pixel: {shown}")
        if self.turned:
            found.append(
                f"{len(self.turned)} photographs have an EXIF orientation and are read upright, for example "
                f"{self.turned[0]}: were their masks drawn that way up?"
            )
        return found


def scan(dataset: SegmentationDataset, split: str = "", workers: int | None = None, progress: bool = False) -> Report:
    """Decode and check every image and mask of `dataset`; problems are collected, not raised.

    workers: threads, by default one a core; 0 is this thread alone.
    """
    report = Report(split, len(dataset), dataset.classes)

    def look(index: int) -> Look:
        try:
            _, mask, orientation = dataset.sample(index)
            return None, mask, orientation
        except DataError as error:
            return str(error), None, 1

    results = _in_threads(look, range(len(dataset)), os.cpu_count() or 1 if workers is None else workers)
    bar = tqdm(results, total=len(dataset), desc=f"check {split}".strip(), disable=not progress)
    for entry, (problem, mask, orientation) in zip(dataset.entries, bar, strict=True):
        if mask is None:
            report.problems.append(str(problem))
            continue
        report.pixels += np.bincount(mask.ravel(), minlength=256)
        report.sizes.append((mask.shape[0], mask.shape[1]))
        if orientation != 1 and entry.mask is not None:
            report.turned.append(entry.name)
    return report


def _in_threads(look: Callable[[int], Look], indices: Iterable[int], workers: int) -> Iterator[Look]:
    """`map` in threads: Pillow, zlib and NumPy release the interpreter while they work."""
    if workers < 1:
        yield from map(look, indices)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(look, indices)


def require_sound(
    dataset: SegmentationDataset, split: str = "", workers: int | None = None, progress: bool = False
) -> Report:
    """`scan`, then raise DataError with the first problems if there are any: no training starts on a broken set."""
    report = scan(dataset, split, workers, progress)
    if report.problems:
        shown = "\n  ".join(report.problems[:10])
        raise DataError(f"{len(report.problems)} of {report.images} samples cannot be used:\n  {shown}")
    return report


def overlap(datasets: dict[str, SegmentationDataset]) -> list[str]:
    """One line per training and held-out split that share names: such a validation proves nothing."""
    found = []
    for train in sorted(datasets.keys() & {"train", "trainaug"}):
        for held_out in sorted(datasets.keys() & {"val", "test"}):
            found += shared_names(train, datasets[train], held_out, datasets[held_out])
    return found


def shared_names(train: str, train_set: SegmentationDataset, held_out: str, other: SegmentationDataset) -> list[str]:
    """A line if the two splits share names."""
    shared = sorted({entry.name for entry in train_set.entries} & {entry.name for entry in other.entries})
    return [f"{len(shared)} names are in both {train} and {held_out}, for example {shared[0]}."] if shared else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.data.check", description="Open and check every file.")
    add_data_arguments(parser)
    parser.add_argument("--split", nargs="+", default=["train", "val"])
    parser.add_argument("--workers", type=int, help="threads; default: one a core")
    options = parser.parse_args(arguments)

    problems: list[str] = []
    warnings: list[str] = []
    datasets = {}
    for split in options.split:
        try:
            dataset = dataset_of(options, split)
        except DataError as error:
            problems.append(str(error))
            continue
        datasets[split] = dataset
        report = scan(dataset, split, options.workers, progress=sys.stderr.isatty())
        problems += report.problems
        warnings += [f"{split}: {warning}" for warning in report.warnings()]
        print(f"{split}: {report.images} images, {len(report.problems)} problems")
        if report.sizes:
            heights, widths = zip(*report.sizes, strict=True)
            print(f"  heights {min(heights)}…{max(heights)}, widths {min(widths)}…{max(widths)}")
            print(report.table(dataset.classes))
    problems += overlap(datasets)
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    for warning in warnings:
        print(f"WARNING {warning}", file=sys.stderr)
    counted = f", {len(warnings)} warnings" if warnings else ""
    print(f"sound{counted}" if not problems else f"{len(problems)} problems{counted}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
