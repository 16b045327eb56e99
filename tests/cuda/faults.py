"""Mistakes that such kernels are known to contain, each as an edit of the sources, and the check that must catch it.

What is shipped knows nothing of this; programs.py plants the edits in a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORWARD, PREPARE, MEMORY = "walk/forward.h", "walk/prepare.h", "memory.h"
COLUMNS, PRODUCT = "walk/columns.h", "product.h"
BACKWARD, GRADIENT = "walk/backward.h", "walk/gradient.h"
PROJECT, PROJECTED, ASKED = "cascade/project.h", "cascade/projected.h", "cascade/projected_arguments.h"
UNIT, TILE, FINISH = "walk/backward_unit.h", "walk/backward_tile.h", "walk/backward_finish.h"

# what a check builds, and what a run that it stops prints
NUMBERS = "numbers"  # an error against fp64, class by class
RACE = "race"  # ThreadSanitizer
BOUNDS = "bounds"  # AddressSanitizer, or the machine's own look at asynchronous copies
DEADLOCK = "deadlock"
LANDED = "landed"  # a copy that nobody waits for
COUNTERS = "counters"  # not zero after a launch
BANKS = "banks"  # conflicts in shared memory
BITS = "bits"  # that depend on who runs when
WORDS = {
    NUMBERS: "WRONG", RACE: "ThreadSanitizer: data race", BOUNDS: "AddressSanitizer", DEADLOCK: "deadlock",
    LANDED: "before its copy of this line has landed", COUNTERS: "a counter is not zero",
}  # fmt: skip

# images classes nodes embed walks dtype high parts together workers
TWO_PARTS = "2 5 130 16 2 0 1 2 0 4"
UNCUT = "2 5 130 16 2 0 1 0 0 4"
TOGETHER = "1 5 200 16 2 0 1 3 1 4"
THREE_PARTS = "1 5 190 16 2 0 1 3 0 4"
FULL = "1 21 192 64 1 0 1 3 0 4"
LAUNCHES = "1 5 70 16 2 0 1 0 0 3"  # in the way of that name
# with Ψ in the launch: images classes grid (three) embed walks dtype high parts together workers; maps of 3, 70, 20 channels
MAPS = "1 3 1 4 18 16 3 0 1 0 0 12"
IN_TURN = "1 3 1 2 5 16 2 0 1 0 0 1"


@dataclass(frozen=True)
class Fault:
    """`edits` (file, old, new); FAULT in `new` is true when this fault is picked. `check` must stop a run of `case`."""

    name: str
    check: str
    edits: tuple[tuple[str, str, str], ...] = field(repr=False)
    case: str = TWO_PARTS

    @property
    def way(self) -> str:
        """What the run does: forward alone, or backward, too, or that with a launch and a gradient for every step,
        or forward with Ψ in the launch."""
        if self.case == LAUNCHES:
            return "launches"
        if self.case in (MAPS, IN_TURN):
            return "projected"
        backwards = any(file in (BACKWARD, GRADIENT, UNIT, TILE, FINISH) for file, _, _ in self.edits)
        return "backward" if backwards else "forward"


def fault(name: str, check: str, file: str, old: str, new: str, case: str = TWO_PARTS, around: str = "{}") -> Fault:
    """One expression `old` that becomes `new`; `around` is the text of its line where `old` alone is not unique."""
    return Fault(name, check, ((file, around.format(old), around.format(f"(FAULT ? ({new}) : ({old}))")),), case)


def dropped(name: str, check: str, file: str, statement: str, case: str = TWO_PARTS, around: str = "{}") -> Fault:
    """One statement that is not executed."""
    return Fault(name, check, ((file, around.format(statement), around.format(f"if (!FAULT) {statement}")),), case)


FAULTS = (
    # ---- barriers, waits, flags
    dropped("no barrier before a tile is used", RACE, COLUMNS, "barrier();", around="{}  // this tile is here"),
    dropped("no barrier behind the wait for the first tile", RACE, COLUMNS, "barrier();",
            around="    }}\n    {}\n  }}\n  int left"),
    dropped("copies are not waited for", LANDED, COLUMNS, "wait_for_copies();"),
    dropped("no barrier before a flag is released", RACE, FORWARD, "barrier();", around="{}\n    if (t + 1 < c.walks"),
    dropped("no barrier before a part arrives", RACE, FORWARD, "barrier();",
            around="{}\n    if (thread() == 0) memory.before"),
    fault("a part arrives without release", RACE, FORWARD, "add_acquire_release(arrived(c, image, row_tile), 1)",
          "add_relaxed(arrived(c, image, row_tile), 1)"),
    fault("a flag without release", RACE, FORWARD, "add_release(ready(c, t + 1, image, row_tile), 1)",
          "void(add_relaxed(ready(c, t + 1, image, row_tile), 1))"),
    Fault("a flag is released too early", RACE, (
        (FORWARD, "    const int64_t next_y = first_y(t + 1);\n",
         "    const int64_t next_y = first_y(t + 1);\n"
         "    if (FAULT && t + 1 < c.walks && thread() == 0) add_release(ready(c, t + 1, image, row_tile), 1);\n"),
        (FORWARD, "if (t + 1 < c.walks && thread() == 0)", "if (!FAULT && t + 1 < c.walks && thread() == 0)"),
    )),
    fault("one of two inputs suffices", RACE, MEMORY, "load_acquire(counter) < count",
          "load_acquire(counter) < (count + 1) / 2"),
    fault("nobody looks whether tiles are there", RACE, COLUMNS, "is_ready(counter(tile)) && mine", "mine"),
    dropped("no wait for the next tile", RACE, COLUMNS, "wait_until_ready(counter(next / kTilesOfRows));", UNCUT),
    fault("no wait for the centre", RACE, PREPARE, "thread() == 0", "false", around="if ({}) wait_for(measured("),
    Fault("a row tile of psi does not arrive", DEADLOCK, (
        (PREPARE, "  hand_over(c, t, image, row_tile);", "  if (!FAULT || row_tile != 1) hand_over(c, t, image, row_tile);"),
    )),
    dropped("no barrier before psi is handed over", RACE, MEMORY, "barrier();",
            around="{}\n  if (thread() == 0) add_release(ready(c, t, image, row_tile), 1);"),
    dropped("the count of parts is not reset", NUMBERS, FORWARD, "*arrived(c, image, row_tile) = 0;", THREE_PARTS),
    fault("the last but one part finishes", RACE, FORWARD, "uint32_t(c.split.parts - 1)",
          "uint32_t(c.split.parts - 2)", THREE_PARTS),
    fault("counters are left as they are", COUNTERS, MEMORY, "uint32_t(blocks() - 1)", "uint32_t(blocks())"),
    fault("a shuffle in a branch", DEADLOCK, FORWARD, "shuffle(sums.total[kWidth / 8 - 1][1], lane() | 3)",
          "inside ? shuffle(1.0f, lane() | 3) : 1.0f"),
    fault("walks share one buffer of y", RACE, FORWARD, "((c.first_walk + walk) & 1)", "0"),
    fault("a stage is refilled while it is read", RACE, COLUMNS, "(left + 1) % 2", "left % 2"),
    # ---- tiles and fragments
    fault("a stage too far", NUMBERS, FORWARD, "memory.stage[stage]", "memory.stage[1 - stage]",
          around="sigma, {}"),
    fault("fragments of psi swapped", NUMBERS, PRODUCT, "second[half][0] = b[2]", "second[half][0] = b[3]"),
    fault("y is not transposed", NUMBERS, PRODUCT,
          "ldmatrix4_transposed(b, rows[half] + chunk_at<kWidth>(node, n + me / 16))",
          "ldmatrix4(b, rows[half] + chunk_at<kWidth>(node, n + me / 16))"),
    fault("chunks are permuted on one side", NUMBERS, MEMORY,
          "chunk_at<kWidth>(at / (kWidth / 8), at % (kWidth / 8))", "at * 8"),
    dropped("chunks are not permuted", BANKS, MEMORY, "chunk ^= row & 7;"),
    fault("columns of a part are left out", LANDED, COLUMNS, "left > 0", "left > 1",
          UNCUT, "; {}; --left)"),
    fault("columns do not wrap around", BOUNDS, COLUMNS, "tile + 1 < end() ? tile + 1 : begin()", "tile + 1", UNCUT),
    # ---- sums
    fault("sums are not rescaled", NUMBERS, FORWARD, "rescale[e / 2]", "1.0f"),
    fault("parts are added without their maxima", NUMBERS, FORWARD, "exp2_fast(to.peak[half] - higher)", "1.0f",
          TOGETHER),
    Fault("parts are added as they come", BITS, (
        (FORWARD, "for (int other = 0; other < c.split.parts; ++other) {",
         "for (int turn = 0; turn < c.split.parts; ++turn) {\n"
         "      const int other = FAULT ? (turn + part) % c.split.parts : turn;"),
        (FORWARD, "if (other == 0)", "if (turn == 0)"),
    ), THREE_PARTS),
    fault("the seed is forgotten", NUMBERS, FORWARD, "(1.0f - mu)", "0.0f"),
    fault("the state is forgotten", NUMBERS, FORWARD, "(1.0f - beta)", "0.0f"),
    fault("y is not scaled again", NUMBERS, FORWARD, "after * scale", "after"),
    fault("scales of the first image for all", NUMBERS, FORWARD, "c.scale[image * kWidth + k]", "c.scale[k]"),
    dropped("low halves on the right are left out", NUMBERS, PRODUCT, "mma(small, a[0], b[1][0], b[1][1]);"),
    dropped("low halves on the left are left out", NUMBERS, PRODUCT, "mma(small, a[1], b[0][0], b[0][1]);"),
    # ---- the bias and lse
    fault("the bias of a column is forgotten", NUMBERS, PREPARE, "c.column_bias[t] == nullptr", "true"),
    fault("the bias of the first image for all", NUMBERS, PREPARE, "int64_t(image) * c.nodes + node", "node"),
    fault("a row whose own column is out starts there", NUMBERS, PREPARE, "bias == -kInfinity", "false",
          around="c.nodes ? 0.0f : {} ?"),
    fault("lse without its row term", NUMBERS, FORWARD, "c.row_term[first_psi() + in_image]", "0.0f"),
    # ---- memory
    fault("padding is written", BOUNDS, FORWARD, "k < c.classes && inside", "k < c.classes"),
    fault("one node too many is read", BOUNDS, MEMORY, "row(at) < end - first", "row(at) <= end - first"),
    fault("one chunk too many is copied", BOUNDS, FORWARD, "thread() < kTile / 4", "thread() <= kTile / 4"),
    fault("a channel too many is read", BOUNDS, MEMORY, "channel(at) < field.channels", "channel(at) <= field.channels"),
    # ---- backward: barriers, waits, flags
    dropped("backward: a unit is taken while one is at work", RACE, UNIT, "barrier();",
            around="{}  // the unit before is done with"),
    dropped("backward: no barrier before a part arrives", RACE, BACKWARD, "barrier();",
            around="{}\n    if (thread() == 0) memory.before"),
    dropped("backward: no barrier behind the number of a unit", RACE, UNIT, "barrier();",
            around="nodes}};\n  }}\n  {}"),
    # where a unit's own columns come last: else the loop itself orders what they leave
    dropped("backward: no barrier behind the columns", RACE, BACKWARD, "barrier();", THREE_PARTS,
            around="{}  // P_ii and A_ii are there"),
    dropped("backward: no barrier before the gradient of psi", RACE, FINISH, "barrier();",
            around="{}\n      finish_psi("),
    dropped("backward: no barrier behind the gradient of psi", RACE, FINISH, "barrier();",
            around="{}\n    leave_rows<kWidth>("),
    dropped("backward: no barrier before the gradient of the state", RACE, FINISH, "barrier();",
            around="{}\n    finish_moved("),
    dropped("backward: no barrier behind the count of parts", RACE, BACKWARD, "barrier();",
            around="{}\n    if (memory.before !="),
    dropped("backward: a part begins while one is at work", RACE, BACKWARD, "barrier();", TOGETHER,
            around="{}\n      if (thread() == 0) ++memory.unit.part;"),
    dropped("backward: no barrier behind the number of a part", RACE, BACKWARD, "barrier();", TOGETHER,
            around="++memory.unit.part;\n      {}"),
    fault("backward: a part arrives without release", RACE, BACKWARD, "add_acquire_release(arrived(c, image(), row_tile()), 1)",
          "add_relaxed(arrived(c, image(), row_tile()), 1)"),
    fault("backward: the last but one part finishes", RACE, BACKWARD, "uint32_t(c.split.parts - 1)",
          "uint32_t(c.split.parts - 2)", THREE_PARTS),
    dropped("backward: the count of parts is not reset", NUMBERS, BACKWARD, "*arrived(c, image(), row_tile()) = 0;",
            THREE_PARTS),
    dropped("backward: no barrier before the sums of rows", RACE, GRADIENT, "barrier();",
            around="{}\n    find_reach(lse_grad, lse + bias);"),
    dropped("backward: no barrier before the units", RACE, GRADIENT, "barrier();", around="{}\n    const auto both"),
    dropped("backward: no barrier before h", RACE, GRADIENT, "barrier();",
            around="{}\n    split_h(power_of_two(exponent));"),
    dropped("backward: no barrier before delta", RACE, GRADIENT, "barrier();", around="{}\n    if (me < kRows) {{"),
    dropped("backward: no barrier behind the wait for psi", RACE, GRADIENT, "barrier();",
            around="{}\n    state_and_gates();"),
    # where the gradient of a step is added to that of the launch before, by threads that others staged it for
    dropped("backward: no barrier behind the gradient of a step", RACE, GRADIENT, "barrier();", LAUNCHES,
            around="{}\n    if (!first || given.data"),
    fault("backward: a launch forgets that of the launch before", NUMBERS, GRADIENT, "first || !inside", "true", LAUNCHES),
    fault("backward: a launch forgets the gradient of its step", NUMBERS, GRADIENT, "given.data == nullptr", "true", LAUNCHES,
          around="g = ({} ? 0.0f"),
    fault("backward: no wait for psi of its own rows", RACE, GRADIENT, "me == 0", "false",
          around="if ({}) wait_for(ready(c, t,"),
    Fault("backward: walks share one buffer", RACE, (
        (UNIT, "((c.first_walk + t) & 1)", "(FAULT ? 0 : ((c.first_walk + t) & 1))"),
        (GRADIENT, "((c.first_walk + t) & 1)", "(FAULT ? 0 : ((c.first_walk + t) & 1))"),
    ), "2 5 130 16 3 0 1 2 0 4"),
    fault("backward: the buffer of the other walk", NUMBERS, UNIT, "((c.first_walk + t) & 1)",
          "((c.first_walk + t + 1) & 1)"),
    fault("backward: walks in the order of the forward", DEADLOCK, UNIT, "c.walks - 1 - images / c.images",
          "images / c.images"),
    # ---- backward: equations
    fault("backward: no transposed term", NUMBERS, TILE,
          "fma(back[part][e] * pair.of_columns, product[part].sum(e), T[part][e])", "T[part][e]"),
    fault("backward: delta is forgotten", NUMBERS, GRADIENT, "lse_grad * power_of_two(exponent) - delta",
          "lse_grad * power_of_two(exponent)"),
    fault("backward: the gradient of lse is forgotten", NUMBERS, GRADIENT, "lse_grad * power_of_two(exponent) - delta",
          "-delta"),
    dropped("backward: the node itself stays in the sums", NUMBERS, TILE, "step.take_out(look, back);",
            around="if (diagonal) {}"),
    fault("backward: no diagonal in the gradient of psi", NUMBERS, FINISH, "2.0f * itself * psi", "0.0f"),
    fault("backward: no diagonal in the sum of a row", NUMBERS, FINISH, "2.0f * itself", "itself",
          around="looked[row] + {};"),
    fault("backward: no diagonal in the gradient of the state", NUMBERS, FINISH, "own * g", "0.0f"),
    fault("backward: the centre is forgotten", NUMBERS, FINISH, "looked * centre[channel]", "0.0f"),
    fault("backward: one exponential out of range", NUMBERS, TILE, "pair.one_exponential", "true",
          around="if ({})"),
    fault("backward: the bias of a row is forgotten", NUMBERS, TILE, "own.bias[e / 2]", "0.0f"),
    fault("backward: the level of a column is forgotten", NUMBERS, TILE, "drop.x[e % 2]", "1.0f"),
    fault("backward: the level of a row is forgotten", NUMBERS, TILE, "pair.rise[e / 2]", "8192.0f"),
    fault("backward: units of rows are not met", NUMBERS, TILE, "unit - ours + kTransposedShift",
          "kTransposedShift"),
    fault("backward: units of columns are not met", NUMBERS, TILE, "unit - theirs", "0"),
    fault("backward: one unit for all classes", NUMBERS, TILE, "(k + part) * 8 + lane() % 4 * 2", "0",
          around="tile.tile + {})"),
    fault("backward: g of the walk behind is forgotten", NUMBERS, FINISH, "(1.0f - beta) * g", "0.0f"),
    fault("backward: the state of one walk less", NUMBERS, GRADIENT, "earlier < walk", "earlier < walk - 1"),
    fault("backward: the state without its seed", NUMBERS, GRADIENT, "(1.0f - c.mu[earlier]) * s", "0.0f"),
    fault("backward: the share of the seed is forgotten", NUMBERS, GRADIENT, "beta * (1.0f - mu) * g", "0.0f"),
    fault("backward: the first state is not the seed", NUMBERS, GRADIENT, "c.has_state ? 0.0f : g", "0.0f"),
    fault("backward: the last row tile has no part in the gates", NUMBERS, GRADIENT, "at < tiles", "at < tiles - 1"),
    Fault("backward: parts are left out", NUMBERS, (
        (BACKWARD, "for (int other = 1;", "for (int other = FAULT ? 2 : 1;"),
    ), THREE_PARTS),
    fault("backward: sums so far are left out", NUMBERS, BACKWARD, "before.x[e] + x[e]", "x[e]", TOGETHER),
    fault("backward: a channel too many is written", BOUNDS, FINISH, "channel < to.channels",
          "channel <= to.channels"),
    fault("backward: padding is read", BOUNDS, GRADIENT, "k < c.classes && node() < c.nodes", "k < c.classes",
          around="if ({}) {{\n        const float g"),
    # ---- Ψ in the launch: what it adds to Ψ's own kernels, whose faults are those of projection_faults.py
    fault("projected: no wait for psi", RACE, PROJECT, "thread() == 0", "false", MAPS, "if ({}) wait_for(projected("),
    fault("projected: one row tile of psi is enough", RACE, PROJECT, "c.row_tiles", "1", MAPS),
    dropped("projected: no barrier before psi arrives", RACE, PROJECT, "barrier();", MAPS, "{}  // ψ is there"),
    Fault("projected: a row tile of psi does not arrive", DEADLOCK, (
        (PROJECT, "if (thread() == 0) add_release(projected(",
         "if (thread() == 0 && !(FAULT && memory.first_node > 0)) add_release(projected("),
    ), MAPS),
    fault("projected: psi arrives without release", RACE, PROJECT, "add_release(projected(c, t, memory.image), 1)",
          "(void)add_relaxed(projected(c, t, memory.image), 1)", MAPS),
    fault("projected: nobody waits for W", RACE, PROJECT, "thread() == 0", "false", MAPS, "if ({})\n      wait_for(prepared("),
    fault("projected: one unit of W is enough", RACE, PROJECT, "kWeightUnits", "1", MAPS, "has_halves() ? {} :"),
    dropped("projected: no barrier before W arrives", RACE, PROJECT, "barrier();", MAPS, "{}  // the rows are there"),
    fault("projected: W arrives without release", RACE, PROJECT, "add_release(prepared(c, t), 1)",
          "(void)add_relaxed(prepared(c, t), 1)", MAPS),
    fault("projected: W of few channels is waited for", DEADLOCK, PROJECT, "has_halves()", "true", MAPS,
          "wait_for(prepared(c, t), {}"),
    fault("projected: units of W are all of the first walk", DEADLOCK, PROJECTED, "at / kUnits", "0", MAPS),
    fault("projected: a walk stands before its psi", DEADLOCK, PROJECTED, "stage - 3", "stage - 1", IN_TURN,
          "passes({}, c.of_walk.tiles"),
    dropped("projected: the next unit is told while this one is read", RACE, PROJECTED, "barrier();", MAPS,
            "{}  // all have read which unit this is"),
    dropped("projected: z leaves while a chunk is read", RACE, PROJECT, "barrier();", MAPS, "{}  // the last chunk is read"),
    dropped("projected: no barrier behind z", RACE, PROJECT, "barrier();", MAPS, "{}  // z is there"),
    fault("projected: the counters of W are left as they are", COUNTERS, PROJECT, "prepared(c, c.walks)", "prepared(c, 0)",
          MAPS),
    fault("projected: the counters of psi are left as they are", COUNTERS, PROJECT, "prepared(c, c.walks)",
          "projected(c, 0, 0)", MAPS),
    fault("projected: walks share one place of psi", RACE, ASKED, "int64_t(t) * c.images * c.nodes * with.embed", "0", MAPS),
    fault("projected: W has half of its place", BOUNDS, ASKED, "weight_halves_count(psi.features.channels, psi.embed)",
          "weight_halves_count(psi.features.channels, psi.embed) / 2", MAPS),
    fault("projected: every walk has the maps of the first", NUMBERS, PROJECT, "c.level[t]", "c.level[0]", MAPS),
    fault("projected: every row tile is the first", NUMBERS, PROJECT, "row_tile * kRows", "0", MAPS),
    fault("projected: the sign of the slope is forgotten", NUMBERS, PROJECT, "of(level.psi.slope, d, 1.0f)",
          "magnitude(of(level.psi.slope, d, 1.0f))", MAPS),
    fault("projected: the offset is forgotten", NUMBERS, PROJECT, "of(level.offset, d, 0.0f)", "0.0f", MAPS),
    fault("projected: the mean is forgotten", NUMBERS, PROJECT, "of(level.mean, d, 0.0f)", "0.0f", MAPS),
    fault("projected: the variance is forgotten", NUMBERS, PROJECT, "level.variance.data != nullptr", "false", MAPS),
    fault("projected: eps is forgotten", NUMBERS, PROJECT, "level.eps", "0.0f", MAPS),
    fault("projected: the shift is forgotten", NUMBERS, PROJECT, "of(level.shift, d, 0.0f)", "0.0f", MAPS),
    fault("projected: the scale of the logits is forgotten", NUMBERS, PROJECT, "c.root", "1.0f", MAPS),
    fault("projected: a node that does not exist has an embedding", NUMBERS, PROJECT, "c.column_bias[t] == nullptr", "true",
          MAPS, "bool exists = {}"),
    fault("projected: nodes past the last are there", BOUNDS, PROJECT, "memory.first_node + row < c.nodes", "true", MAPS),
    fault("projected: a channel too many is written", RACE, PROJECT, "d >= level.psi.embed", "d > level.psi.embed", MAPS),
)  # fmt: skip
