"""The tables of README and docs, as Markdown, from results files: one function per table, found by its name.

Processors stand one below the other, each with its name. A cell without a measurement has its reason as a note.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import models, show
from benchmarks.projection import ALL, ProjectionTask
from benchmarks.questions import DIRECTIONS, headline_dtype
from benchmarks.results import Results
from benchmarks.tasks import FAILED, IMPRECISE, NOT_MEASURED, TIMED, Row, Task

EXPERIMENTS = Path(__file__).parent.parent / "docs" / "results"
LETTERS = {"nodes": "N", "classes": "K", "embed": "D", "walks": "T", "batch": "B"}
PROJECTED = {"forward": "evaluation", "forward+backward": "training step"}
NO_CARD = "No card has been measured yet."
LEFT_OUT = "left out of this case, where it would take minutes; compare it on the others"

Table = Callable[[Results], str]


class Notes:
    """Reasons for empty cells, numbered."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        if not reason:
            return ""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f" [{self.reasons.index(reason) + 1}]"

    def text(self) -> str:
        return "".join(f"\n\\[{number}\\] {reason}." for number, reason in enumerate(self.reasons, 1))


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], notes: Notes | None = None) -> str:
    # the first column names the row; the others are numbers
    rule = ["---", *["---:"] * (len(header) - 1)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
    return body + ("\n" + notes.text() if notes and notes.reasons else "")


def cell(row: Row | None, notes: Notes) -> str:
    if row is None:
        return "–" + notes.mark(LEFT_OUT)
    if row.status in TIMED:
        if row.memory is not None:
            return show.size(row.memory)
        mark = notes.mark(f"imprecise: {row.reason}") if row.status == IMPRECISE else ""
        return f"{show.seconds(row.median)} (±{100 * spread(row):.0f}%){mark}"
    told = {FAILED: "failed", NOT_MEASURED: NOT_MEASURED}.get(row.status, "–")
    return told + notes.mark(row.reason)


def spread(row: Row) -> float:
    assert row.p20 is not None and row.p80 is not None and row.median
    return max(row.p80 - row.median, row.median - row.p20) / row.median


def times_best(rows: Sequence[Row]) -> str:
    faster = show.ratio(rows)
    return "–" if faster is None else f"{faster:.1f}×"


def side_by_side(
    results: Results, tasks: Sequence[Task], label: Callable[[Task], str], *, rates: bool = False, ratio: bool = True
) -> str:
    """Tasks as rows, contenders as columns; rates: of the machine's peak, and of the floor, where they are known."""
    contenders = list(dict.fromkeys(name.split("/")[0] for task in tasks for name in task.contenders))
    header = ["", *map(show.title_of, contenders)]
    header += ["ours against the best peer"] if ratio else []
    found = {task: results.of(task) for task in tasks}
    known = {task: show.efficiency(show.fastest(rows)["ours"], results.machine) for task, rows in found.items()}
    rates = rates and any(known.values())
    header += ["of peak", "of the floor"] if rates else []
    notes, lines = Notes(), []
    for task, rows in found.items():
        best = show.fastest(rows)
        line = [label(task), *(cell(best.get(name), notes) for name in contenders)]
        line += [times_best(rows)] if ratio else []
        line += [f"{100 * fraction:.0f}%" for fraction in known[task] or ()] if rates else []
        lines.append(line + [""] * (len(header) - len(line)))
    return markdown(header, lines, notes)


def of_case(task: Task) -> str:
    return f"`{task.case.name}` {task.case.sizes}, {show.ARROWS[task.direction]}"


def cascade(dtype: str, question: str = "cascade") -> Table:
    def table(results: Results) -> str:
        tasks = [task for task in results.tasks(question) if (task.dtype, task.kind) == (dtype, "smooth")]
        return side_by_side(results, tasks, of_case, rates=True) if tasks else ""

    return table


def other_inputs(results: Results) -> str:
    tasks = [task for task in results.tasks("cascade") if task.kind != "smooth"]

    def label(task: Task) -> str:
        return f"`{task.kind}`, {task.dtype}, `{task.case.name}`, {show.ARROWS[task.direction]}"

    return side_by_side(results, tasks, label, rates=True) if tasks else ""


def errors(results: Results) -> str:
    """The largest relative error of output or gradients on `eval505`, of everyone, and the bound on ours."""
    tasks = [task for task in results.tasks("cascade") if task.case.name == "eval505"]
    contenders = list(dict.fromkeys(name for task in tasks for name in task.contenders))
    lines = []
    for task in tasks:
        rows = {row.contender: row for row in results.of(task)}
        shown = [f"{rows[n].error:.1e}" if n in rows and rows[n].error is not None else "–" for n in contenders]
        bound = rows["ours"].bound
        about = f"{task.dtype}, `{task.kind}`, {show.ARROWS[task.direction]}"
        lines.append([about, *shown, "–" if bound is None else f"{bound:.1e}"])
    return markdown(["`eval505`", *map(show.title_of, contenders), "bound on ours"], lines)


def question(name: str, label: Callable[[Task], str] = of_case, *, ratio: bool = True) -> Table:
    """The tasks of a question as they come, but for its sweep over N, which is a figure."""

    def table(results: Results) -> str:
        tasks = [task for task in results.tasks(name) if not task.case.name.startswith("sweep")]
        return side_by_side(results, tasks, label, rates=name == "walk", ratio=ratio) if tasks else ""

    return table


def of_walks(task: Task) -> str:
    return f"{task.case.walks} walk{'s' * (task.case.walks > 1)}, {show.ARROWS[task.direction]}"


def of_levels(task: Task) -> str:
    assert isinstance(task, ProjectionTask)
    side, grid = task.side, task.case.grid[0]
    what = "five levels of the image" if task.levels == ALL else f"{task.sizes[0][0]} channels"
    side = side if task.levels == ALL else task.sizes[0][1]
    return f"{what}, {side}² → {grid}², {PROJECTED[task.direction]}"


def scaling(results: Results) -> str:
    """K, D, T and B, one at a time."""
    tasks = [task for task in results.tasks("scaling") if task.case.name != "sweep_nodes"]

    def label(task: Task) -> str:
        size = task.case.name.removeprefix("sweep_")
        return f"{LETTERS[size]} = {getattr(task.case, size)}, {show.ARROWS[task.direction]}"

    return side_by_side(results, tasks, label, rates=True) if tasks else ""


def crossover(results: Results) -> str:
    """From how many nodes on is ours faster? Read off the sweep over N."""
    tasks = [task for task in results.tasks("scaling") if task.case.name == "sweep_nodes"]
    times: dict[tuple[str, str], dict[int, float]] = {}
    for row in (row for task in tasks for row in results.of(task) if row.status in TIMED and row.median):
        times.setdefault((row.direction, row.contender), {})[int(str(row.case["nodes"]))] = row.median or 0.0
    peers = list(dict.fromkeys(name for task in tasks for name in task.contenders if name != "ours"))
    lines = [
        [show.ARROWS[d], *(crossing(times.get((d, "ours"), {}), times.get((d, name), {})) or "–" for name in peers)]
        for d in DIRECTIONS
    ]
    return markdown(["ours is faster than", *map(show.title_of, peers)], lines) if tasks else ""


def crossing(ours: dict[int, float], peer: dict[int, float]) -> str | None:
    """Where ours overtakes a peer for good, between two measured N on a straight line through the logarithms; None
    without a measurement."""
    nodes = sorted(ours.keys() & peer.keys())
    if not nodes:
        return None
    ahead = [math.log(peer[n] / ours[n]) for n in nodes]  # positive where ours is faster
    behind = [place for place, value in enumerate(ahead) if value <= 0]
    if not behind:
        return f"at every N, {nodes[0]} to {nodes[-1]}"
    last = behind[-1]
    if last == len(nodes) - 1:
        return f"nowhere up to N = {nodes[-1]}"
    way = ahead[last] / (ahead[last] - ahead[last + 1])
    place = nodes[last] * (nodes[last + 1] / nodes[last]) ** way
    return f"from N ≈ {float(f'{place:.2g}'):.0f}"


def table4(results: Results) -> str:
    """Table 4 of the paper beside ours, and DifNet-50 in units of Sim-Deeplab-101, as the paper puts it."""
    tasks = results.tasks("models")
    if not tasks:
        return ""
    notes, lines = Notes(), []
    for same in zip(*(results.of(task) for task in tasks), strict=True):
        name = same[0].contender
        title = models.PARTS.get(name) or f"Diffusion, {show.title_of(name)}"
        lines.append([title, show.seconds(models.PAPER.get(name)), *(cell(row, notes) for row in same)])
    heads = ["inference" if task.direction == "forward" else show.ARROWS[task.direction] for task in tasks]
    table = markdown(["", f"paper ({models.PAPER_DEVICE})", *heads], lines, notes)
    times = [{row.contender: row.median for row in results.of(task)} for task in tasks]
    both = [(found["difnet50"], found["sim_deeplab101"]) for found in times]
    told = [["inference", f"{models.PAPER['difnet50'] / models.PAPER['sim_deeplab101']:.2f}×", _over(*both[0])]]
    if len(both) > 1 and all(whole and base for whole, base in both):
        added = [after - before for before, after in zip(*both, strict=True)]  # type: ignore[operator]
        told.append(["forward + backward less inference", f"{models.PAPER_BACKWARD_RATIO}×", _over(*added)])
    return f"{table}\n\n{markdown(['DifNet-50 against Sim-Deeplab-101', 'paper', 'measured'], told)}"


def _over(whole: float | None, base: float | None) -> str:
    return f"{whole / base:.2f}×" if whole and base else "–"


def headline(found: Sequence[Results]) -> str:
    """The paper's cascades: ours, and how many times the best peer takes, one processor beside the other."""
    header, lines = ["five walks (B, N, D, K)"], {}
    for results in found:
        header += [f"{results.title}: forward", "best peer", "forward + backward", "best peer"]
        wanted = (headline_dtype(results.on_gpu), "smooth")
        for task in (task for task in results.tasks("cascade") if (task.dtype, task.kind) == wanted):
            rows = results.of(task)
            peer, ours = show.best_peer(rows), show.fastest(rows)["ours"]
            line = lines.setdefault(task.case.name, [f"`{task.case.name}`, {task.case.what} {task.case.sizes}"])
            line += [""] * (len(header) - 4 + 2 * DIRECTIONS.index(task.direction) - len(line))
            against = f"**{times_best(rows)}** {show.seconds(peer.median)} ({peer.title})" if peer else "–"
            line += [show.seconds(ours.median) or "–", against]
    body = markdown(header, [line + [""] * (len(header) - len(line)) for line in lines.values()])
    return "\n\n".join([body, *(machine(results) for results in found)])


def machine(results: Results) -> str:
    facts, peak = results.head["machine"], results.head.get("peak")
    name = results.title if results.on_gpu else f"{results.title}, {facts['threads']} threads"
    rate = f", multiply-add peak {peak['flop_per_s'] / 1e9:.0f} GFLOP/s ({peak['how']})" if peak else ""
    told = (
        f"{headline_dtype(results.on_gpu)} on {name}{rate}; torch {facts['torch']}; backend `{results.head['backend']}`"
    )
    return f"{told}; commit {results.head['commit']}, {results.head['date'][:10]}."


def figure(kind: str, what: str) -> Table:
    return lambda results: f"![{what}, {results.title}](figures/{kind}_{results.name}.svg)"


def experiments(budget: str, part: str, folder: Path = EXPERIMENTS) -> str:
    """A part of the report of `models.experiments`, or the learning rates of `models.rates`, of a committed run."""
    from models.experiments import report

    path = folder / f"{'rates' if part == 'rates_table' else 'experiments'}_{budget}.json"
    if not path.exists():
        return f"The budget {budget} has not been run yet."
    return getattr(report, part)(json.loads(path.read_text(encoding="utf-8")))


# tables of one machine each, by name
PER_MACHINE: dict[str, Table] = {
    "machine": machine,
    "peers": figure("peers", "Time of each peer divided by ours"),
    "cascade-fp32": cascade("fp32"),
    "cascade-bf16": cascade("bf16"),
    "other-inputs": other_inputs,
    "replay-bf16": cascade("bf16", "replay"),
    "replay-fp32": cascade("fp32", "replay"),
    "walk": question("walk"),
    "errors": errors,
    "crossover": crossover,
    "scaling-nodes": figure("scaling", "Seconds per walk against N, with roofline and floor"),
    "scaling": scaling,
    "memory-nodes": figure("memory", "Extra memory of one walk against N"),
    "memory": question("memory", ratio=False),
    "overhead": question("overhead", of_walks),
    "projection": question("projection", of_levels),
    "projection-memory": question("projection_memory", of_levels, ratio=False),
    "table4": table4,
}
# what the block of a card shows, with its headings
ON_A_CARD = {
    "Cascades, called from Python": ("cascade-bf16", "cascade-fp32", "other-inputs"),
    "Cascades by graph replay": ("replay-bf16", "replay-fp32"),
    "Errors": ("errors",),
    "Scaling": ("scaling-nodes", "crossover", "scaling"),
    "Memory": ("memory",),
    "A call on 16 nodes": ("overhead",),
    "Ψ": ("projection",),
    "Table 4 of the paper": ("table4",),
}


def stacked(found: Sequence[Results], table: Table) -> str:
    told = [(results.title, table(results)) for results in found]
    shown = [(title, text) for title, text in told if text]
    return "\n\n".join(text if len(found) == 1 else f"{title}:\n\n{text}" for title, text in shown)


def cards(found: Sequence[Results]) -> str:
    blocks = []
    for results in found:
        blocks.append(f"### {results.title}\n\n{headline([results])}\n\n{kernels(results)}".rstrip())
        for heading, names in ON_A_CARD.items():
            told = [PER_MACHINE[name](results) for name in names if _has(results, name)]
            if any(told):
                blocks.append("\n\n".join([f"#### {heading}", *filter(None, told)]))
    return "\n\n".join(blocks) or NO_CARD


def _has(results: Results, name: str) -> bool:
    return name != "scaling-nodes" or bool(results.tasks("scaling"))


def kernels(results: Results) -> str:
    """What a card says of single calls: the time of all kernels, the walks' share, launches, and the host."""
    header = ["five walks, forward + backward", "kernels", "walks", "of the floor", "launches", "host, per launch"]
    lines = []
    for entry in (entry for entry in results.entries if entry["stage"] == "kernels" and "device_seconds" in entry):
        line = [f"`{entry['case']}`, {entry['dtype']} {entry['precision']}"]
        line += [show.seconds(entry[key]) for key in ("device_seconds", "walk_seconds")]
        floor = entry.get("floor_seconds")
        line += [f"{100 * floor / entry['walk_seconds']:.0f}%" if floor else "–", f"{entry['launches']:.0f}"]
        lines.append([*line, show.seconds(entry["host_seconds"] / entry["launches"])])
    return markdown(header, lines) if lines else ""


def all_tables(found: Sequence[Results]) -> dict[str, Callable[[], str]]:
    """Every table by name."""
    cpus, gpus = [r for r in found if not r.on_gpu], [r for r in found if r.on_gpu]
    tables: dict[str, Callable[[], str]] = {"headline": lambda: headline(cpus), "cards": lambda: cards(gpus)}
    for name, table in PER_MACHINE.items():
        tables[name] = lambda t=table: stacked(cpus, t)  # type: ignore[misc]
    for budget in ("cpu", "gpu"):
        for name, part in (("setting",) * 2, ("networks",) * 2, ("stages",) * 2, ("rates", "rates_table")):
            tables[f"experiments-{budget}-{name}"] = lambda b=budget, p=part: experiments(b, p)  # type: ignore[misc]
    return tables
