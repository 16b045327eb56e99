"""What this project asked of itself, on a CPU and on an H200, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import show
from benchmarks.cases import CASES
from benchmarks.cost import pairs
from benchmarks.psi import ALL, PsiTask
from benchmarks.questions import DIRECTIONS
from benchmarks.results import Results
from benchmarks.tasks import Row, Task

# what is promised, the least, the goal, and the reading; None where nothing was measured
Target = tuple[str, str, str, Callable[[Results], str | None]]


def _times(rows: list[Row]) -> str | None:
    faster = show.ratio(rows)
    return f"{faster:.1f}×" if faster is not None else None


def _ratio_at(
    direction: str, name: str, dtype: str = "fp32", question: str = "cascade"
) -> Callable[[Results], str | None]:
    def read(results: Results) -> str | None:
        return _times(results.of(_cascade_task(results, direction, name, dtype, question)))

    return read


def _cascade_task(results: Results, direction: str, name: str, dtype: str, question: str = "cascade") -> Task:
    wanted = (direction, name, dtype, "smooth")
    tasks = results.tasks(question)
    return next(task for task in tasks if (task.direction, task.case.name, task.dtype, task.kind) == wanted)


def _peak_at(results: Results) -> str | None:
    task = _cascade_task(results, "forward", "eval505", "fp32")
    found = show.efficiency(results.of(task)[0], results.machine)
    return f"{100 * found[0]:.0f}%" if found else None


def _overhead(results: Results) -> str | None:
    return show.seconds(results.of(results.tasks("overhead")[0])[0].median)


def _growth(results: Results) -> str | None:
    tasks = [task for task in results.tasks("memory") if task.case.name == "eval505_h5"]
    return show.size(results.of(tasks[-1])[0].memory)


def _bf16_against_fp32(results: Results) -> str | None:
    tasks = [_cascade_task(results, "forward", "eval505", dtype) for dtype in ("fp32", "bf16")]
    wide, narrow = (results.of(task)[0].median for task in tasks)
    return f"{wide / narrow:.2f}×" if wide and narrow else None


def _psi_ratio(direction: str, levels: tuple[int, ...]) -> Callable[[Results], str | None]:
    """Against the composed modules, eager and compiled; the table of Ψ also knows a stronger peer."""

    def read(results: Results) -> str | None:
        wanted = (321, direction, levels)
        found = results.tasks("psi")
        task = next(t for t in found if isinstance(t, PsiTask) and (t.side, t.direction, t.levels) == wanted)
        return _times([row for row in results.of(task) if not row.contender.startswith("folded")])

    return read


CPU_TARGETS: tuple[Target, ...] = (
    ("fp32 forward against the best peer, `eval505`", "3×", "5×", _ratio_at("forward", "eval505")),
    ("fp32 forward + backward against the best peer, `eval505`", "3×", "6×", _ratio_at("forward+backward", "eval505")),
    ("fp32 forward, dense FLOP as a fraction of the multiply-add peak, `eval505`", "", "100%", _peak_at),
    ("bf16 forward against the best bf16 peer, `eval505`", "1×", "", _ratio_at("forward", "eval505", "bf16")),
    ("bf16 forward against bf16 peers, `train321_one`", "1×", "", _ratio_at("forward", "train321_one", "bf16")),
    ("bf16 forward against our fp32, `eval505`", "1×", "2×", _bf16_against_fp32),
    ("a call on 16 nodes, no gradient", "60 µs", "20 µs", _overhead),
    ("extra memory, forward + backward, `eval505_h5`", "61 MiB", "", _growth),
    ("Ψ in evaluation against its modules, five levels of 321²", "1.5×", "", _psi_ratio("forward", ALL)),
    ("Ψ in evaluation against its modules, the image of 321²", "3×", "", _psi_ratio("forward", (0,))),
    ("Ψ in a training step against its modules, five levels of 321²", "1.5×", "", _psi_ratio("forward+backward", ALL)),
)


def _on_h200(read: Callable[[Results], str | None]) -> Callable[[Results], str | None]:
    """Microseconds are promised on one chip; another one's do not answer."""
    return lambda results: read(results) if results.machine is not None else None


def _replayed(name: str) -> Callable[[Results], str | None]:
    def read(results: Results) -> str | None:
        return show.seconds(results.of(_cascade_task(results, "forward", name, "bf16", "replay"))[0].median) or None

    return _on_h200(read)


def _floor_at(name: str) -> Callable[[Results], str | None]:
    def read(results: Results) -> str | None:
        found = show.efficiency(results.of(_cascade_task(results, "forward", name, "bf16"))[0], results.machine)
        return f"{100 * found[1]:.0f}%" if found else None

    return read


def _backward_at(name: str) -> Callable[[Results], str | None]:
    """Picoseconds per ordered pair of nodes and walk: what a backward adds to a forward."""

    def read(results: Results) -> str | None:
        tasks = [_cascade_task(results, direction, name, "bf16") for direction in DIRECTIONS]
        forward, both = (results.of(task)[0].median for task in tasks)
        return f"{1e12 * (both - forward) / pairs(tasks[0].case):.2f} ps" if forward and both else None

    return _on_h200(read)


def _diffusion(results: Results) -> str | None:
    rows = {row.contender: row for row in results.of(results.tasks("models")[0])}
    return show.seconds(rows["diffusion_replayed"].median) or None


def _gpu_targets() -> Iterator[Target]:
    yield "five walks forward, `batch4_16k`, of the floor", "40%", "46%", _floor_at("batch4_16k")
    for name, must, goal in (("eval505", 65, 45), ("eval505_h5", 300, 240), ("train321", 145, 115)):
        yield f"five walks forward by graph replay, `{name}`", f"{must} µs", f"{goal} µs", _replayed(name)
    yield "backward, `batch4_16k`, per pair and walk", "1.05 ps", "0.80 ps", _backward_at("batch4_16k")
    # at batch 1 launches would be most of an eager time, of everyone
    for question, name in (*(("replay", name) for name in ("eval505", "eval505_h5", "context60", "train321")),
                           ("cascade", "batch4_16k")):  # fmt: skip
        how, goal = (" by graph replay" if question == "replay" else ""), "3×" if CASES[name].batch == 1 else "2×"
        for direction in DIRECTIONS:
            what = f"{show.ARROWS[direction]}{how} against the fastest peer, `{name}`"
            yield what, "1.5×", goal, _ratio_at(direction, name, "bf16", question)
    yield "diffusion of Table 4, Ψ and five walks, by graph replay, 505²", "200 µs", "100 µs", _on_h200(_diffusion)
    yield "extra memory, forward + backward, `eval505_h5`", "265 MiB", "132 MiB", _growth


GPU_TARGETS: tuple[Target, ...] = tuple(_gpu_targets())
