"""The figures of the docs. Light, readable, in colours that everyone can tell apart (Okabe and Ito).

A figure carries a digest of its numbers, so that a test can tell whether it is that of the results without drawing it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.cost import dense_flop, floor_seconds
from benchmarks.results import Results
from benchmarks.tables import title_of
from benchmarks.tasks import MEASURED

COLOURS = {
    "ours": "#D55E00",
    "dense": "#0072B2",
    "sdpa": "#009E73",
    "sdpa_flash": "#009E73",
    "sdpa_efficient": "#CC79A7",
}
MARKERS = {"ours": "o", "dense": "s", "sdpa": "^", "sdpa_flash": "^", "sdpa_efficient": "D"}
INK, PALE = "#333333", "#999999"


def scaling_data(results: Results) -> dict:
    """Seconds against N of every contender, forward and forward+backward, with roofline and floor."""
    panels: dict[str, dict] = {}
    machine = results.machine
    for task in results.tasks("scaling"):
        if task.case.name != "sweep_nodes":
            continue
        panel = panels.setdefault(task.direction, {"series": {}, "limits": {}, "missing": []})
        for row in results.of(task):
            if row.status == MEASURED:
                panel["series"].setdefault(row.contender, []).append([task.case.nodes, row.median, row.p20, row.p80])
            elif "GiB" in row.reason:
                panel["missing"].append([task.case.nodes, row.contender, row.reason])
        if machine is not None:
            limits = panel["limits"]
            dense = dense_flop(task.case, task.direction) / machine.flop_per_s
            limits.setdefault("dense products at peak", []).append([task.case.nodes, dense])
            floor = floor_seconds(task.case, task.direction, machine)
            limits.setdefault("floor of the cost model", []).append([task.case.nodes, floor])
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


def draw_scaling(data: dict):
    if not any(panel["series"] for panel in data.values()):
        return _blank("scaling with N: not measured")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(data), figsize=(4.4 * len(data), 3.6), sharey=True, squeeze=False)
    for panel, (direction, content) in zip(axes[0], data.items(), strict=True):
        for (name, points), style in zip(content["limits"].items(), ((0, (4, 2)), (0, (1, 1.5))), strict=False):
            nodes, seconds = zip(*points, strict=True)
            panel.plot(nodes, seconds, color=PALE, lw=1.1, linestyle=style, label=name)
        for name, points in content["series"].items():
            nodes, median, low, high = zip(*points, strict=True)
            colour = COLOURS.get(name, INK)
            panel.fill_between(nodes, low, high, color=colour, alpha=0.18, lw=0)
            panel.plot(nodes, median, color=colour, marker=MARKERS.get(name, "x"), ms=4.5, lw=1.6, label=title_of(name))
        # a peer that ran out of memory ends with a cross where its next point would be
        for nodes, name, _ in content["missing"]:
            points = content["series"].get(name)
            if points:
                last_nodes, last = points[-1][:2]
                height = last * (nodes / last_nodes) ** 2
                panel.plot([nodes], [height], marker="x", color=COLOURS.get(name, INK), ms=7, lw=0)
                panel.annotate("out of memory", (nodes, height), xytext=(-4, 6), textcoords="offset points",
                               ha="right", fontsize=7, color=COLOURS.get(name, INK))  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda nodes, _: f"{nodes:g}")
        panel.set_yscale("log")
        panel.set_title(direction.replace("+", " + "), fontsize=9.5)
        panel.set_xlabel("N, nodes")
        panel.grid(True, which="major", color="#EEEEEE", lw=0.8)
    axes[0][0].set_ylabel("seconds per walk")
    axes[0][0].legend(frameon=False, fontsize=7.5, loc="upper left")
    figure.tight_layout()
    return figure


def draw_peers(data: dict):
    if not data:
        return _blank("peers side by side: not measured")
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    palette = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#999999", "#000000", "#F0E442")
    names = list(dict.fromkeys(name for cases in data.values() for peers in cases.values() for name in peers))
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
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        panel.set_xticks(range(len(cases)), list(cases), rotation=20, ha="right", fontsize=8)
        panel.set_title(f"{direction.replace('+', ' + ')}: time of a peer / ours", fontsize=9.5)
        panel.grid(True, axis="y", color="#EEEEEE", lw=0.8)
        panel.set_axisbelow(True)
    handles = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, frameon=False, fontsize=7.5, ncol=len(handles), loc="upper center",
                  bbox_to_anchor=(0.5, 0.02))  # fmt: skip
    figure.tight_layout()
    return figure
