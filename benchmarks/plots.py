"""The figures of the docs. Light, readable, in colours that everyone can tell apart (Okabe and Ito).

A figure carries a digest of its numbers, so that a test can tell whether it is that of the results without drawing it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.cost import dense_flop, floor_seconds
from benchmarks.results import Results
from benchmarks.show import title_of
from benchmarks.tasks import MEASURED, Task

COLOURS = {
    "ours": "#D55E00",
    "dense": "#0072B2",
    "sdpa": "#009E73",
    "sdpa_flash": "#009E73",
    "sdpa_efficient": "#CC79A7",
}
MARKERS = {"ours": "o", "dense": "s", "sdpa": "^", "sdpa_flash": "^", "sdpa_efficient": "D"}
INK, PALE = "#333333", "#999999"


# the promise of docs/performance.md: bytes of extra memory per node, channel and walk
PROMISED_BYTES = 64
SIZES = {"classes": "K, classes", "embed": "D, channels of ψ", "walks": "T, walks", "batch": "B, images"}


def _empty() -> dict:
    """A panel: points by contender, lines of the cost model, and what could not run for want of memory."""
    return {"series": {}, "limits": {}, "missing": []}


def _times(results: Results, size: str, panel: dict, task: Task) -> None:
    at = getattr(task.case, size)
    for row in results.of(task):
        if row.status == MEASURED:
            panel["series"].setdefault(row.contender, []).append([at, row.median, row.p20, row.p80])
        elif "GiB" in row.reason:
            panel["missing"].append([at, row.contender, row.reason])
    if results.machine is not None:
        dense = dense_flop(task.case, task.direction) / results.machine.flop_per_s
        panel["limits"].setdefault("dense products at peak", []).append([at, dense])
        floor = floor_seconds(task.case, task.direction, results.machine)
        panel["limits"].setdefault("floor of the cost model", []).append([at, floor])


def scaling_data(results: Results) -> dict:
    """Seconds against N of every contender, forward and forward+backward, with roofline and floor."""
    panels: dict[str, dict] = {}
    tasks = [task for task in results.tasks("scaling") if task.case.name == "sweep_nodes"]
    for task in sorted(tasks, key=lambda task: task.case.nodes):
        _times(results, "nodes", panels.setdefault(task.direction, _empty()), task)
    return panels


def sizes_data(results: Results) -> dict:
    """Seconds forward against K, D, T and B."""
    panels: dict[str, dict] = {size: _empty() for size in SIZES}
    for task in results.tasks("scaling"):
        size = task.case.name.removeprefix("sweep_")
        if size in panels:
            _times(results, size, panels[size], task)
    return panels


def memory_data(results: Results) -> dict:
    """Bytes against N, with what one dense matrix takes and what was promised."""
    panels: dict[str, dict] = {}
    for task in results.tasks("memory"):
        case = task.case
        if case.name != "sweep_nodes":
            continue
        panel = panels.setdefault(task.direction, _empty())
        for row in results.of(task):
            # a growth of nothing has no place on a logarithmic axis
            if row.status == MEASURED and row.memory:
                panel["series"].setdefault(row.contender, []).append([case.nodes, *3 * [row.memory]])
            elif "GiB" in row.reason:
                panel["missing"].append([case.nodes, row.contender, row.reason])
        element = 4 if task.dtype == "fp32" else 2
        panel["limits"].setdefault("one N × N matrix", []).append([case.nodes, element * case.nodes**2])
        promised = PROMISED_BYTES * case.nodes * (case.embed + case.classes)
        panel["limits"].setdefault(f"{PROMISED_BYTES} B · N · (D + K)", []).append([case.nodes, promised])
    return panels


def peers_data(results: Results) -> dict:
    """How many times faster ours is than each peer, per case and direction."""
    dtype = "fp32" if results.kind == "cpu" else "bf16"
    panels: dict[str, dict] = {}
    for task in results.tasks("cascade"):
        if (task.dtype, task.kind) != (dtype, "smooth"):
            continue
        rows = {row.contender: row for row in results.of(task) if row.status == MEASURED}
        if "ours" in rows:
            ours = rows["ours"].median
            found = {name: row.median / ours for name, row in rows.items() if name != "ours"}
            panels.setdefault(task.direction, {})[task.case.name] = found
    return panels


def figures(found: dict[str, Results]) -> dict[str, tuple[object, dict]]:
    """By file name: what draws the figure, and its numbers."""
    table = {}
    for kind, results in found.items():
        table[f"scaling_{kind}.svg"] = (draw_scaling, scaling_data(results))
        table[f"sizes_{kind}.svg"] = (draw_sizes, sizes_data(results))
        table[f"memory_{kind}.svg"] = (draw_memory, memory_data(results))
        table[f"peers_{kind}.svg"] = (draw_peers, peers_data(results))
    return table


def digest(data: dict) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def write(folder: Path, found: dict[str, Results], suffix: str = ".svg") -> None:
    """Draw all figures into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "difnet_kernels", "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": PALE,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, data) in figures(found).items():
        figure = draw(data)
        stamp = f"data {digest(data)}"
        metadata = {"Description": stamp, "Date": None} if suffix == ".svg" else {"Description": stamp}
        figure.savefig(folder / Path(name).with_suffix(suffix), metadata=metadata, dpi=120, bbox_inches="tight")
        matplotlib.pyplot.close(figure)


def _blank(text: str):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 1.2))
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=PALE)
    return figure


