"""The one picture: photo, segmentation and comparison on top; below, a column per walk: its output and rows of P."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from models.demo.features import Scale
from models.demo.scene import Region

INK, FAINT, FRAME = "#2f3542", "#7b8494", "#d5d9e0"
HEAT = np.array(to_rgb("#b5179e"))


@dataclass(frozen=True)
class Panels:
    """What is drawn. K classes, T walks, M watched nodes; photo-sized images are (H, W), the rest is on the grid."""

    photo: np.ndarray  # (H, W, 3) in [0, 1]
    regions: Sequence[Region]
    scales: Sequence[Scale]
    states: np.ndarray  # (T + 1, K, rows, columns): the seed, then the output of each walk
    watched: Sequence[tuple[int, int]]  # (row, column) of each watched node
    rows_of_P: np.ndarray  # (T, M, rows, columns)
    segmentation: np.ndarray  # (H, W)
    steady: np.ndarray  # (H, W), of the first walk repeated for ever
    steady_mu: float
    other: np.ndarray  # (H, W), the comparison
    other_name: str


def blended(scores: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Scores (K, rows, columns) as an image: hue by the share of each class, white where nothing has arrived yet."""
    total = scores.sum(0)[..., None]
    share = np.moveaxis(scores, 0, -1) / np.maximum(total, 1e-20)
    strength = total / (total + 0.01)  # a hundredth of a seed is already half opaque: the front of the spreading shows
    return np.clip(1 - strength + strength * (share @ colours), 0, 1)


def outlined(photo: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The photo tinted by class, with white boundaries."""
    tinted = 0.45 * photo + 0.55 * colours[labels]
    tinted[find_boundaries(labels, mode="thick")] = 1.0
    return tinted


def heated(photo: np.ndarray, row: np.ndarray) -> np.ndarray:
    """A row of P (rows, columns) over the faded photo; the square root lets small probabilities show."""
    paper = 0.74 + 0.26 * photo.mean(-1, keepdims=True)
    strength = resize(np.sqrt(row / row.max()), photo.shape[:2], order=1)[..., None]
    return np.clip(paper * (1 - strength) + strength * HEAT, 0, 1)


def show(axes: Axes, image: np.ndarray, photo: np.ndarray, title: str = "", size: int = 13) -> None:
    """Any image on the pixel coordinates of the photo, without ticks."""
    height, width = photo.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    if title:
        axes.set_title(title, fontsize=size, color=INK, pad=6)


def caption(axes: Axes, text: str) -> None:
    """What a row of panels shows, along the left edge."""
    axes.set_ylabel(text, fontsize=12, color=FAINT, labelpad=6)


def draw_scribbles(axes: Axes, regions: Sequence[Region]) -> None:
    for region in regions:
        for stroke in region.strokes:
            x, y = zip(*stroke, strict=True)
            axes.plot(x, y, color="white", linewidth=6.5, solid_capstyle="round", solid_joinstyle="round")
            axes.plot(x, y, color=region.colour, linewidth=4, solid_capstyle="round", solid_joinstyle="round")


def mark(axes: Axes, node: tuple[int, int], panels: Panels, name: str = "") -> None:
    """A ring, or a numbered disc, on a node."""
    (height, width), (rows, columns) = panels.photo.shape[:2], panels.states.shape[-2:]
    x, y = (node[1] + 0.5) * width / columns, (node[0] + 0.5) * height / rows
    axes.plot(x, y, "o", markersize=17 if name else 6, mfc="white" if name else "none", mec=INK, mew=1.3)
    if name:
        axes.text(x, y, name, ha="center", va="center_baseline", fontsize=11, color=INK, weight="bold")


def draw(panels: Panels) -> Figure:
    """Lays the panels out: four large ones above, then one column for the seed and one for each walk."""
    photo, scales = panels.photo, panels.scales
    colours = np.array([to_rgb(region.colour) for region in panels.regions])
    walks, watched = len(scales), len(panels.watched)
    figure = Figure(figsize=(14, 13.75), dpi=92, facecolor="white")
    layout = figure.add_gridspec(
        2, 1, height_ratios=(1.5, watched + 1.1), hspace=0.185, left=0.03, right=0.992, top=0.97, bottom=0.008
    )
    (top,) = layout[0].subgridspec(1, 4, wspace=0.035).subplots(squeeze=False)
    grid = layout[1].subgridspec(watched + 1, walks + 1, wspace=0.05, hspace=0.05).subplots(squeeze=False)

    show(top[0], photo, photo, "a few scribbles", 16)
    draw_scribbles(top[0], panels.regions)
    show(top[1], outlined(photo, panels.segmentation, colours), photo, f"after {walks} walks", 16)
    steady = f"walk 1 for ever (Eq. 2, $\\mu$ = {panels.steady_mu:g})"
    show(top[2], outlined(photo, panels.steady, colours), photo, steady, 16)
    show(top[3], outlined(photo, panels.other, colours), photo, panels.other_name, 16)
    handles = [Patch(color=region.colour, label=region.name) for region in panels.regions]
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.51, 0.722), ncol=len(handles), frameon=False,
        fontsize=13, labelcolor=INK, handlelength=1.1, handleheight=1.1, columnspacing=1.8,
    )  # fmt: skip

    show(grid[0, 0], blended(panels.states[0], colours), photo, "seed\n$y^0 = s$")
    caption(grid[0, 0], "scores of the classes")
    for t, scale in enumerate(scales, start=1):
        title = f"walk {t}: {scale.name}\n$\\mu$ = {scale.mu:g},  $\\beta$ = {scale.beta:g}"
        show(grid[0, t], blended(panels.states[t], colours), photo, title)
    for m, node in enumerate(panels.watched):
        show(grid[m + 1, 0], 0.35 + 0.65 * photo, photo)
        caption(grid[m + 1, 0], f"where node {m + 1} looks")
        mark(grid[m + 1, 0], node, panels, str(m + 1))
        for t in range(walks):
            show(grid[m + 1, t + 1], heated(photo, panels.rows_of_P[t, m]), photo)
            mark(grid[m + 1, t + 1], node, panels)
    return figure


def write(figure: Figure, path: Path) -> None:
    """Writes a PNG of 256 dithered colours: 40 % of the size of a full one, and the same to the eye."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    colours = image.quantize(256, kmeans=3)  # the median cut alone forgets the small heat spots
    entries = np.array(colours.getpalette()).reshape(-1, 3)
    entries[entries.min(1) > 248] = 255  # its means make white paper grey
    colours.putpalette(entries.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
