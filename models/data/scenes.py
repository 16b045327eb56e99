"""One generated image: objects of textured classes on a muted background, lit, blurred by noise, with its mask.

What makes it a test of diffusion:
* classes come in groups that share one pair of colours, so a colour decides nothing inside a group; the texture does;
* in `paper`, `hard` and `long`, two classes of a group share the texture as well, and only a small emblem on the object
  (a light disc for one, a dark disc for the other) says which it is: the rest of the object must learn it from there;
* an object may have distant parts of the same class without an emblem: news has to travel across the image; in `long`
  every object has one or two, and all classes are twins;
* decoys show the mean colour of a group without its texture, and are background;
* thin bars and holes break a coarse prediction.

Everything is a function of (preset, classes, size, seed, index); classes mean the same for every seed.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.data import shapes
from models.data.classes import IGNORE
from models.data.shapes import Array

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Preset:
    """How difficult a scene is. Probabilities are per object, strengths in units of full brightness."""

    group: int  # classes per pair of colours
    twins: bool  # the last two of a group share the texture too; an emblem tells them apart
    objects: tuple[int, int]  # fewest and most
    contrast: float  # between the two colours of a pair
    bar: float
    hole: float
    parts: float
    decoys: tuple[int, int]
    colour_shift: float
    light: float
    noise: float
    quality: tuple[int, int]  # of the JPEG


PRESETS = {
    "easy": Preset(1, False, (2, 3), 0.45, 0.15, 0.15, 0.1, (0, 0), 0.03, 0.12, 0.015, (88, 95)),
    "paper": Preset(3, True, (2, 4), 0.40, 0.25, 0.25, 0.35, (0, 2), 0.05, 0.25, 0.03, (75, 92)),
    "hard": Preset(4, True, (3, 6), 0.30, 0.30, 0.30, 0.50, (1, 4), 0.08, 0.45, 0.06, (40, 80)),
    # every object has parts far from its emblem: what they are can only be learned from across the image
    "long": Preset(2, True, (1, 2), 0.40, 0.0, 0.1, 1.0, (0, 1), 0.05, 0.25, 0.03, (75, 92)),
    # the scenes of `easy`, in files as people have them: see `synthetic.FORMS`
    "mixed": Preset(1, False, (2, 3), 0.45, 0.15, 0.15, 0.1, (0, 0), 0.03, 0.12, 0.015, (88, 95)),
}


@dataclass(frozen=True)
class ClassLook:
    """What all objects of a class have in common."""

    light: np.ndarray  # the two colours, RGB in [0, 1]
    dark: np.ndarray
    texture: int
    emblem: int  # 0 none, 1 a light disc, 2 a dark disc
    twin: int  # the class with the same colours and texture, 0 if none


def class_looks(preset: Preset, classes: int) -> list[ClassLook]:
    """The look of every class but the background (element c − 1 is class c)."""
    groups = -(-(classes - 1) // preset.group)
    looks = []
    for c in range(classes - 1):
        group, slot = divmod(c, preset.group)
        members = min(preset.group, classes - 1 - group * preset.group)
        is_twin = preset.twins and members > 1 and slot >= members - 2
        texture = min(slot, members - 2) if is_twin else slot
        hue = (group * 0.618034) % 1 if groups > 8 else group / groups  # golden steps keep neighbours apart
        saturation = 0.75 if group % 2 == 0 else 0.5
        looks.append(
            ClassLook(
                light=_rgb(hue, saturation, 0.95),
                dark=_rgb(hue + 0.04, saturation, 0.95 - preset.contrast),
                texture=(texture + group) % len(shapes.TEXTURES),
                emblem=(1 + slot - (members - 2)) if is_twin else 0,
                twin=(c + 2 if slot == members - 2 else c) if is_twin else 0,
            )
        )
    return looks


@dataclass(frozen=True)
class Scene:
    """A finished scene, before JPEG."""

    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) uint8 with 255 along borders
    labels: np.ndarray  # (H, W) uint8, the same without void
    emblems: np.ndarray  # (H, W) bool, visible emblem pixels


def render(preset: str, classes: int, size: tuple[int, int], seed: int, index: int) -> Scene:
    """Draw scene `index`. Class 1 + index mod (classes − 1) is in it, so a few dozen scenes show every class."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    return _Painter(PRESETS[preset], classes, size, np.random.default_rng([seed, index])).scene(index)


