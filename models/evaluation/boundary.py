"""Boundary IoU (Cheng et al. 2021): IoU of the pixels near contours, where masks of large objects differ if anywhere."""

from __future__ import annotations

import numpy as np
import torch

from models.data.classes import IGNORE
from models.evaluation.metrics import summed


class BoundaryCounts:
    """Pixels of the boundary bands of truth and prediction: in both, in either, per class (int64: they add up).

    The band of a class is what lies within `ratio` of the image's diagonal (2 % as in the paper, at least one pixel) of a
    pixel that is not of that class, the outside of the image included. Void pixels belong to no class on either side.
    """

    def __init__(self, num_classes: int, ratio: float = 0.02) -> None:
        self.ratio = ratio
        self.both = torch.zeros(num_classes, dtype=torch.int64)
        self.either = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, pred: torch.Tensor, mask: torch.Tensor) -> None:
        """Count one image's class indices (H, W)."""
        truth = mask.numpy()
        seen = np.where(truth == IGNORE, IGNORE, pred.numpy())
        width = max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        for index in np.union1d(np.unique(truth), np.unique(seen)):
            if index != IGNORE:
                ours, theirs = band(seen == index, width), band(truth == index, width)
                self.both[index] += int((ours & theirs).sum())
                self.either[index] += int((ours | theirs).sum())

    def all_reduce(self, device: torch.device) -> None:
        """Sum over all processes, if there are several."""
        self.both, self.either = summed(self.both, device), summed(self.either, device)

    def mean_iou(self) -> float:
        """Mean over the classes that occur; NaN if none do."""
        occurring = self.either > 0
        return float((self.both[occurring].double() / self.either[occurring].double()).mean())


def band(region: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a region (H, W) at most `width` steps, diagonal ones included, from its outside."""
    from scipy.ndimage import distance_transform_cdt  # half a second, which only this needs

    distance = distance_transform_cdt(np.pad(region, 1), "chessboard")[1:-1, 1:-1]
    return region & (distance <= width)
