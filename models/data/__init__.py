"""Data for segmentation: published sets, one's own and generated ones (`layouts`), with joint transforms.

dataset = build_dataset("VOCdevkit", "voc_aug", "train", build_transform("default", train=True, crop=321))
loader = build_loader(dataset, batch_size=16, workers=8)
"""

from models.data.classes import CONTEXT, CONTEXT_DETAIL, IGNORE, VOC, colour, palette
from models.data.dataset import (
    EpochSampler,
    SegmentationDataset,
    begin_epoch,
    build_dataset,
    build_loader,
    end_workers,
    endure_signals,
    signals_wait,
)
from models.data.files import DataError
from models.data.transforms import RECIPES, Recipe, Transform, build_transform

__all__ = [
    "CONTEXT",
    "CONTEXT_DETAIL",
    "IGNORE",
    "RECIPES",
    "VOC",
    "DataError",
    "EpochSampler",
    "Recipe",
    "SegmentationDataset",
    "Transform",
    "begin_epoch",
    "build_dataset",
    "build_loader",
    "build_transform",
    "colour",
    "end_workers",
    "endure_signals",
    "palette",
    "signals_wait",
]
