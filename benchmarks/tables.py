"""The tables of README and docs, as Markdown, from rows: one function per table, found by its name.

A cell without a measurement says so; its reason, if there is one, is a note under the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import predicted, show, table4
from benchmarks.cases import CASES, Case
from benchmarks.crossover import crossing, times_by_nodes
from benchmarks.psi import ALL, PsiTask
from benchmarks.results import Results
from benchmarks.targets import CPU_TARGETS, GPU_TARGETS, Target
from benchmarks.tasks import FAILED, MEASURED, Row, Task

NOT_MEASURED = "not measured"
EXPERIMENTS = Path(__file__).parent.parent / "docs" / "results"


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


def cell(row: Row, notes: Notes) -> str:
    if row.status == MEASURED:
        if row.memory is not None:
            return show.size(row.memory)
        return f"{show.seconds(row.median)} ({_range(row)})"
    if row.status == FAILED:
        return "failed" + notes.mark(row.reason)
    return (NOT_MEASURED if row.status == NOT_MEASURED else "–") + notes.mark(row.reason)


def left_out(notes: Notes) -> str:
    return "–" + notes.mark("left out of this case, where it would take minutes; compare it on the others")


def _range(row: Row) -> str:
    assert row.p20 is not None
    assert row.p80 is not None
    assert row.median is not None
    spread = max(row.p80 - row.median, row.median - row.p20) / row.median
    return f"±{100 * spread:.0f}%"


def times_best(rows: Sequence[Row]) -> str:
    faster = show.ratio(rows)
    return NOT_MEASURED if faster is None else f"{faster:.1f}×"


def efficiency(row: Row, results: Results) -> list[str]:
    """Cells: the fraction of the machine's peak, and of the floor."""
    found = show.efficiency(row, results.machine) if row.status == MEASURED else None
    return [f"{100 * fraction:.0f}%" for fraction in found] if found else [NOT_MEASURED, NOT_MEASURED]


def sizes_of(case: Case) -> str:
    return f"`{case.name}` {case.sizes}"


def side_by_side(
    results: Results,
    tasks: Sequence[Task],
    *,
    label: Callable[[Task], str],
    with_efficiency: bool = False,
    ratio: bool = True,
) -> str:
    """Tasks as rows, contenders as columns."""
    contenders = list(dict.fromkeys(name.split("/")[0] for task in tasks for name in task.contenders))
    header = ["", *map(show.title_of, contenders)]
    header += ["ours against the best peer"] if ratio else []
    header += ["of peak", "of the floor"] if with_efficiency else []
    notes, lines = Notes(), []
    for task in tasks:
        found = results.of(task)
        rows = show.fastest(found)
        line = [label(task), *(cell(rows[name], notes) if name in rows else left_out(notes) for name in contenders)]
        line += [times_best(found)] if ratio else []
        line += efficiency(rows["ours"], results) if with_efficiency else []
        lines.append(line)
    return markdown(header, lines, notes)


def cascade(results: Results, dtype: str, kind: str) -> str:
    tasks = [task for task in results.tasks("cascade") if (task.dtype, task.kind) == (dtype, kind)]
    has_peak = results.kind != "cpu" or dtype == "fp32"
    return side_by_side(
        results,
        tasks,
        label=lambda task: f"{sizes_of(task.case)}, {show.ARROWS[task.direction]}",
        with_efficiency=has_peak,
    )


def replay(results: Results, dtype: str) -> str:
    """The small cascades from CUDA graphs."""
    tasks = [task for task in results.tasks("replay") if task.dtype == dtype]
    return side_by_side(
        results, tasks, label=lambda task: f"{sizes_of(task.case)}, {show.ARROWS[task.direction]}", with_efficiency=True
    )


def errors(results: Results, dtype: str, kind: str) -> str:
    """The largest relative error of output or gradients, of everyone, and the bound that ours is held to."""
    tasks = [task for task in results.tasks("cascade") if (task.dtype, task.kind) == (dtype, kind)]
    contenders = list(dict.fromkeys(name for task in tasks for name in task.contenders))
    lines = []
    for task in tasks:
        rows = {row.contender: row for row in results.of(task)}
        found = [rows.get(name) for name in contenders]
        shown = ["" if r is None else NOT_MEASURED if r.error is None else f"{r.error:.1e}" for r in found]
        bound = rows["ours"].bound
        line = [f"`{task.case.name}`, {show.ARROWS[task.direction]}", *shown]
        lines.append([*line, NOT_MEASURED if bound is None else f"{bound:.1e}"])
    return markdown(["", *map(show.title_of, contenders), "bound on ours"], lines)