def _curves(panel, content: dict, unit: float = 1.0) -> None:
    """Contenders in colour with their spread, limits in grey, a cross where memory ran out; both axes logarithmic."""
    for (name, points), style in zip(content["limits"].items(), ((0, (5, 2)), (0, (1, 1.5))), strict=True):
        at, value = zip(*points, strict=True)
        panel.plot(at, [v / unit for v in value], color=PALE, lw=1.2, linestyle=style, label=name, zorder=1)
    for name, points in content["series"].items():
        at, middle, low, high = zip(*points, strict=True)
        colour = COLOURS.get(name, INK)
        panel.fill_between(at, [v / unit for v in low], [v / unit for v in high], color=colour, alpha=0.18, lw=0)
        panel.plot(at, [v / unit for v in middle], color=colour, marker=MARKERS.get(name, "x"), ms=4.5, lw=1.6,
                   label=title_of(name))  # fmt: skip
    # who ran out of memory ends with a cross where the next point would be, by the square of N
    for at, name, reason in content["missing"]:
        points = content["series"].get(name)
        if points:
            last_at, last = points[-1][:2]
            place = (at, last * (at / last_at) ** 2 / unit)
            colour = COLOURS.get(name, INK)
            panel.plot(*zip(place, strict=True), marker="X", color=colour, ms=8, lw=0, mfc="white", mew=1.4)
            panel.annotate(reason.removesuffix(" for N × N matrices").replace(" about", ""), place, xytext=(-8, 4),
                           textcoords="offset points", ha="right", fontsize=7.5, color=colour)  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xticks([points[0] for points in next(iter(content["limits"].values()), [])])
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.minorticks_off()
    panel.set_yscale("log")
    panel.grid(True, which="major", color="#EEEEEE", lw=0.8)
    panel.set_axisbelow(True)


def _empty_figure(data: dict) -> bool:
    return not any(panel["series"] for panel in data.values())


def _legend_below(figure, panel) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, ncol=len(names), loc="upper center",
                  bbox_to_anchor=(0.5, 0.02))  # fmt: skip


def draw_scaling(data: dict):
    if _empty_figure(data):
        return _blank("scaling with N: not measured")
    return _against_nodes(data, "seconds per walk", 1.0)


def draw_memory(data: dict):
    if _empty_figure(data):
        return _blank("memory against N: not measured")
    return _against_nodes(data, "extra memory of one walk, MiB", 2.0**20)


def _against_nodes(data: dict, what: str, unit: float):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(data), figsize=(4.6 * len(data), 3.8), sharey=True, squeeze=False)
    for panel, (direction, content) in zip(axes[0], data.items(), strict=True):
        _curves(panel, content, unit)
        panel.tick_params(axis="x", labelsize=7.5, rotation=35)
        panel.set_title(direction.replace("+", " + "), fontsize=9.5)
        panel.set_xlabel("N, nodes")
    axes[0][0].set_ylabel(what)
    figure.tight_layout()
    _legend_below(figure, axes[0][0])
    return figure


def draw_sizes(data: dict):
    if _empty_figure(data):
        return _blank("scaling with K, D, T, B: not measured")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(data), figsize=(2.7 * len(data), 3.2), squeeze=False)
    for panel, (size, content) in zip(axes[0], data.items(), strict=True):
        _curves(panel, content)
        panel.set_xlabel(SIZES[size])
    axes[0][0].set_ylabel("seconds, forward")
    figure.tight_layout()
    _legend_below(figure, axes[0][0])
    return figure


def draw_peers(data: dict):
    if not data:
        return _blank("peers side by side: not measured")
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    palette = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#999999", "#000000", "#F0E442")
    names = list(dict.fromkeys(name for cases in data.values() for peers in cases.values() for name in peers))
    highest = max((times for cases in data.values() for peers in cases.values() for times in peers.values()), default=1)
    figure, axes = plt.subplots(1, len(data), figsize=(4.6 * len(data), 3.4), sharey=True, squeeze=False)
    for panel, (direction, cases) in zip(axes[0], data.items(), strict=True):
        for number, peers in enumerate(cases.values()):
            width = 0.8 / max(len(names), 1)
            for peer, times in peers.items():
                place = number + (names.index(peer) - (len(names) - 1) / 2) * width
                colour = palette[names.index(peer) % len(palette)]
                label = title_of(peer) if number == 0 else None
                panel.bar(place, times, width * 0.92, color=colour, label=label)
                if times == min(peers.values()):
                    text = f"{times:.1f}×"
                    mark = panel.annotate(
                        text, (place, times), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5
                    )
                    mark.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # neighbours may be higher
        panel.axhline(1, color=INK, lw=1)
        panel.set_yscale("log")
        panel.set_yticks([1, 2, 3, 5, 10, 20, 50])
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        panel.minorticks_off()
        panel.set_ylim(top=1.25 * highest)
        panel.set_xticks(range(len(cases)), list(cases), rotation=20, ha="right", fontsize=8)
        panel.set_title(f"{direction.replace('+', ' + ')}: time of a peer / ours", fontsize=9.5)
        panel.grid(True, axis="y", color="#EEEEEE", lw=0.8)
        panel.set_axisbelow(True)
    handles = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, frameon=False, fontsize=7.5, ncol=len(handles), loc="upper center",
                  bbox_to_anchor=(0.5, 0.02))  # fmt: skip
    figure.tight_layout()
    return figure
