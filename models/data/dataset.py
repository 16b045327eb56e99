"""The data set that training and evaluation see: one class for every layout, and a loader that is reproducible.

Sample i of epoch e depends on (seed, e, i) and on nothing else: not on the number of workers, the batch size, or which
process asks. So a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from models.data.classes import IGNORE
from models.data.files import DataError, check_name, check_same_size, confined, read_photograph
from models.data.layout import Layout, Reading
from models.data.layouts import LAYOUTS
from models.data.transforms import Transform, build_transform


class SegmentationDataset(Dataset):
    """Samples {"image": float32 (3, H, W) normalised, "mask": int64 (H, W) with 255 = ignore, "name": str}."""

    def __init__(self, layout: Layout, transform: Transform, seed: int = 0, follow_links: bool = False):
        self.entries = layout.entries
        self.classes = layout.classes
        self.transform = transform
        self.seed = seed
        self.follow_links = follow_links
        self._layout = layout
        # shared memory, so that workers which outlive an epoch see the next one begin
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._refuse_missing()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random flips, scales and crops the samples get."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        image, mask = self.transform(*self.load(index), rng)
        return {"image": image, "mask": mask, "name": self.entries[index].name}

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The untransformed pair: RGB uint8 (H, W, 3) and mask uint8 (H, W), checked. All void without ground truth."""
        return self.sample(index)[:2]

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The untransformed pair, and the EXIF orientation by which the photograph was turned upright (1: none)."""
        entry = self.entries[index]
        image, orientation = read_photograph(self._confined(entry.image))
        if entry.mask is None:
            return image, np.full(image.shape[:2], IGNORE, dtype=np.uint8), orientation
        mask = self._layout.read_mask(self._confined(entry.mask), self.num_classes)
        check_same_size(image, mask, entry.image, entry.mask, orientation)
        return image, mask, orientation

    def _confined(self, path: Path) -> Path:
        root = next((r for r in self._layout.roots if path.is_relative_to(r)), self._layout.roots[0])
        return confined(root, path, self.follow_links)

    def _refuse_missing(self) -> None:
        paths = [path for entry in self.entries for path in (entry.image, entry.mask) if path is not None]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: file is missing ({len(missing)} of {len(paths)} listed files are). "
                "Unpack the archive again, or correct the list."
            )


def build_dataset(
    root: str | Path,
    kind: str = "voc",
    split: str = "train",
    transform: Transform | None = None,
    *,
    seed: int = 0,
    sbd_root: str | Path | None = None,
    follow_links: bool = False,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    reduce_zero_label: bool = False,
) -> SegmentationDataset:
    """Find a data set on disk.

    kind: "voc", "voc_aug", "sbd", "context" (59 classes + background, FCN order), "context_detail" (alphabetical),
        "folders", "cityscapes", "ade20k" (models/data/layouts.py describes them).
    transform: from `build_transform`; None means native size, default normalisation, no chance.
    image_suffix, mask_suffix, reduce_zero_label: as of `Reading`.
    Raises DataError, naming the file, if anything listed is missing. `models.data.check` also opens every file.
    """
    if kind not in LAYOUTS:
        raise DataError(f"kind must be one of {', '.join(LAYOUTS)}; got {kind!r}.")
    check_name(split, "split")
    reading = Reading(None if sbd_root is None else Path(sbd_root), image_suffix, mask_suffix, reduce_zero_label)
    layout = LAYOUTS[kind](Path(root), split, reading)
    return SegmentationDataset(layout, transform or build_transform(), seed, follow_links)


def endure_signals(worker: int = 0) -> None:
    """For worker processes: a signal to the whole process group is the parent's to answer, which still needs them.

    Clusters and Ctrl-C signal the group. A worker that outlives its parent ends as it otherwise would.
    """
    del worker
    parent = os.getppid()

    def endure(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os._exit(128 + number)

    for number in STOPPING:
        signal.signal(number, endure)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def end_workers(workers: Collection[BaseProcess]) -> None:
    """End the processes that load images, whatever they are loading: nobody waits for it any more."""
    # torch's handler would take the deaths for accidents
    answer = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    signal.signal(signal.SIGCHLD, answer or signal.SIG_DFL)


@atexit.register
def _end_all_workers() -> None:
    """A process that exits ends its workers by a signal that they endure, and would wait for them for ever."""
    end_workers([child for child in multiprocessing.active_children() if child.daemon])


@contextmanager
def signals_wait() -> Iterator[None]:
    """Signals that arrive inside are answered afterwards. Processes started inside begin like this, so that none of them
    meets one before `endure_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


STOPPING = (signal.SIGTERM, signal.SIGINT)


class EpochSampler(Sampler[int]):
    """Indices of one epoch: a permutation that depends on (seed, epoch), dealt out to `world` processes.

    With `even` (training) the tail that does not divide by `world` is dropped, so that every process takes as many
    steps; without (evaluation) every index is dealt exactly once.
    """

    def __init__(
        self, length: int, shuffle: bool = True, seed: int = 0, rank: int = 0, world: int = 1, even: bool = True
    ):
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0…{world - 1}; got {rank}.")
        self.length, self.shuffle, self.seed = length, shuffle, seed
        self.rank, self.world, self.even = rank, world, even
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self._end, self.world))

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter(order[self.rank : self._end : self.world].tolist())

    @property
    def _end(self) -> int:
        return self.length - self.length % self.world if self.even else self.length


def build_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    *,
    shuffle: bool = True,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = True,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of batches for one process; before each epoch call `begin_epoch(loader, epoch)`."""
    sampler = EpochSampler(len(dataset), shuffle, dataset.seed, rank, world)
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=endure_signals,
    )


def begin_epoch(loader: DataLoader, epoch: int) -> None:
    """Order and augmentation of the next pass over `loader` become those of `epoch`."""
    for part in (loader.sampler, loader.dataset):
        part.set_epoch(epoch)  # type: ignore[union-attr]