class _Painter:
    """The canvas and the brushes of one scene."""

    def __init__(self, preset: Preset, classes: int, size: tuple[int, int], rng: np.random.Generator):
        self.preset, self.rng, self.size = preset, rng, size
        self.looks = class_looks(preset, classes)
        self.side = min(size)
        self.period = max(5.0, self.side / 16)  # five pixels is what survives JPEG and noise
        self.image = np.empty((*size, 3), dtype=np.float32)
        self.labels = np.zeros(size, dtype=np.uint8)
        self.emblems = np.zeros(size, dtype=bool)
        self.centres: list[tuple[float, float]] = []

    def scene(self, index: int) -> Scene:
        self._background()
        for _ in range(self.rng.integers(self.preset.decoys[0], self.preset.decoys[1] + 1)):
            self._decoy()
        for c in self._cast(index):
            self._object(c)
        image = self._photograph()
        mask = np.where(_borders(self.labels, max(1, round(self.side / 160))), np.uint8(IGNORE), self.labels)
        return Scene(image, mask, self.labels, self.emblems)

    def _cast(self, index: int) -> list[int]:
        """Classes to draw, back to front: never both of a twin pair, and twins in front, where emblems stay visible."""
        count = int(self.rng.integers(self.preset.objects[0], self.preset.objects[1] + 1))
        cast = [1 + index % len(self.looks)]
        for c in self.rng.integers(1, len(self.looks) + 1, size=count - 1):
            if self.looks[c - 1].twin not in cast:
                cast.append(int(c))
        return sorted(cast, key=lambda c: self.looks[c - 1].emblem > 0)

    def _background(self) -> None:
        first, second = (_rgb(*self.rng.uniform((0, 0.05, 0.3), (1, 0.3, 0.85))) for _ in range(2))
        mix = self._clouds(4)[..., None]
        grain = 0.12 * (self._clouds(max(4, self.side // 6)) - 0.5)[..., None]
        self.image[:] = first * mix + second * (1 - mix) + grain

    def _decoy(self) -> None:
        look = self.looks[self.rng.integers(len(self.looks))]
        u, v, window = self._frame(self._place(), 0.2 * self.side)
        distance = self._body(u, v, 0.6)
        plain = (0.5 * (look.light + look.dark)).astype(np.float32)
        self._paint(window, distance, plain, label=0)

    def _object(self, c: int) -> None:
        look, rng = self.looks[c - 1], self.rng
        shift = rng.normal(0, self.preset.colour_shift, 3)
        colours = (look.light + shift).astype(np.float32), (look.dark + shift).astype(np.float32)
        parts = 1 + (int(rng.integers(1, 3)) if rng.random() < self.preset.parts else 0)
        for part in reversed(range(parts)):  # the main part last, so that no part hides its emblem
            is_bar = rng.random() < self.preset.bar and not (look.emblem and part == 0)
            centre = self._place()
            u, v, window = self._frame(centre, (0.42 if is_bar else 0.34) * self.side)
            if is_bar:
                distance = shapes.bar(
                    u, v, rng.uniform(0.2, 0.36) * self.side, rng.uniform(0.022, 0.036) * self.side,
                    rng.uniform(-0.1, 0.1) * self.side,
                )  # fmt: skip
            else:
                distance = self._body(u, v, 1.0 if part == 0 else 0.65)
                # an object with an emblem keeps its middle
                if rng.random() < self.preset.hole and not (look.emblem and part == 0):
                    distance = np.maximum(distance, -shapes.ellipse(u, v, *rng.uniform(0.05, 0.085, 2) * self.side))
            pattern = shapes.TEXTURES[look.texture](u, v, self.period, rng)[..., None]
            shade = 1 + 0.12 * (u / self.side)[..., None]
            self._paint(window, distance, (colours[1] + (colours[0] - colours[1]) * pattern) * shade, label=c)
            if look.emblem and part == 0:
                self._emblem(u, v, window, distance, look.emblem)

    def _emblem(self, u: Array, v: Array, window: Window, body: Array, kind: int) -> None:
        """A disc with a rim of the opposite tone, inside the body, of the same label."""
        radius = max(3.5, 0.055 * self.side)
        face, rim = (0.97, 0.1) if kind == 1 else (0.08, 0.9)
        disc = np.hypot(u, v) - radius
        tone = np.clip(0.5 - (disc + 0.3 * radius), 0, 1)[..., None] * (face - rim) + rim
        inside = np.maximum(disc, body)
        alpha = np.clip(0.5 - inside, 0, 1)[..., None]
        self.image[window] += alpha * (tone - self.image[window])
        self.emblems[window] |= inside < 0

    def _body(self, u: Array, v: Array, scale: float) -> Array:
        """A filled shape, between 0.12 and 0.22 of the image's side in half width."""
        a, b = self.rng.uniform(0.13, 0.22, 2) * self.side * scale
        kind = self.rng.integers(5)
        if kind == 0:
            return shapes.blob(u, v, 0.5 * (a + b), self.rng)
        return (shapes.ellipse, shapes.box, shapes.cross, shapes.wedge)[kind - 1](u, v, a * 1.1, b * 1.1)

    def _place(self) -> tuple[float, float]:
        """The emptiest of five random centres: scenes fill, and little is hidden."""
        h, w = self.size
        options = self.rng.uniform((0.12 * h, 0.12 * w), (0.88 * h, 0.88 * w), (5, 2))
        if self.centres:
            distances = np.hypot(*(options[:, None, :] - np.array(self.centres)[None]).transpose(2, 0, 1)).min(1)
            options = options[np.argmax(distances)][None]
        self.centres.append((float(options[0, 0]), float(options[0, 1])))
        return self.centres[-1]

    def _frame(self, centre: tuple[float, float], reach: float) -> tuple[Array, Array, Window]:
        """Turned coordinates (u, v) of the window around a centre, and the window."""
        (cy, cx), (h, w) = centre, self.size
        top, bottom = max(0, int(cy - reach)), min(h, int(cy + reach) + 2)
        left, right = max(0, int(cx - reach)), min(w, int(cx + reach) + 2)
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(cy))[:, None]
        x = (np.arange(left, right, dtype=np.float32) - np.float32(cx))[None, :]
        angle = self.rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cos * x + sin * y, cos * y - sin * x, (slice(top, bottom), slice(left, right))

    def _paint(self, window: Window, distance: Array, colour: Array, label: int) -> None:
        alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
        self.image[window] += alpha * (colour - self.image[window])
        covered = distance < 0
        self.labels[window][covered] = label
        self.emblems[window][covered] = False

    def _photograph(self) -> np.ndarray:
        """Light from one side, a soft shadow, a tint, sensor noise; then 8 bits."""
        rng, (h, w), strength = self.rng, self.size, self.preset.light
        angle = rng.uniform(0, 2 * np.pi)
        y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
        along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
        light = 1 + np.float32(0.5 * strength) * along
        edge = np.float32(rng.uniform(-0.8, 0.8))
        if rng.random() < 0.5:
            light -= np.float32(0.6 * strength) / (1 + np.exp(-12 * (along - edge)))
        tint = (1 + rng.normal(0, 0.15 * strength, 3)).astype(np.float32)
        noise = rng.standard_normal((h, w, 3), dtype=np.float32)
        lit = self.image * light[..., None] * tint + np.float32(self.preset.noise) * noise
        return np.rint(np.clip(lit, 0, 1) * 255).astype(np.uint8)

    def _clouds(self, cells: int) -> np.ndarray:
        """Smooth random field in [0, 1], about `cells` features across."""
        coarse = Image.fromarray(self.rng.random((cells, cells), dtype=np.float32))
        return np.asarray(coarse.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC)).clip(0, 1)


def _borders(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels within `width` of another label, on both sides of every border."""
    border = np.zeros(labels.shape, dtype=bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    for _ in range(width - 1):
        grown = border.copy()
        grown[1:] |= border[:-1]
        grown[:-1] |= border[1:]
        grown[:, 1:] |= border[:, :-1]
        grown[:, :-1] |= border[:, 1:]
        border = grown
    return border


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)
