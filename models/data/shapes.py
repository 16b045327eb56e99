"""Shapes and textures of generated objects, as functions of an object's own coordinates.

A shape maps (u, v) in pixels, centred on the object and turned with it, to a signed distance in pixels (negative
inside; exact or slightly too small in size, which only softens an edge). A texture maps (u, v) to [0, 1] with mean ½:
two textures over one pair of colours have the same mean colour, so only their pattern tells them apart. All stay what
they are under a left-right flip, because training flips images.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def ellipse(u: Array, v: Array, a: float, b: float) -> Array:
    return (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b)


def box(u: Array, v: Array, a: float, b: float) -> Array:
    """Rectangle of half sides a, b with corners rounded by a fifth of the shorter."""
    r = 0.2 * min(a, b)
    x, y = np.abs(u) - (a - r), np.abs(v) - (b - r)
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - r


def cross(u: Array, v: Array, a: float, b: float) -> Array:
    return np.minimum(box(u, v, a, 0.38 * b), box(u, v, 0.38 * a, b))


def wedge(u: Array, v: Array, a: float, b: float) -> Array:
    """Triangle with its tip at (0, −b): the intersection of three half-planes."""
    slope = np.hypot(2 * b, a)
    return np.maximum(v - b, (2 * b * np.abs(u) - a * (v + b)) / slope)


def blob(u: Array, v: Array, radius: float, rng: np.random.Generator) -> Array:
    """Star-shaped outline, a circle with random waves 2…5."""
    angle = np.arctan2(v, u)
    outline = np.ones_like(u)
    for wave in range(2, 6):
        outline += (0.5 / wave) * rng.uniform(0.2, 1) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return 0.8 * (np.hypot(u, v) - radius * outline)


def bar(u: Array, v: Array, half_length: float, half_width: float, bend: float) -> Array:
    """Capsule along u; `bend` lifts its ends by that many pixels along a parabola."""
    v = v - bend * ((u / half_length) ** 2 - 0.5)
    beyond = np.maximum(np.abs(u) - half_length, 0)
    return np.hypot(beyond, v) - half_width


def stripes(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    return _square(np.sin((2 * np.pi / period) * u + rng.uniform(0, 2 * np.pi)))


def checks(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    return _square(2 * np.sin((2 * np.pi / period) * u) * np.sin((2 * np.pi / period) * v))


def zigzag(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    triangle = np.abs((v / (1.6 * period)) % 1 - 0.5)
    return _square(np.sin((2 * np.pi / period) * (u + 1.8 * period * triangle) + rng.uniform(0, 2 * np.pi)))


def rings(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    return _square(np.sin((2 * np.pi / period) * np.hypot(u, v)))


def dots(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    """Discs on a square lattice, half the area: radius √(½/π) of the lattice constant."""
    lattice = 1.3 * period
    distance = np.hypot(u / lattice - np.rint(u / lattice), v / lattice - np.rint(v / lattice))
    return np.clip(0.5 + (0.3989 - distance) * lattice, 0, 1)


def mottle(u: Array, v: Array, period: float, rng: np.random.Generator) -> Array:
    """Irregular patches: three waves in random directions, no lattice."""
    field = np.zeros_like(u)
    for _ in range(3):
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.35, 0.75)
        k = 2 * np.pi * stretch / period
        field += np.sin(k * (np.cos(angle) * u + np.sin(angle) * v) + rng.uniform(0, 2 * np.pi))
    return _square(field)


# neighbours in this list are the textures that share colours, so they alternate between directed and isotropic
TEXTURES = (stripes, dots, mottle, checks, rings, zigzag)


def _square(wave: Array) -> Array:
    """A wave of mean 0 to a nearly two-valued pattern of mean ½, with edges about a pixel soft."""
    return np.clip(0.5 + 1.2 * wave, 0, 1)