def question(results: Results, name: str) -> str:
    """Overhead, memory and the single walk: tasks as they come."""

    def label(task: Task) -> str:
        if name == "overhead":
            return f"{task.case.walks} walk{'s' * (task.case.walks > 1)}, {show.ARROWS[task.direction]}"
        return f"{sizes_of(task.case)}, {show.ARROWS[task.direction]}"

    # the sweep of memory over N is a figure
    tasks = [task for task in results.tasks(name) if not task.case.name.startswith("sweep")]
    return side_by_side(results, tasks, label=label, with_efficiency=name == "walk", ratio=name != "memory")


def psi(results: Results, direction: str) -> str:
    """Ψ: everyone in the memory layout that is faster for it; the five levels together, then one by one."""
    tasks = [task for task in results.tasks("psi") if task.direction == direction]
    return side_by_side(results, tasks, label=psi_label)


def psi_memory(results: Results) -> str:
    tasks = results.tasks("psi_memory")
    return side_by_side(
        results, tasks, label=lambda task: f"{psi_label(task)}, {PSI_DIRECTIONS[task.direction]}", ratio=False
    )


PSI_DIRECTIONS = {"forward": "evaluation", "forward+backward": "training step"}


def psi_label(task: Task) -> str:
    assert isinstance(task, PsiTask)
    grid = task.case.grid[0]
    if task.levels == ALL:
        return f"**five levels of {task.side}²** → {grid}²"
    channels, side = task.sizes[0]
    return f"{channels} channels, {side}² → {grid}²"


def scaling(results: Results, size: str) -> str:
    tasks = [task for task in results.tasks("scaling") if task.case.name == f"sweep_{size}"]
    letter = {"nodes": "N", "classes": "K", "embed": "D", "walks": "T", "batch": "B"}[size]
    return side_by_side(
        results,
        tasks,
        label=lambda task: f"{letter} = {getattr(task.case, size)}, {show.ARROWS[task.direction]}",
        with_efficiency=True,
    )


def crossover(results: Results) -> str:
    """From how many nodes on ours is faster, by the sweep over N."""
    peers = [name for name in contenders_of(results.tasks("scaling")) if name != "ours"]
    lines = []
    for direction in ("forward", "forward+backward"):
        times = times_by_nodes(results, direction)
        line = [
            show.ARROWS[direction],
            *(crossing(times.get("ours", {}), times.get(name, {})) or NOT_MEASURED for name in peers),
        ]
        smallest = min(times.get("ours", {0: 0.0}))
        best = min((times[name][smallest] for name in peers if smallest in times.get(name, {})), default=None)
        line.append(f"{best / times['ours'][smallest]:.2f}× at N = {smallest}" if best else NOT_MEASURED)
        lines.append(line)
    return markdown(["ours is faster", *map(show.title_of, peers), "ours against the best peer"], lines)


def contenders_of(tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks for name in task.contenders))


def models(results: Results) -> str:
    """Table 4 of the paper beside ours."""
    tasks = results.tasks("models")
    notes, lines = Notes(), []
    for same in zip(*(results.of(task) for task in tasks), strict=True):
        name = same[0].contender
        paper = show.seconds(table4.PAPER.get(name))
        title = show.title_of(name) if name in table4.PARTS else f"Diffusion, {show.title_of(name)}"
        lines.append([title, paper, *(cell(row, notes) for row in same)])
    heads = ["inference" if task.direction == "forward" else show.ARROWS[task.direction] for task in tasks]
    table = markdown(["", f"paper ({table4.PAPER_DEVICE})", *heads], lines, notes)
    return f"{table}\n\n{_against_the_baseline(results, tasks)}"


def _against_the_baseline(results: Results, tasks: Sequence[Task]) -> str:
    """DifNet-50 in units of Sim-Deeplab-101, as the paper puts it."""
    times = [{row.contender: row.median for row in results.of(task)} for task in tasks]
    pairs = [(found["difnet50"], found["sim_deeplab101"]) for found in times]
    paper = [f"{table4.PAPER['difnet50'] / table4.PAPER['sim_deeplab101']:.2f}×", f"{table4.PAPER_BACKWARD_RATIO}×"]
    ours = [f"{whole / base:.2f}×" if whole and base else NOT_MEASURED for whole, base in pairs]
    if all(whole and base for whole, base in pairs):
        backward = (pairs[1][0] - pairs[0][0]) / (pairs[1][1] - pairs[0][1])
        ours[1] = f"{backward:.2f}×"
    return markdown(
        ["DifNet-50 against Sim-Deeplab-101", "paper", "measured"],
        [
            [what, *both]
            for what, *both in zip(("inference", "forward + backward less inference"), paper, ours, strict=True)
        ],
    )


