"""Segmentation metrics from one int64 confusion matrix: counts are exact, and add up over batches and processes."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from models.data.classes import IGNORE


def summed(counts: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum over all processes, where the counts were. `device` is where the group can add: NCCL does on GPUs only."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return counts
    total = counts.to(device)
    dist.all_reduce(total)
    return total.to(counts.device)


class ConfusionMatrix:
    """counts[i, j]: pixels of true class i that were predicted as class j. Pixels of value `ignore` are left out."""

    def __init__(self, num_classes: int, ignore: int = IGNORE, device: torch.device | str = "cpu"):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}.")
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, pred: torch.Tensor | np.ndarray, mask: torch.Tensor | np.ndarray) -> None:
        """Count class indices `pred` against `mask`: tensors or arrays of one shape and any integer type."""
        pred, mask = (torch.as_tensor(x, device=self.counts.device) for x in (pred, mask))
        if pred.shape != mask.shape:
            raise ValueError(f"pred and mask must have one shape; got {tuple(pred.shape)} and {tuple(mask.shape)}.")
        for name, x in (("pred", pred), ("mask", mask)):
            if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise ValueError(f"{name} must hold class indices; got {x.dtype}. Take the argmax of logits first.")
        keep = mask != self.ignore
        pred, mask = pred[keep].long(), mask[keep].long()
        for name, x in (("pred", pred), ("mask", mask)):
            low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{name} must lie in 0…{self.num_classes - 1} (or be {self.ignore} in the mask); got {low}…{high}. "
                    "Does num_classes fit the data?"
                )
        pairs = torch.bincount(mask * self.num_classes + pred, minlength=self.num_classes**2)
        self.counts += pairs.view_as(self.counts)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add another matrix's counts to this one."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"only equal class counts merge; got {self.num_classes} and {other.num_classes}.")
        self.counts += other.counts.to(self.counts.device)
        return self

    def all_reduce(self) -> ConfusionMatrix:
        """Sum over all processes, if there are several. Exact, because the counts are integers."""
        self.counts = summed(self.counts, self.counts.device)
        return self

    def per_class_iou(self) -> torch.Tensor:
        """IoU (K,) in fp64: hits / (truth + predictions − hits); NaN for a class that occurs in neither."""
        hits, truth, predictions = self._marginals()
        return hits / (truth + predictions - hits)  # 0 / 0 is the NaN

    def mean_iou(self, exclude: tuple[int, ...] = ()) -> float:
        """Mean IoU over the classes that occur in truth or prediction, without those in `exclude`; NaN if none do."""
        iou = self.per_class_iou()
        keep = ~iou.isnan()
        keep[list(exclude)] = False
        return float(iou[keep].mean())

    def mean_accuracy(self) -> float:
        """Mean over the classes that occur in the truth of the share of their pixels that are right; NaN if none do."""
        hits, truth, _ = self._marginals()
        return float((hits / truth)[truth > 0].mean())

    def frequency_weighted_iou(self) -> float:
        """IoU of every class, weighted by its share of the true pixels; NaN if there are none."""
        _, truth, _ = self._marginals()
        return float((self.per_class_iou().nan_to_num(0) * truth).sum() / truth.sum())

    def pixel_accuracy(self) -> float:
        """Share of counted pixels that are right; NaN if none were counted."""
        hits, truth, _ = self._marginals()
        return float(hits.sum() / truth.sum())

    def _marginals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = self.counts.cpu()
        return counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
