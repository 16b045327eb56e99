"""The figures of the docs, for each results file. Light, readable, in colours that everyone can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost import dense_flop, floor_seconds
from benchmarks.questions import DIRECTIONS, headline_dtype
from benchmarks.results import Results
from benchmarks.show import title_of
from benchmarks.tasks import TIMED, Row, Task

# Okabe and Ito
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999", "#000000", "#F0E442")
INK, PALE = "#333333", "#999999"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "difnet_kernels", "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": PALE,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.axisbelow": True,
    "axes.titlesize": 9.5,
}  # fmt: skip


def scaling(results: Results) -> Any:
    """Seconds against N of every contender, with roofline and floor."""

    def limits(task: Task) -> dict[str, float]:
        if (chip := results.machine) is None:
            return {}
        dense = dense_flop(task.case, task.direction) / chip.flop_per_s
        floor = floor_seconds(task.case, task.direction, chip)
        return {"dense products at peak": dense, "floor of the cost model": floor}

    return _against_nodes(results, "scaling", lambda row: row.median, "seconds per walk", limits)


def memory(results: Results) -> Any:
    """MiB against N, with what one dense matrix takes."""
    element = (2 if results.on_gpu else 4) / 2**20
    return _against_nodes(
        results, "memory", lambda row: (row.memory or 0) / 2**20, "extra memory of one walk, MiB",
        lambda task: {"one N × N matrix": element * task.case.nodes**2},
    )  # fmt: skip


def peers(results: Results) -> Any:
    """How many times as long as ours each peer takes, per case and direction."""
    import matplotlib.pyplot as plt

    wanted = (headline_dtype(results.on_gpu), "smooth")
    tasks = [task for task in results.tasks("cascade") if (task.dtype, task.kind) == wanted]
    names = list(dict.fromkeys(name for task in tasks for name in task.contenders if name != "ours"))
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
    for panel, direction in zip(axes, DIRECTIONS, strict=True):
        chosen = [task for task in tasks if task.direction == direction]
        for place, task in enumerate(chosen):
            times = {row.contender: row.median for row in results.of(task) if row.status in TIMED and row.median}
            ratios = {name: times[name] / times["ours"] for name in names if name in times and "ours" in times}
            for name, ratio in ratios.items():
                at = place + (names.index(name) - (len(names) - 1) / 2) * 0.8 / len(names)
                panel.bar(at, ratio, 0.74 / len(names), color=PALETTE[1:][names.index(name)], label=title_of(name))
                if ratio == min(ratios.values()):
                    box = {"facecolor": "white", "pad": 0.5, "lw": 0}
                    panel.annotate(f"{ratio:.1f}×", (at, ratio), ha="center", va="bottom", fontsize=7.5, bbox=box)
        panel.axhline(1, color=INK, lw=1)
        panel.set_yscale("log")
        panel.set_yticks([1, 2, 3, 5, 10, 20, 50], ["1×", "2×", "3×", "5×", "10×", "20×", "50×"])
        panel.minorticks_off()
        panel.set_xticks(range(len(chosen)), [task.case.name for task in chosen], rotation=20, ha="right", fontsize=8)
        panel.set_title(f"{direction.replace('+', ' + ')}: time of a peer / ours")
        panel.grid(True, axis="y", color="#EEEEEE", lw=0.8)
    return _finished(figure, axes)


def _against_nodes(
    results: Results, question: str, value: Callable[[Row], float | None], what: str,
    limits: Callable[[Task], dict[str, float]],
) -> Any:  # fmt: skip
    """A panel for each direction, contenders in colour and limits in grey; both axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharey=True)
    swept = [task for task in results.tasks(question) if task.case.name == "sweep_nodes"]
    for panel, direction in zip(axes, DIRECTIONS, strict=True):
        seen: dict[str, list[tuple[int, float]]] = {}
        grey: dict[str, list[tuple[int, float]]] = {}
        for task in sorted((t for t in swept if t.direction == direction), key=lambda task: task.case.nodes):
            for row in results.of(task):
                # a growth of nothing has no place on a logarithmic axis
                if row.status in TIMED and (found := value(row)):
                    seen.setdefault(row.contender, []).append((task.case.nodes, found))
            for name, limit in limits(task).items():
                grey.setdefault(name, []).append((task.case.nodes, limit))
        for (name, points), style in zip(grey.items(), ("--", ":"), strict=False):
            panel.plot(*zip(*points, strict=True), color=PALE, lw=1.2, linestyle=style, label=name)
        for (name, points), colour, marker in zip(seen.items(), PALETTE, "os^Dvx", strict=False):
            panel.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4.5, lw=1.6, label=title_of(name))
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda nodes, _: f"{nodes:g}")
        panel.set(yscale="log", title=direction.replace("+", " + "), xlabel="N, nodes")
        panel.minorticks_off()
        panel.grid(True, color="#EEEEEE", lw=0.8)
    axes[0].set_ylabel(what)
    return _finished(figure, axes)


def _finished(figure: Any, axes: Any) -> Any:
    figure.tight_layout()
    handles = {name: handle for handle, name in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02)}
    figure.legend(handles.values(), handles, fontsize=8, ncol=len(handles), **below)
    return figure


DRAWN = {"peers": ("cascade", peers), "scaling": ("scaling", scaling), "memory": ("memory", memory)}


def files(results: Results) -> dict[str, Callable[[Results], Any]]:
    """What draws each figure, by the name of its file."""
    return {f"{kind}_{results.name}.svg": draw for kind, (asked, draw) in DRAWN.items() if results.tasks(asked)}


def stamp(results: Results) -> str:
    """A figure says which measurement it shows."""
    return f"measured {results.head['date']} at {results.head['commit']}"


def write(folder: Path, found: Sequence[Results]) -> None:
    """Draw all figures into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    for results in found:
        for name, draw in files(results).items():
            figure = draw(results)
            metadata = {"Description": stamp(results), "Date": None}
            figure.savefig(folder / name, metadata=metadata, bbox_inches="tight")
            matplotlib.pyplot.close(figure)
