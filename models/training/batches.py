"""What the loop is fed: the order of images as a function of (seed, epoch, step), and samples put together."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler

from models.data import DataError, EpochSampler
from models.training.processes import Processes


class TrainingData(Protocol):
    """What the loop asks of its data: models.data has it, and anything like it will do."""

    @property
    def classes(self) -> Sequence[str]: ...

    def set_epoch(self, epoch: int) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> a batch. DataError, naming two images, unless all have one size."""
    first = samples[0]
    for sample in samples[1:]:
        if sample["mask"].shape != first["mask"].shape:
            (height, width), (other_height, other_width) = first["mask"].shape, sample["mask"].shape
            raise DataError(
                f"without augmentation, all images must have one size; {first['name']} has {width}×{height}, "
                f"{sample['name']} {other_width}×{other_height} (width × height). Choose a recipe that crops."
            )
    batch: dict[str, Any] = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "mask")}
    return {**batch, "name": [sample["name"] for sample in samples]}


class Batches(Sampler[list[int]]):
    """The batches of one process in one epoch, from a given step on: a function of (seed, epoch, step)."""

    def __init__(self, length: int, size: int, steps: int, seed: int, processes: Processes) -> None:
        self.order = EpochSampler(length, True, seed, processes.rank, processes.size)
        self.size, self.steps, self.start = size, steps, 0

    def place(self, epoch: int, start: int) -> None:
        self.order.set_epoch(epoch)
        self.start = start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.order)
        for step in range(self.start, self.steps):
            yield indices[step * self.size : (step + 1) * self.size]
