"""Data for segmentation: VOC 2012, SBD, Pascal Context and generated sets, with joint transforms.

dataset = build_dataset("VOCdevkit", "voc_aug", "train", build_transform("default", train=True, crop=321))
loader = build_loader(dataset, batch_size=16, workers=8)
"""

from models.data.classes import CONTEXT, CONTEXT_DETAIL, IGNORE, VOC, colour, palette
from models.data.dataset import EpochSampler, SegmentationDataset, begin_epoch, build_dataset, build_loader
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
    "palette",
]
