"""A network over images of any size: several scales, mirrored, and large images window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 1024  # pixels of a side: the walks of a whole image cost the fourth power of it
WINDOW = 513


@dataclass(frozen=True)
class Views:
    """How often an image is looked at. Class probabilities are averaged over scales and mirrored images.

    window: side of the squares, in pixels of the scaled image, that the network sees one by one; None is the whole image,
    "auto" is WINDOW for images with a side above LARGE, whole images otherwise. Neighbours overlap by a third at least.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: int | str | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"scales must be numbers in (0, 8], at least one; got {list(self.scales)}.")
        if self.window not in (None, "auto") and not (isinstance(self.window, int) and self.window >= 33):
            raise ValueError(f"window must be a side of at least 33 pixels, 'auto' or None; got {self.window!r}.")

    @property
    def one(self) -> bool:
        """Whether there is a single view, whose logits decide alone."""
        return len(self.scales) == 1 and not self.flip

    def side(self, size: Sequence[int]) -> int | None:
        """The window for an image of this (height, width), None for the whole of it."""
        window = (WINDOW if max(size) > LARGE else None) if self.window == "auto" else self.window
        assert window is None or isinstance(window, int)
        return window if window is not None and window < max(size) else None


def check_amp(amp: str) -> None:
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}.")


@torch.no_grad()
def class_scores(model: torch.nn.Module, images: torch.Tensor, views: Views, amp: str = "none") -> torch.Tensor:
    """Scores (B, K, H, W) fp32 of normalised images (B, 3, H, W): logits, or mean probabilities of several views."""
    total: torch.Tensor | None = None
    mirrors = (False, True) if views.flip else (False,)
    for scale, mirrored in product(views.scales, mirrors):
        view = images if scale == 1 else _resize(images, [max(1, round(side * scale)) for side in images.shape[2:]])
        logits = _logits(model, view.flip(3) if mirrored else view, views.side(view.shape[2:]), amp)
        scores = _resize(logits.flip(3) if mirrored else logits, images.shape[2:])
        scores = scores if views.one else scores.softmax(1)
        total = scores if total is None else total + scores
    assert total is not None
    return total if views.one else total / (len(views.scales) * len(mirrors))


def probabilities(scores: torch.Tensor, views: Views) -> torch.Tensor:
    """Probabilities (K, H, W), whichever of logits and probabilities `class_scores` gave for one image."""
    return scores.softmax(0) if views.one else scores


def require_finite(scores: torch.Tensor, name: str) -> None:
    """ValueError that names the image unless every score is a number: an argmax would hide it."""
    if not torch.isfinite(scores.sum()):
        raise ValueError(
            f"{name}: the network gave scores that are not finite. Its weights or statistics are broken, or 16 bits are "
            "too few (--amp none)."
        )


def starts(side: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly spread, a third of overlap at least, the last one flush with the end."""
    if side <= window:
        return [0]
    count = 1 + -(-(side - window) // max(1, window * 2 // 3))
    return [round(i * (side - window) / (count - 1)) for i in range(count)]


def _logits(model: torch.nn.Module, images: torch.Tensor, window: int | None, amp: str) -> torch.Tensor:
    if window is None:
        with torch.autocast(images.device.type, AMP[amp], enabled=AMP[amp] is not None):
            return model(images).float()
    height, width = images.shape[2:]
    total, counts = None, torch.zeros(height, width, device=images.device)
    for top, left in product(starts(height, window), starts(width, window)):
        part = (..., slice(top, top + window), slice(left, left + window))
        logits = _logits(model, images[part], None, amp)
        if total is None:
            total = torch.zeros(*logits.shape[:2], height, width, device=images.device)
        total[part] += logits
        counts[part] += 1
    assert total is not None
    return total.div_(counts)


def _resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
