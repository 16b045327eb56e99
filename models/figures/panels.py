"""Panels for the figures: a sheet of pictures, label maps and heat maps, with one legend. Matplotlib without pyplot.

Label colours are chosen for the classes that occur in a figure, most frequent first, from sets made to be told apart
with any colour vision (Okabe & Ito, then Tol's muted); VOC's own colours are not. Heat maps use cividis, which rises
evenly in lightness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from models.data.classes import IGNORE

BACKGROUND, VOID, OTHER = "#e4e4e4", "#ffffff", "#4d4d4d"
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#332288", "#117733", "#882255", "#AA4499", "#999933", "#44AA99", "#661100",
)  # fmt: skip
INK = "#333333"
HEAT = "cividis"


class Labels:
    """Colours of the classes that occur in a figure. Classes past the fourteenth share one grey, "other"."""

    def __init__(self, classes: Sequence[str], truths: Sequence[np.ndarray | None], maps: Sequence[np.ndarray]):
        self.classes = list(classes)
        counts = np.zeros(256, dtype=np.int64)
        for weight, group in ((10**6, truths), (1, maps)):  # what is truly there gets its colour first
            for labels in group:
                if labels is not None:
                    counts += weight * np.bincount(labels.ravel(), minlength=256)
        self.has_void = counts[IGNORE] > 0
        counts[0] = counts[IGNORE] = 0
        order = np.argsort(-counts, kind="stable")
        self.shown = [int(c) for c in order if counts[c]][: len(COLOURS)]
        self.has_other = (counts > 0).sum() > len(self.shown)
        table = np.tile(np.array(to_rgb(OTHER)), (256, 1))
        table[0], table[IGNORE] = to_rgb(BACKGROUND), to_rgb(VOID)
        for c, colour in zip(self.shown, COLOURS, strict=False):
            table[c] = to_rgb(colour)
        self.table = table

    def legend(self) -> list[Patch]:
        """One entry per colour that occurs."""
        handles = [Patch(facecolor=BACKGROUND, edgecolor="#bbbbbb", label=self.classes[0])]
        handles += [Patch(facecolor=self.table[c], label=self.classes[c]) for c in sorted(self.shown)]
        if self.has_other:
            handles.append(Patch(facecolor=OTHER, label="other"))
        if self.has_void:
            handles.append(Patch(facecolor=VOID, edgecolor="#bbbbbb", label="void"))
        return handles


class Sheet:
    """A grid of panels with named rows and columns. All panels of a figure have the first picture's shape."""

    def __init__(self, rows: Sequence[str], columns: Sequence[str], shape: tuple[int, ...], cell: float = 1.35):
        height = cell * min(1.6, max(0.6, shape[0] / shape[1]))
        size = (cell * len(columns) + 1.3, (height + 0.12) * len(rows) + 0.8)  # room for names, bars and legend
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        self.figure = Figure(figsize=size, layout=tight)
        self.axes = self.figure.subplots(len(rows), len(columns), squeeze=False)
        for axes in self.axes.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
                spine.set_linewidth(0.5)
        for axes, name in zip(self.axes[:, 0], rows, strict=True):
            axes.set_ylabel(_short(name), fontsize=8, color=INK)
        for axes, name in zip(self.axes[0], columns, strict=True):
            axes.set_title(_short(name), fontsize=8, color=INK, pad=3)

    def picture(self, row: int, column: int, picture: np.ndarray, mark: tuple[float, float] | None = None) -> None:
        """A photograph, with a marked pixel (y, x) if given."""
        axes = self.axes[row, column]
        axes.imshow(picture, interpolation="nearest", extent=_extent(picture.shape))
        if mark is not None:
            self._mark(axes, mark)

    def labels(self, row: int, column: int, labels: np.ndarray | None, colours: Labels) -> None:
        """A label map; "not known" where there is none."""
        axes = self.axes[row, column]
        if labels is None:
            middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "not known", fontsize=7, color="#888888", **middle)
            axes.set_box_aspect(1)
        else:
            axes.imshow(colours.table[labels], interpolation="nearest", extent=_extent(labels.shape))

    def heat(
        self,
        row: int,
        column: int,
        values: np.ndarray,
        low: float,
        high: float,
        shape: tuple[int, ...],
        mark: Sequence[float] | None = None,
    ) -> None:
        """A map on the node grid, stretched over the picture's `shape`; every node stays one visible cell."""
        axes = self.axes[row, column]
        axes.imshow(values, cmap=HEAT, vmin=low, vmax=high, interpolation="nearest", extent=_extent(shape))
        if mark is not None:
            self._mark(axes, mark)

    def note(self, row: int, column: int, text: str) -> None:
        """A few words below a panel."""
        self.axes[row, column].set_xlabel(text, fontsize=6, color="#666666", labelpad=1.5)

    def caption(self, text: str) -> None:
        """A sentence below the whole sheet."""
        self.figure.supxlabel(text, fontsize=6, color="#666666")

    def colourbar(self, row: int | None, label: str, ticks: dict[int, str] | None = None) -> None:
        """One colour bar at the right, for the heat maps of a row, or of all rows (None)."""
        last = self.axes[row or 0, -1]
        if row is None:
            all_axes, aspect = self.axes.ravel().tolist(), 13 * len(self.axes)
            image = last.get_images()[0]
            bar = self.figure.colorbar(image, ax=all_axes, fraction=0.04, pad=0.01, shrink=0.85, aspect=aspect)
        else:  # an inset: a bar of its own would take room from this row only, and columns would no longer line up
            bar = self.figure.colorbar(last.get_images()[0], cax=last.inset_axes((1.04, 0.04, 0.06, 0.92)))
        if ticks:
            bar.set_ticks(list(ticks), labels=list(ticks.values()))
        bar.set_label(label, fontsize=7, color=INK)
        bar.ax.tick_params(labelsize=6, length=2, colors=INK)
        bar.outline.set_visible(False)

    def finish(self, labels: Labels | None = None) -> Figure:
        """Add the legend and hand the figure over."""
        if labels is not None:
            handles = labels.legend()
            columns = min(len(handles), max(2, int(self.figure.get_figwidth() / 0.95)))
            handles = [
                handle for i in range(columns) for handle in handles[i::columns]
            ]  # it fills columns, we read rows
            self.figure.legend(
                handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False,
                labelcolor=INK, handlelength=1, handleheight=1, columnspacing=1.2,
            )  # fmt: skip
        return self.figure

    def _mark(self, axes: Axes, mark: Sequence[float]) -> None:
        # dark on light on dark: visible on any colour
        y, x = mark[0], mark[1]
        axes.plot(x, y, "o", markersize=6, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2.2)
        axes.plot(x, y, "o", markersize=6, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.0)


def _extent(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    return (0, shape[1], shape[0], 0)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}…{name[-8:]}"
