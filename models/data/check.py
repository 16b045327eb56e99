"""Scan a data set before training: open every file, check every rule, report everything that is wrong at once.

python -m models.data.check --data DIR [--kind voc] [--split train val] exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from models.data.classes import IGNORE
from models.data.dataset import SegmentationDataset, build_dataset
from models.data.files import DataError
from models.data.layouts import LAYOUTS


@dataclass
class Report:
    """What a scan found: one line per problem, and pixels per class over the files that were fine."""

    split: str
    images: int
    problems: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)

    def table(self, classes: Sequence[str]) -> str:
        """Pixels per class as text, rarest classes visible."""
        total = max(1, int(self.pixels.sum()))
        rows = [(name, int(self.pixels[index])) for index, name in enumerate(classes)]
        rows.append(("(void)", int(self.pixels[IGNORE])))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}} {count:>14,} px {count / total:8.3%}" for name, count in rows)


def scan(dataset: SegmentationDataset, split: str = "", workers: int = 4, progress: bool = False) -> Report:
    """Decode and check every image and mask of `dataset`; problems are collected, not raised."""
    report = Report(split, len(dataset))

    def look(index: int) -> tuple[str | None, np.ndarray | None]:
        try:
            return None, dataset.load(index)[1]
        except DataError as error:
            return str(error), None

    with ThreadPoolExecutor(workers) as pool:  # Pillow and zlib release the interpreter while they decode
        results = pool.map(look, range(len(dataset)))
        for problem, mask in tqdm(results, total=len(dataset), desc=f"check {split}".strip(), disable=not progress):
            if mask is None:
                report.problems.append(problem)
            else:
                report.pixels += np.bincount(mask.ravel(), minlength=256)
                report.sizes.append(mask.shape)
    return report


def require_sound(dataset: SegmentationDataset, split: str = "", workers: int = 4, progress: bool = False) -> Report:
    """`scan`, then raise DataError with the first problems if there are any: no training starts on a broken set."""
    report = scan(dataset, split, workers, progress)
    if report.problems:
        shown = "\n  ".join(report.problems[:10])
        raise DataError(f"{len(report.problems)} of {report.images} samples cannot be used:\n  {shown}")
    return report


def overlap(datasets: dict[str, SegmentationDataset]) -> list[str]:
    """One line per training and held-out split that share names: such a validation proves nothing."""
    names = {split: {entry.name for entry in dataset.entries} for split, dataset in datasets.items()}
    found = []
    for train in names.keys() & {"train", "trainaug"}:
        for held_out in names.keys() & {"val", "test"}:
            if shared := sorted(names[train] & names[held_out]):
                found.append(f"{len(shared)} names are in both {train} and {held_out}, for example {shared[0]}.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.data.check", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="root of the data set")
    parser.add_argument("--kind", default="voc", choices=sorted(LAYOUTS))
    parser.add_argument("--split", nargs="+", default=["train", "val"])
    parser.add_argument("--sbd", help="root of SBD, for --kind voc_aug")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of the root")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args(arguments)

    problems, datasets = [], {}
    for split in options.split:
        try:
            dataset = build_dataset(
                options.data, options.kind, split, sbd_root=options.sbd, follow_links=options.follow_links
            )
        except DataError as error:
            problems.append(str(error))
            continue
        datasets[split] = dataset
        report = scan(dataset, split, options.workers, progress=sys.stderr.isatty())
        problems += report.problems
        print(f"{split}: {report.images} images, {len(report.problems)} problems")
        if report.sizes:
            heights, widths = zip(*report.sizes, strict=True)
            print(f"  heights {min(heights)}…{max(heights)}, widths {min(widths)}…{max(widths)}")
            print(report.table(dataset.classes))
    problems += overlap(datasets)
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    print("sound" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
