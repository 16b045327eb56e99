"""Joint transforms of an image and its mask: flip, scale, crop, normalise, pad. Plain NumPy, Pillow and torch.

A transform maps (image uint8 (H, W, 3) RGB, mask uint8 (H, W), rng) to (float32 (3, H', W'), int64 (H', W')). All its
chance comes from `rng`, drawn in one fixed order (flip, scale, top, left, colours), so a sample depends on its seed alone.

Padding happens after normalisation, with zeros: in normalised units zero is the mean colour, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from models.data.classes import IGNORE


@dataclass(frozen=True)
class Recipe:
    """Numbers that belong together: how pixels become floats, and how training samples are drawn."""

    name: str
    order: str  # of the channels the network sees
    mean: tuple[float, float, float]  # in `order`, grey levels 0…255
    std: tuple[float, float, float]
    scales: tuple[float, ...]  # (low, high) if continuous, else the values to choose from
    continuous: bool
    pad_label: int  # what training writes where the image ended before the crop did
    first_start: int  # smallest row or column a crop begins at, where there is a choice

    def draw_scale(self, rng: np.random.Generator) -> float:
        if self.continuous:
            return float(rng.uniform(self.scales[0], self.scales[1]))
        return float(self.scales[rng.integers(len(self.scales))])

    def normalise(self, image: np.ndarray) -> torch.Tensor:
        """RGB uint8 (H, W, 3) → float32 (3, H, W) in the recipe's channel order and units."""
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32, order="C"))
        if self.order == "BGR":
            pixels = pixels.flip(0)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    def denormalise(self, image: torch.Tensor) -> np.ndarray:
        """The inverse: float (3, H, W) → RGB uint8 (H, W, 3), exact for whatever `normalise` produced."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        pixels = image.detach().float().cpu() * std + mean
        if self.order == "BGR":
            pixels = pixels.flip(0)
        return pixels.round().clamp(0, 255).byte().numpy().transpose(1, 2, 0)


RECIPES = {
    "default": Recipe(
        name="default",
        order="RGB",
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
        scales=(0.5, 1.5),
        continuous=True,
        pad_label=IGNORE,
        first_start=0,
    ),
    # What the released code does, its two oddities included (padding is background; crops never start at 0).
    "authors": Recipe(
        name="authors",
        order="BGR",
        mean=(104.00698793, 116.66876762, 122.67891434),
        std=(1.0, 1.0, 1.0),
        scales=tuple(step / 10 for step in range(5, 15)),
        continuous=False,
        pad_label=0,
        first_start=1,
    ),
}


@dataclass(frozen=True)
class Transform:
    """One of: training (flip, scale, random crop), centred padding (`crop` without `train`), or native size."""

    recipe: Recipe
    train: bool
    crop: int | None
    photometric: float = 0.0

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.train:
            if self.crop is None:
                return self.recipe.normalise(image), torch.from_numpy(mask.astype(np.int64))
            return self._place(image, mask, *centre(mask.shape, self.crop), self.crop, IGNORE)
        if rng is None:
            raise ValueError("a training transform draws chance; got rng=None. Pass numpy.random.default_rng(seed).")
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image, mask = resize(image, mask, self.recipe.draw_scale(rng))
        if self.crop is None:
            image = distort(image, self.photometric, rng)
            return self.recipe.normalise(image), torch.from_numpy(mask.astype(np.int64))
        top, left = (draw_start(side, self.crop, self.recipe.first_start, rng) for side in mask.shape)
        window = (slice(top, top + self.crop), slice(left, left + self.crop))
        image = distort(image[window], self.photometric, rng)
        return self._place(image, mask[window], 0, 0, self.crop, self.recipe.pad_label)

    def _place(
        self, image: np.ndarray, mask: np.ndarray, top: int, left: int, side: int, label: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the normalised image on a square canvas of the mean colour, the mask on one of `label`."""
        height, width = mask.shape
        image_canvas = torch.zeros(3, side, side)
        mask_canvas = torch.full((side, side), label, dtype=torch.int64)
        image_canvas[:, top : top + height, left : left + width] = self.recipe.normalise(image)
        mask_canvas[top : top + height, left : left + width] = torch.from_numpy(mask.astype(np.int64))
        return image_canvas, mask_canvas


def build_transform(
    recipe: str = "default", train: bool = False, crop: int | None = None, photometric: float = 0.0
) -> Transform:
    """The joint transform of a recipe.

    recipe: "default" (RGB, ImageNet mean and deviation, scale 0.5…1.5, padding is void) or "authors" (BGR minus mean).
    train:  flip, scale and a random `crop`; otherwise no chance at all.
    crop:   side of the square; None keeps the size. Without `train`, the image is padded to it around the centre.
    photometric: strength in 0…1 of random changes of brightness, contrast, saturation and hue in training; see `distort`.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {recipe!r}.")
    if crop is not None and crop < 1:
        raise ValueError(f"crop must be a positive side in pixels, or None for the native size; got {crop}.")
    if not 0 <= photometric <= 1:
        raise ValueError(f"photometric must be a strength in 0…1; got {photometric}.")
    return Transform(RECIPES[recipe], train, crop, photometric)


def distort(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """RGB uint8 (H, W, 3) with brightness, contrast and saturation times 1 ± strength, and hue turned by ± strength / 10.

    Nothing is drawn and nothing changes at strength 0.
    """
    if not strength:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    for change, factor in zip(ENHANCEMENTS, rng.uniform(1 - strength, 1 + strength, len(ENHANCEMENTS)), strict=True):
        picture = change(picture).enhance(float(factor))
    turned = np.array(picture.convert("HSV"))
    turned[..., 0] += np.uint8(round(25.6 * strength * rng.uniform(-1, 1)) % 256)  # a circle of 256 steps: it may wrap
    return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))


ENHANCEMENTS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def resize(image: np.ndarray, mask: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale both by `scale`, sides rounded to whole pixels: the image bilinearly (antialiased when it shrinks), the
    mask by nearest neighbour, so that no label is invented."""
    height, width = mask.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return image, mask
    scaled_image = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    # the input pixel under each output pixel's centre, in integers: Pillow adds up steps and drifts at borders
    rows = (2 * np.arange(size[1]) + 1) * height // (2 * size[1])
    columns = (2 * np.arange(size[0]) + 1) * width // (2 * size[0])
    return np.asarray(scaled_image), mask[rows[:, None], columns]


def draw_start(side: int, crop: int, first: int, rng: np.random.Generator) -> int:
    """Where a crop begins along one axis: uniform over [first, side − crop]; 0 where there is no room to choose."""
    room = side - crop
    return 0 if room <= 0 else int(rng.integers(min(first, room), room + 1))


def centre(size: Sequence[int], canvas: int) -> tuple[int, int]:
    """Top-left corner that centres `size` (height, width) on a square canvas; the odd pixel goes below and right."""
    if max(size) > canvas:
        raise ValueError(
            f"an image must fit the padded canvas of {canvas}×{canvas}; got height × width {size[0]}×{size[1]}. "
            "Evaluate at native size, or choose a larger canvas."
        )
    return (canvas - size[0]) // 2, (canvas - size[1]) // 2
