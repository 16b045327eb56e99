"""The tables of README and docs, as Markdown, from results files.

Processors stand one below the other, each with its name. A cell without a measurement has its reason as a note.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models, plots, show
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
        if reason and reason not in self.reasons:
            self.reasons.append(reason)
        return f" [{self.reasons.index(reason) + 1}]" if reason else ""

    def text(self) -> str:
        return "".join(f"\n\\[{number}\\] {reason}." for number, reason in enumerate(self.reasons, 1))


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], notes: Notes | None = None) -> str:
    # the first column names the row; the others are numbers
    rule = ["---", *["---:"] * (len(header) - 1)]
    filled = [[*line, *[""] * (len(header) - len(line))] for line in lines]
    body = "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *filled])
    return body + ("\n" + notes.text() if notes and notes.reasons else "")


def cell(row: Row | None, notes: Notes) -> str:
    if row is None:
        return "–" + notes.mark(LEFT_OUT)
    if row.status in TIMED and row.memory is not None:
        return show.size(row.memory)
    if row.status in TIMED and row.median and row.p20 is not None and row.p80 is not None:
        spread = max(row.p80 - row.median, row.median - row.p20) / row.median
        mark = notes.mark(f"imprecise: {row.reason}") if row.status == IMPRECISE else ""
        return f"{show.seconds(row.median)} (±{100 * spread:.0f}%){mark}"
    return {FAILED: "failed", NOT_MEASURED: NOT_MEASURED}.get(row.status, "–") + notes.mark(row.reason)


def times_best(rows: Sequence[Row]) -> str:
    faster = show.ratio(rows)
    return "–" if faster is None else f"{faster:.1f}×"


def of_case(task: Task) -> str:
    return f"`{task.case.name}` {task.case.sizes}, {show.ARROWS[task.direction]}"


def of_inputs(task: Task) -> str:
    return f"`{task.kind}`, {task.dtype}, `{task.case.name}`, {show.ARROWS[task.direction]}"


def of_walks(task: Task) -> str:
    return f"{task.case.walks} walk{'s' * (task.case.walks > 1)}, {show.ARROWS[task.direction]}"


def of_size(task: Task) -> str:
    size = task.case.name.removeprefix("sweep_")
    return f"{LETTERS[size]} = {getattr(task.case, size)}, {show.ARROWS[task.direction]}"


def of_levels(task: Task) -> str:
    assert isinstance(task, ProjectionTask)
    five = task.levels == ALL
    what, side = ("five levels of the image", task.side) if five else (f"{task.sizes[0][0]} channels", task.sizes[0][1])
    return f"{what}, {side}² → {task.case.grid[0]}², {PROJECTED[task.direction]}"


@dataclass(frozen=True)
class SideBySide:
    """The tasks of a question as rows, contenders as columns. rates: fractions of the machine's peak and of the floor."""

    question: str
    label: Callable[[Task], str] = of_case
    where: Callable[[Task], bool] = lambda task: not task.case.name.startswith("sweep")
    rates: bool = False
    ratio: bool = True

    def __call__(self, results: Results) -> str:
        tasks = [task for task in results.tasks(self.question) if self.where(task)]
        if not tasks:
            return ""
        contenders = list(dict.fromkeys(name.split("/")[0] for task in tasks for name in task.contenders))
        best = {task: show.fastest(results.of(task)) for task in tasks}
        known = {task: show.efficiency(rows["ours"], results.machine) or () for task, rows in best.items()}
        rates = self.rates and any(known.values())
        header = ["", *map(show.title_of, contenders), *["ours against the best peer"] * self.ratio]
        notes, lines = Notes(), []
        for task, rows in best.items():
            line = [self.label(task), *(cell(rows.get(name), notes) for name in contenders)]
            line += [times_best(list(rows.values()))] * self.ratio
            lines.append(line + [f"{100 * fraction:.0f}%" for fraction in known[task] if rates])
        return markdown(header + ["of peak", "of the floor"] * rates, lines, notes)


def smooth(dtype: str) -> Callable[[Task], bool]:
    return lambda task: (task.dtype, task.kind) == (dtype, "smooth")