def headline(results: Results) -> str:
    """The README's: the paper's cascades, ours and the best peer."""
    dtype = "fp32" if results.kind == "cpu" else "bf16"
    chosen = [task for task in results.tasks("cascade") if (task.dtype, task.kind) == (dtype, "smooth")]
    lines = []
    for name in dict.fromkeys(task.case.name for task in chosen):
        line = [f"`{name}`, {CASES[name].what} {CASES[name].sizes}"]
        for task in (task for task in chosen if task.case.name == name):
            rows = results.of(task)
            ours, peer = next(row for row in rows if row.contender == "ours"), show.best_peer(rows)
            line.append(show.seconds(ours.median) or NOT_MEASURED)
            line.append(f"{show.seconds(peer.median)} ({peer.title})" if peer else NOT_MEASURED)
            line.append(f"**{times_best(rows)}**" if show.ratio(rows) else NOT_MEASURED)
        lines.append(line)
    both = ["forward", "best peer", "ratio", "forward + backward", "best peer", "ratio"]
    return markdown(["five walks (B, N, D, K)", *both], lines) + f"\n\n{machine_line(results, dtype)}"


def machine_line(results: Results, dtype: str = "") -> str:
    if not results.head:
        return f"No measurement on a {results.kind.upper()} yet."
    facts = results.head["machine"]
    name = f"{facts['cpu']}, {facts['threads']} threads, {facts['simd']}" if results.kind == "cpu" else facts["device"]
    peak = results.head.get("peak")
    rate = f", multiply-add peak {peak['flop_per_s'] / 1e9:.0f} GFLOP/s ({peak['how']})" if peak else ""
    told = f"{name}{rate}; torch {facts['torch']}; backend `{results.head['backend']}`"
    return f"{dtype + ' on ' if dtype else ''}{told}; commit {results.head['commit']}, {results.head['date'][:10]}."


def machine(results: Results) -> str:
    return machine_line(results)


def targets(results: Results, asked: Sequence[Target]) -> str:
    lines = [[what, must, goal, read(results) or NOT_MEASURED] for what, must, goal, read in asked]
    return markdown(["", "must", "goal", "measured"], lines)


def experiments(budget: str, part: str, folder: Path = EXPERIMENTS) -> str:
    """A part of the report of `models.experiments`, or the learning rates of `models.rates`, of a committed run."""
    from models.experiments import report

    path = folder / f"{'rates' if part == 'rates_table' else 'experiments'}_{budget}.json"
    if not path.exists():
        return f"The budget {budget}: {NOT_MEASURED}."
    return getattr(report, part)(json.loads(path.read_text(encoding="utf-8")))


def all_tables(found: dict[str, Results]) -> dict[str, Callable[[], str]]:
    """Every table by name."""
    on_cpu, on_gpu = found["cpu"], found["gpu"]
    tables: dict[str, Callable[[], str]] = {
        "targets-cpu": lambda: targets(on_cpu, CPU_TARGETS),
        "targets-gpu": lambda: targets(on_gpu, GPU_TARGETS),
        "predicted-walk": lambda: predicted.walk(on_gpu.folder),
        "predicted-psi": lambda: predicted.psi(on_gpu.folder),
    }
    for budget in ("cpu", "gpu"):
        for name, part in (("setting",) * 2, ("networks",) * 2, ("stages",) * 2, ("rates", "rates_table")):
            tables[f"experiments-{budget}-{name}"] = lambda b=budget, p=part: experiments(b, p)
    for kind, results in found.items():
        tables[f"machine-{kind}"] = lambda r=results: machine(r)
        tables[f"headline-{kind}"] = lambda r=results: headline(r)
        tables[f"models-{kind}"] = lambda r=results: models(r)
        for name in ("walk", "overhead", "memory"):
            tables[f"{name}-{kind}"] = lambda r=results, n=name: question(r, n)
        tables[f"psi-{kind}-evaluation"] = lambda r=results: psi(r, "forward")
        tables[f"psi-{kind}-training"] = lambda r=results: psi(r, "forward+backward")
        tables[f"psi-{kind}-memory"] = lambda r=results: psi_memory(r)
        tables[f"crossover-{kind}"] = lambda r=results: crossover(r)
        for size in ("nodes", "classes", "embed", "walks", "batch"):
            tables[f"scaling-{kind}-{size}"] = lambda r=results, s=size: scaling(r, s)
        for dtype in dict.fromkeys(task.dtype for task in results.tasks("replay")):
            tables[f"replay-{kind}-{dtype}"] = lambda r=results, d=dtype: replay(r, d)
        for dtype, inputs in dict.fromkeys((task.dtype, task.kind) for task in results.tasks("cascade")):
            name = f"{kind}-{dtype}-{inputs}"
            tables[f"cascade-{name}"] = lambda r=results, d=dtype, i=inputs: cascade(r, d, i)
            tables[f"errors-{name}"] = lambda r=results, d=dtype, i=inputs: errors(r, d, i)
    return tables
