"""What this project asked of itself on a CPU, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import show
from benchmarks.psi import ALL, PsiTask
from benchmarks.results import Results
from benchmarks.tasks import Row, Task

# what is promised, the least, the goal, and the reading; None where nothing was measured
Target = tuple[str, str, str, Callable[[Results], str | None]]


def _times(rows: list[Row]) -> str | None:
    faster = show.ratio(rows)
    return f"{faster:.1f}×" if faster is not None else None


def _ratio_at(direction: str, name: str, dtype: str = "fp32") -> Callable[[Results], str | None]:
    def read(results: Results) -> str | None:
        return _times(results.of(_cascade_task(results, direction, name, dtype)))

    return read


def _cascade_task(results: Results, direction: str, name: str, dtype: str) -> Task:
    wanted = (direction, name, dtype, "smooth")
    tasks = results.tasks("cascade")
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
