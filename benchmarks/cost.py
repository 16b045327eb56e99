"""The cost model: how much arithmetic and how many exponentials a walk needs, and the shortest time that takes.

Per *ordered* pair (i, j) of nodes, in the cheapest exact and deterministic form that docs/math.md derives. Everything that
reports a fraction of peak counts the dense work, 2·N²·(D + K) per walk, whatever trick the kernel uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import Case


@dataclass(frozen=True)
class Machine:
    """Peak rates. A GPU has a unit for exponentials, which can hide behind the products, and pads K to the tiles of its
    matrix unit. On a CPU an exponential takes `exp_flop` of the same unit: range reduction, a polynomial, scaling. A CPU
    may have a matrix unit beside its vectors, which multiplies bf16 numbers at `unit_flop_per_s`."""

    name: str
    flop_per_s: float
    exp_per_s: float | None = None
    exp_flop: float = 16.0
    unit_flop_per_s: float | None = None
    shares: bool = False  # one S tile serves (i, j) and (j, i) although exponentials have a unit of their own


# one Hopper multiprocessor in one clock: 16-bit FLOP of products, exponentials; and its clocks per second
FLOP, EXPS, CLOCK = 4096, 16, 1.83e9


def hopper(name: str, processors: int) -> Machine:
    clocks = processors * CLOCK
    return Machine(name, clocks * FLOP, clocks * EXPS)


def _seconds(machine: Machine, flop: float, exps: float) -> float:
    if machine.exp_per_s is not None:
        return max(flop / machine.flop_per_s, exps / machine.exp_per_s)
    return (flop + exps * machine.exp_flop) / machine.flop_per_s


def pair_seconds(case: Case, direction: str, machine: Machine) -> float:
    """The floor of one ordered pair of nodes."""
    D, K = case.embed, case.classes
    if machine.exp_per_s is None or machine.shares:
        # one S tile serves (i, j) and (j, i), forward and backward; registers of a matrix unit hold 32 numbers of each
        columns = K if machine.exp_per_s is None else _up(K + 1, 32)
        D, K = (D, K) if machine.exp_per_s is None else (_up(D, 32), _up(K, 32))
        forward, backward = (D + 2 * columns, 0.5), (3 * D + 4 * K, 1)
    else:
        # one spare column of y carries the row sum, or δ; tiles are 8 columns wide and 16 deep
        D, columns, depth = _up(D, 16), _up(K + 1, 8), _up(K + 1, 16)
        forward, backward = (2 * (D + columns), 1), (2 * (2 * D + 2 * depth + columns), 1)
    seconds = _seconds(machine, *forward)
    return seconds + (_seconds(machine, *backward) if direction == "forward+backward" else 0.0)


def on_unit(machine: Machine) -> Machine | None:
    """A CPU as its matrix unit sees it, for bf16 fields: exponentials are the vectors', beside its products."""
    if machine.unit_flop_per_s is None:
        return None
    return Machine(machine.name, machine.unit_flop_per_s, machine.flop_per_s / machine.exp_flop, shares=True)


def pairs(case: Case) -> int:
    """Ordered pairs of nodes of the whole cascade."""
    return case.walks * case.batch * case.nodes**2


def floor_seconds(case: Case, direction: str, machine: Machine) -> float:
    """The time below which no kernel of the best known exact, deterministic form can run the cascade."""
    return pairs(case) * pair_seconds(case, direction, machine)


def dense_flop(case: Case, direction: str) -> float:
    """2·N²·(D + K) per walk forward; the backward of the dense formula is twice its forward."""
    return {"forward": 1, "forward+backward": 3}[direction] * 2.0 * pairs(case) * (case.embed + case.classes)


def dense_bytes(case: Case, direction: str, element: int) -> int:
    """What the dense formula stores at its peak: S and P of one walk, and for a backward the P of every walk."""
    matrix = case.batch * case.nodes**2 * element
    return matrix * (2 if direction == "forward" else case.walks + 2)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
