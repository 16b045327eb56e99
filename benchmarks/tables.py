"""The tables of README and docs, as Markdown, from rows: one function per table, found by its name.

A cell without a measurement says so; its reason, if there is one, is a note under the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import show, table4
from benchmarks.cases import CASES, Case
from benchmarks.cost import dense_flop, floor_seconds
from benchmarks.peers import CONTENDERS
from benchmarks.results import Results
from benchmarks.tasks import FAILED, MEASURED, Row, Task

NOT_MEASURED = "not measured"
ARROWS = {"forward": "forward", "forward+backward": "forward + backward", "": ""}


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
    return ("–" if row.reason else NOT_MEASURED) + notes.mark(row.reason)


def left_out(notes: Notes) -> str:
    return NOT_MEASURED + notes.mark("left out of this case, where it would take minutes; compare it on the others")


def _range(row: Row) -> str:
    assert row.p20 is not None
    assert row.p80 is not None
    assert row.median is not None
    spread = max(row.p80 - row.median, row.median - row.p20) / row.median
    return f"±{100 * spread:.0f}%"


def title_of(contender: str) -> str:
    known = CONTENDERS.get(contender)
    return known.title if known else {"layers": "conv, BN, pool"}.get(contender, contender)


def times_best(rows: Sequence[Row]) -> str:
    faster = show.ratio(rows)
    return NOT_MEASURED if faster is None else f"{faster:.1f}×"


def fraction_of_peak(task: Task, row: Row, results: Results) -> str:
    if row.status != MEASURED or not row.median or results.machine is None:
        return NOT_MEASURED
    return f"{100 * dense_flop(task.case, task.direction) / row.median / results.machine.flop_per_s:.0f}%"


def fraction_of_floor(task: Task, row: Row, results: Results) -> str:
    if row.status != MEASURED or not row.median or results.machine is None:
        return NOT_MEASURED
    return f"{100 * floor_seconds(task.case, task.direction, results.machine) / row.median:.0f}%"


def sizes_of(case: Case) -> str:
    return f"`{case.name}` {case.sizes}"


def side_by_side(
    results: Results, tasks: Sequence[Task], *, label: Callable[[Task], str], efficiency: bool, ratio: bool = True
) -> str:
    """Tasks as rows, contenders as columns."""
    contenders = list(dict.fromkeys(name for task in tasks for name in task.contenders))
    header = ["", *map(title_of, contenders)]
    header += ["ours against the best peer"] if ratio else []
    header += ["of peak", "of the floor"] if efficiency else []
    notes, lines = Notes(), []
    for task in tasks:
        rows = {row.contender: row for row in results.of(task)}
        line = [label(task), *(cell(rows[name], notes) if name in rows else left_out(notes) for name in contenders)]
        line += [times_best(list(rows.values()))] if ratio else []
        if efficiency:
            ours = rows["ours"]
            line += [fraction_of_peak(task, ours, results), fraction_of_floor(task, ours, results)]
        lines.append(line)
    return markdown(header, lines, notes)


def cascade(results: Results, dtype: str, kind: str) -> str:
    tasks = [task for task in results.tasks("cascade") if (task.dtype, task.kind) == (dtype, kind)]
    return side_by_side(
        results, tasks, label=lambda task: f"{sizes_of(task.case)}, {ARROWS[task.direction]}", efficiency=True
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
        line = [f"`{task.case.name}`, {ARROWS[task.direction]}", *shown]
        lines.append([*line, NOT_MEASURED if bound is None else f"{bound:.1e}"])
    return markdown(["", *map(title_of, contenders), "bound on ours"], lines)


def question(results: Results, name: str) -> str:
    """Overhead, memory, Ψ and the single walk: tasks as they come."""

    def label(task: Task) -> str:
        if name == "overhead":
            return f"{task.case.walks} walk{'s' * (task.case.walks > 1)}, {ARROWS[task.direction]}"
        if name == "psi":
            channels, side = task.channels, task.side
            return f"{channels} channels, {side}² → {task.case.grid[0]}²"
        return f"{sizes_of(task.case)}, {ARROWS[task.direction]}"

    tasks = results.tasks(name)
    return side_by_side(results, tasks, label=label, efficiency=name == "walk", ratio=name != "memory")


def scaling(results: Results, size: str) -> str:
    tasks = [task for task in results.tasks("scaling") if task.case.name == f"sweep_{size}"]
    letter = {"nodes": "N", "classes": "K", "embed": "D", "walks": "T", "batch": "B"}[size]
    return side_by_side(
        results,
        tasks,
        label=lambda task: f"{letter} = {getattr(task.case, size)}, {ARROWS[task.direction]}",
        efficiency=True,
    )


def models(results: Results) -> str:
    """Table 4 of the paper beside ours."""
    tasks = results.tasks("models")
    notes, lines = Notes(), []
    for same in zip(*(results.of(task) for task in tasks), strict=True):
        name = same[0].contender
        paper = show.seconds(table4.PAPER.get(name))
        lines.append([_table4_title(name), paper, *(cell(row, notes) for row in same)])
    heads = ["inference" if task.direction == "forward" else ARROWS[task.direction] for task in tasks]
    return markdown(["", f"paper ({table4.PAPER_DEVICE})", *heads], lines, notes)


def _table4_title(name: str) -> str:
    return table4.PARTS.get(name) or f"Diffusion, {title_of(name)}"


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


# what was promised, and how it is read off the results: target, goal, unit
Target = tuple[str, str, str, Callable[[Results], str]]


def _ratio_at(direction: str, name: str, dtype: str = "fp32") -> Callable[[Results], str]:
    def read(results: Results) -> str:
        return times_best(results.of(_cascade_task(results, direction, name, dtype)))

    return read


def _cascade_task(results: Results, direction: str, name: str, dtype: str) -> Task:
    wanted = (direction, name, dtype, "smooth")
    tasks = results.tasks("cascade")
    return next(task for task in tasks if (task.direction, task.case.name, task.dtype, task.kind) == wanted)


def _peak_at(results: Results) -> str:
    task = _cascade_task(results, "forward", "eval505", "fp32")
    return fraction_of_peak(task, results.of(task)[0], results)


def _overhead(results: Results) -> str:
    return show.seconds(results.of(results.tasks("overhead")[0])[0].median) or NOT_MEASURED


def _growth(results: Results) -> str:
    tasks = [task for task in results.tasks("memory") if task.case.name == "eval505_h5"]
    return show.size(results.of(tasks[-1])[0].memory) or NOT_MEASURED


def _bf16_against_fp32(results: Results) -> str:
    tasks = [_cascade_task(results, "forward", "eval505", dtype) for dtype in ("fp32", "bf16")]
    wide, narrow = (results.of(task)[0].median for task in tasks)
    return f"{wide / narrow:.2f}×" if wide and narrow else NOT_MEASURED


CPU_TARGETS: tuple[Target, ...] = (
    ("fp32 forward against the best peer, `eval505`", "3×", "5×", _ratio_at("forward", "eval505")),
    ("fp32 forward + backward against the best peer, `eval505`", "3×", "6×", _ratio_at("forward+backward", "eval505")),
    ("fp32 forward, dense FLOP as a fraction of the multiply-add peak, `eval505`", "", "100%", _peak_at),
    ("bf16 forward against the best bf16 peer, `eval505`", "1×", "", _ratio_at("forward", "eval505", "bf16")),
    ("bf16 forward against bf16 peers, `train321_one`", "1×", "", _ratio_at("forward", "train321_one", "bf16")),
    ("bf16 forward against our fp32, `eval505`", "1×", "2×", _bf16_against_fp32),
    ("a call on 16 nodes, no gradient", "60 µs", "20 µs", _overhead),
    ("extra memory, forward + backward, `eval505_h5`", "61 MiB", "", _growth),
)


def targets(results: Results) -> str:
    lines = [[what, must, goal, read(results)] for what, must, goal, read in CPU_TARGETS]
    return markdown(["", "must", "goal", "measured"], lines)


def all_tables(found: dict[str, Results]) -> dict[str, Callable[[], str]]:
    """Every table by name."""
    on_cpu = found["cpu"]
    tables: dict[str, Callable[[], str]] = {"targets-cpu": lambda: targets(on_cpu)}
    for kind, results in found.items():
        tables[f"machine-{kind}"] = lambda r=results: machine(r)
        tables[f"headline-{kind}"] = lambda r=results: headline(r)
        tables[f"models-{kind}"] = lambda r=results: models(r)
        for name in ("walk", "overhead", "memory", "psi"):
            tables[f"{name}-{kind}"] = lambda r=results, n=name: question(r, n)
        for size in ("nodes", "classes", "embed", "walks", "batch"):
            tables[f"scaling-{kind}-{size}"] = lambda r=results, s=size: scaling(r, s)
        for dtype, inputs in dict.fromkeys((task.dtype, task.kind) for task in results.tasks("cascade")):
            name = f"{kind}-{dtype}-{inputs}"
            tables[f"cascade-{name}"] = lambda r=results, d=dtype, i=inputs: cascade(r, d, i)
            tables[f"errors-{name}"] = lambda r=results, d=dtype, i=inputs: errors(r, d, i)
    return tables