def errors(results: Results) -> str:
    """The largest relative error of output or gradients on `eval505`, of everyone, and the bound on ours."""
    tasks = [task for task in results.tasks("cascade") if task.case.name == "eval505"]
    contenders = list(dict.fromkeys(name for task in tasks for name in task.contenders))
    if not tasks:
        return ""
    lines = []
    for task in tasks:
        rows = {row.contender: row for row in results.of(task)}
        found = [rows[name].error if name in rows else None for name in contenders] + [rows["ours"].bound]
        about = f"{task.dtype}, `{task.kind}`, {show.ARROWS[task.direction]}"
        lines.append([about, *("–" if value is None else f"{value:.1e}" for value in found)])
    return markdown(["`eval505`", *map(show.title_of, contenders), "bound on ours"], lines)


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
    times = [{row.contender: row.median or 0.0 for row in results.of(task)} for task in tasks]
    both = [(found["difnet50"], found["sim_deeplab101"]) for found in times]
    told: list[tuple[str, float, float, float]] = [
        ("inference", models.PAPER["difnet50"] / models.PAPER["sim_deeplab101"], *both[0])
    ]
    if len(both) > 1:
        whole, base = (after - before for before, after in zip(*both, strict=True))
        told.append(("forward + backward less inference", models.PAPER_BACKWARD_RATIO, whole, base))
    shown = [[what, f"{paper:.2f}×", f"{whole / base:.2f}×"] for what, paper, whole, base in told if base > 0]
    return f"{table}\n\n{markdown(['DifNet-50 against Sim-Deeplab-101', 'paper', 'measured'], shown)}"


def headline(found: Sequence[Results]) -> str:
    """The paper's cascades: ours, and how many times the best peer takes, one processor beside the other. One that was not
    asked about them is left out."""
    found = [results for results in found if results.tasks("cascade")]
    header = ["five walks (B, N, D, K)"]
    lines: dict[str, list[str]] = {}
    for results in found:
        for task in filter(smooth(headline_dtype(results.on_gpu)), results.tasks("cascade")):
            rows = results.of(task)
            peer, ours = show.best_peer(rows), show.fastest(rows)["ours"]
            line = lines.setdefault(task.case.name, [f"`{task.case.name}`, {task.case.what} {task.case.sizes}"])
            line += [""] * (len(header) + 2 * DIRECTIONS.index(task.direction) - len(line))
            against = f"**{times_best(rows)}** {show.seconds(peer.median)} ({peer.title})" if peer else "–"
            line += [show.seconds(ours.median) or "–", against]
        header += [f"{results.title}: forward", "best peer", "forward + backward", "best peer"]
    return "\n\n".join([markdown(header, list(lines.values())), *map(machine, found)])


def machine(results: Results) -> str:
    facts, peak = results.head["machine"], results.head.get("peak")
    name = results.title if results.on_gpu else f"{results.title}, {facts['threads']} threads"
    rate = f", multiply-add peak {peak['flop_per_s'] / 1e9:.0f} GFLOP/s ({peak['how']})" if peak else ""
    if unit := results.head.get("unit_peak"):
        rate += f", matrix unit {unit['flop_per_s'] / 1e9:.0f} GFLOP/s ({unit['how']})"
    told = (
        f"{headline_dtype(results.on_gpu)} on {name}{rate}; torch {facts['torch']}; backend `{results.head['backend']}`"
    )
    return f"{told}; commit {results.head['commit']}, {results.head['date'][:10]}."


def figure(kind: str, what: str) -> Table:
    def shown(results: Results) -> str:
        drawn = f"{kind}_{results.name}.svg"
        return f"![{what}, {results.title}](figures/{drawn})" if drawn in plots.files(results) else ""

    return shown


def kernels(results: Results) -> str:
    """What a card says of single calls: the time of all kernels, the walks' share, launches, and the host."""
    header = ["five walks, forward + backward", "kernels", "walks", "of the floor", "launches", "host, per launch"]
    lines = []
    for entry in (entry for entry in results.entries if entry["stage"] == "kernels" and "device_seconds" in entry):
        floor = f"{100 * entry['floor_seconds'] / entry['walk_seconds']:.0f}%" if "floor_seconds" in entry else "–"
        line = [f"`{entry['case']}`, {entry['dtype']} {entry['precision']}", show.seconds(entry["device_seconds"])]
        line += [show.seconds(entry["walk_seconds"]), floor, f"{entry['launches']:.0f}"]
        lines.append([*line, show.seconds(entry["host_seconds"] / entry["launches"])])
    return markdown(header, lines) if lines else ""


