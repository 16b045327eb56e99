"""The cost model: how much arithmetic, how many exponentials and bytes a walk needs, and the shortest time that takes.

Per *ordered* pair (i, j) of nodes, for the ways to organise a walk that docs/math.md derives. Everything that reports a
fraction of peak counts the dense work, 2·N²·(D + K) per walk, whatever trick the kernel uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import Case


@dataclass(frozen=True)
class Machine:
    """Peak rates. `separate_exp`: exponentials have a unit of their own (a GPU), so they can hide behind the products;
    otherwise (a CPU) each one takes `exp_flop` of the same unit. `matrix_unit`: K is padded to the unit's tiles."""

    name: str
    flop_per_s: float
    exp_per_s: float = 0.0
    bytes_per_s: float = 0.0
    separate_exp: bool = False
    matrix_unit: bool = False
    # range reduction, a polynomial of degree five to six, scaling: about eight multiply-adds
    exp_flop: float = 16.0


# an H200: SMs, clocks per second; of one SM in one clock: warp instructions, 16-bit FLOP of products, exponentials
PROCESSORS, CLOCK, ISSUE, FLOP, EXPS = 132, 1.83e9, 4, 4096, 16


def h200(dtype_bits: int = 16) -> Machine:
    """The chip that floors are given for."""
    if dtype_bits != 16:
        raise ValueError(f"the floors of the H200 are for 16-bit products; got {dtype_bits} bits.")
    clocks = PROCESSORS * CLOCK
    return Machine("H200", clocks * FLOP, clocks * EXPS, 4.8e12, separate_exp=True, matrix_unit=True)


def cpu(name: str, measured_peak: float) -> Machine:
    """A CPU with the multiply-add rate that `benchmarks.machine` measured, in FLOP/s."""
    return Machine(name, measured_peak)


@dataclass(frozen=True)
class Widths:
    """The widths that the products really run at: D, y as columns of a product, y as the depth of one."""

    embed: int
    columns: int
    depth: int

    @staticmethod
    def of(case: Case, machine: Machine) -> Widths:
        if not machine.matrix_unit:
            return Widths(case.embed, case.classes, case.classes)
        # one spare column carries the row sum, or δ; tiles are 8 columns wide and 16 deep
        return Widths(_up(case.embed, 16), _up(case.classes + 1, 8), _up(case.classes + 1, 16))


@dataclass(frozen=True)
class Cost:
    """Per ordered pair of nodes."""

    flop: float
    exps: float

    def seconds(self, machine: Machine) -> float:
        if machine.separate_exp:
            return max(self.flop / machine.flop_per_s, self.exps / machine.exp_per_s)
        return (self.flop + self.exps * machine.exp_flop) / machine.flop_per_s


def forward_cost(w: Widths, form: str = "ordered") -> Cost:
    """W1, W2. ordered: every S_ij is computed; unordered: one S tile serves (i, j) and (j, i)."""
    return {
        "ordered": Cost(2 * (w.embed + w.columns), 1),
        "unordered": Cost(w.embed + 2 * w.columns, 0.5),
    }[form]


def backward_cost(w: Widths, form: str = "symmetric") -> Cost:
    """B1-B7. generic and two_loop are what an attention backward does, which cannot know that Q = K."""
    return {
        "generic": Cost(2 * (3 * w.embed + w.depth + w.columns), 1),
        "two_loop": Cost(2 * (4 * w.embed + 2 * w.depth + w.columns), 2),
        "symmetric": Cost(2 * (2 * w.embed + 2 * w.depth + w.columns), 2),
        "symmetric_one_exp": Cost(2 * (2 * w.embed + 2 * w.depth + w.columns), 1),
        "unordered": Cost(3 * w.embed + 2 * w.depth + 2 * w.columns, 1),
    }[form]


def pairs(case: Case) -> int:
    """Ordered pairs of nodes of the whole cascade."""
    return case.walks * case.batch * case.nodes**2


def dense_flop(case: Case, direction: str) -> float:
    """2·N²·(D + K) per walk forward; the backward of the dense formula is twice its forward."""
    return {"forward": 1, "forward+backward": 3}[direction] * 2.0 * pairs(case) * (case.embed + case.classes)


# the cheapest exact and deterministic form on each kind of machine: what a perfect kernel could still reach
BEST_FORMS = {"cpu": ("unordered", "unordered"), "gpu": ("ordered", "symmetric_one_exp")}


def floor_seconds(case: Case, direction: str, machine: Machine) -> float:
    """The time below which no kernel of the best known exact, deterministic form can run the cascade."""
    widths = Widths.of(case, machine)
    forward, backward = BEST_FORMS["gpu" if machine.matrix_unit else "cpu"]
    seconds = forward_cost(widths, forward).seconds(machine)
    if direction == "forward+backward":
        seconds += backward_cost(widths, backward).seconds(machine)
    floor = pairs(case) * seconds
    if machine.bytes_per_s:
        floor = max(floor, walk_bytes(case, direction, 2) / machine.bytes_per_s)
    return floor


def walk_bytes(case: Case, direction: str, element: int) -> int:
    """What must move between memory and chip: fields of `element` bytes; w and row_lse in fp32."""
    nodes = case.walks * case.batch * case.nodes
    kept = 4 * (case.classes + 1)  # w, row_lse
    forward = nodes * (element * (case.embed + 3 * case.classes) + kept)  # ψ, y, s in; y⁺ out
    if direction == "forward":
        return forward
    # ψ, y, s, g in; ∂ψ, ∂y, ∂s out
    return forward + nodes * (element * (2 * case.embed + 5 * case.classes) + kept)


def dense_bytes(case: Case, direction: str, element: int) -> int:
    """What the dense formula stores at its peak: S and P of one walk, and for a backward the P of every walk."""
    matrix = case.batch * case.nodes**2 * element
    return matrix * (2 if direction == "forward" else case.walks + 2)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