# tables of one machine each, by name
PER_MACHINE: dict[str, Table] = {
    "peers": figure("peers", "Time of each peer divided by ours"),
    "cascade-fp32": SideBySide("cascade", where=smooth("fp32"), rates=True),
    "cascade-bf16": SideBySide("cascade", where=smooth("bf16"), rates=True),
    "other-inputs": SideBySide("cascade", of_inputs, lambda task: task.kind != "smooth", rates=True),
    "replay-bf16": SideBySide("replay", where=smooth("bf16"), rates=True),
    "replay-fp32": SideBySide("replay", where=smooth("fp32"), rates=True),
    "walk": SideBySide("walk", rates=True),
    "wide": SideBySide("wide", rates=True),
    "errors": errors,
    "scaling-nodes": figure("scaling", "Seconds per walk against N, with roofline and floor"),
    "scaling": SideBySide("scaling", of_size, lambda task: task.case.name != "sweep_nodes", rates=True),
    "memory-nodes": figure("memory", "Extra memory of one walk against N"),
    "memory": SideBySide("memory", ratio=False),
    "overhead": SideBySide("overhead", of_walks),
    "steady-state": SideBySide("steady_state", of_inputs),
    "projection": SideBySide("projection", of_levels),
    "projection-memory": SideBySide("projection_memory", of_levels, ratio=False),
    "table4": table4,
}
# what the block of a card shows, with its headings
ON_A_CARD = {
    "Kernels": ("kernels",),
    "Cascades, called from Python": ("cascade-bf16", "cascade-fp32", "other-inputs"),
    "Cascades by graph replay": ("replay-bf16", "replay-fp32"),
    "Wide embeddings": ("wide",),
    "Errors": ("errors",),
    "Scaling": ("scaling",),
    "Memory": ("memory",),
    "A call on 16 nodes": ("overhead",),
    "Ψ": ("projection",),
    "Table 4 of the paper": ("table4",),
}


def stacked(found: Sequence[Results], table: Table) -> str:
    shown = [(results.title, text) for results in found if (text := table(results))]
    return "\n\n".join(text if len(found) == 1 else f"{title}:\n\n{text}" for title, text in shown)


def cards(found: Sequence[Results]) -> str:
    blocks = []
    for results in found:
        blocks.append(f"### {results.title}\n\n{headline([results])}")
        for heading, names in ON_A_CARD.items():
            told = [text for name in names if (text := PER_MACHINE.get(name, kernels)(results))]
            blocks += ["\n\n".join([f"#### {heading}", *told])] if told else []
    return "\n\n".join(blocks) or NO_CARD


def experiments(budget: str, part: str) -> str:
    """A part of the report of `models.experiments`, or the learning rates of `models.rates`, of a committed run."""
    from models.experiments import long_report, report

    path = EXPERIMENTS / f"{'rates' if part == 'rates_table' else 'experiments'}_{budget}.json"
    if not path.exists():
        return f"The budget {budget} has not been run yet."
    return str(getattr(long_report if budget == "long" else report, part)(json.loads(path.read_text(encoding="utf-8"))))


def recipes() -> str:
    """What every run of docs/examples reached, without the walk and with it."""
    from models.tables import markdown

    runs = json.loads((EXPERIMENTS / "recipes.json").read_text(encoding="utf-8"))
    rows = [
        [
            f"`{run['network']}`", run["seed"], f"{run['without']:.1%}", f"{run['with']:.1%}",
            f"{100 * (run['with'] - run['without']):+.1f}",
        ]
        for run in runs
    ]  # fmt: skip
    machines = sorted({f"{run['processor']}, torch {run['torch']}" for run in runs})
    return markdown(["network", "seed", "mIoU without", "with the walk", "points"], rows) + (
        f"\n\n{runs[0]['updates']} updates of 8 images, then as many again without and with the walk; {runs[0]['images']} "
        f"images, {runs[0]['test']} test images of another generator seed. {'; '.join(machines)}."
    )


def recipe_in_words() -> str:
    """The first recipe as a sentence."""
    runs = [run for run in json.loads((EXPERIMENTS / "recipes.json").read_text()) if run["network"] == "fcn"]
    pairs = [f"{run['without']:.1%} without and {run['with']:.1%} with the walk" for run in runs]
    return f"It reached a mean IoU of {'; with another seed '.join(pairs)} ({runs[0]['processor']})."


def all_tables(found: Sequence[Results]) -> dict[str, Callable[[], str]]:
    """Every table by name."""
    cpus, gpus = [r for r in found if not r.on_gpu], [r for r in found if r.on_gpu]
    tables: dict[str, Callable[[], str]] = {"headline": lambda: headline(cpus), "cards": lambda: cards(gpus)}
    for name, table in PER_MACHINE.items():
        tables[name] = lambda t=table: stacked(cpus, t)  # type: ignore[misc]
    for budget in ("cpu", "gpu"):
        for name, part in (("setting",) * 2, ("networks",) * 2, ("stages",) * 2, ("rates", "rates_table")):
            tables[f"experiments-{budget}-{name}"] = lambda b=budget, p=part: experiments(b, p)  # type: ignore[misc]
    for part in ("setting", "networks", "settings", "crf_loss", "rates"):
        tables[f"experiments-long-{part.replace('_', '-')}"] = lambda p=part: experiments("long", p)  # type: ignore[misc]
    return tables | {"recipes": recipes, "recipe-in-words": recipe_in_words}
