"""Seeded faults of Ψ's kernels, as faults.py has those of a cascade."""

from __future__ import annotations

from tests.cuda.faults import BANKS, BOUNDS, COUNTERS, DEADLOCK, LANDED, NUMBERS, RACE, dropped, fault

WINDOWS, TILE = "projection/windows.h", "projection/tile.h"
POOL, FORWARD = "projection/pool.h", "projection/forward.h"
GRADIENT, GRADIENTS, BACKWARD = "projection/gradient.h", "projection/gradients.h", "projection/backward.h"

# images channels embed Z Y X OZ OY OX dtype statistics round_tiles workers: three chunks, tiles and rounds; overlaps
WIDE = "2 70 64 1 9 13 1 4 6 0 1 1 3"
MANY = f"{WIDE.rpartition(' ')[0]} 16"  # so many blocks that few orders follow from others
NARROW = "1 6 16 2 9 13 1 5 6 0 1 2 4"

FAULTS = (
    # ---- barriers, waits, flags
    dropped("no barrier before a chunk is used", RACE, TILE, "barrier();", WIDE, around="wait_for_copies();\n      {}"),
    dropped("copies of W are not waited for", LANDED, TILE, "wait_for_copies();", WIDE),
    fault("a stage is refilled while it is read", RACE, TILE, "stage ^ 1", "stage", WIDE, around="fetch(spot.at, chunk, {})"),
    dropped("no barrier behind the units of W", RACE, TILE, "barrier();", WIDE,
            around="    {}\n  }}\n\n  // ---- features"),
    fault("nobody waits for W", RACE, FORWARD, "thread() == 0", "false", WIDE, around="if ({}) wait_for("),
    dropped("no barrier before W is handed over", RACE, FORWARD, "barrier();", WIDE,
            around="{}\n      if (thread() == 0) add_release("),
    dropped("rows leave while chunks are read", RACE, FORWARD, "barrier();", WIDE, around="{}\n  pooled.leave_rows"),
    dropped("no barrier before rows are written", RACE, FORWARD, "barrier();", WIDE,
            around="memory.rows.position);\n  {}"),
    dropped("no barrier between two sums", RACE, FORWARD, "barrier();", WIDE, around="{}\n  pooled.add_up(pooled.squares)"),
    fault("a tile arrives without release", RACE, FORWARD, "add_acquire_release(c.counters + 2 + group, 1)",
          "add_relaxed(c.counters + 2 + group, 1)", WIDE),
    fault("counters of Ψ are left", COUNTERS, FORWARD, "2 + int64_t(c.groups)", "1", WIDE, around="leave(c.counters, {},"),
    fault("∂z is not waited for", RACE, BACKWARD, "c.round_tiles", "0", WIDE,
          around="wait_for(made(c, round), {},"),
    fault("∂z is written while it is read", RACE, BACKWARD, "of_features + of_weight", "0", MANY,
          around="wait_for(used(c, round - kSlots), {},"),
    dropped("∂z of a tile does not arrive", DEADLOCK, BACKWARD, "if (thread() == 0) add_release(made(c, round), 1);", WIDE),
    dropped("no barrier before ∂z is handed over", RACE, BACKWARD, "barrier();", WIDE,
            around="memory.pixels, round, at);\n      {}"),
    fault("parts arrive without release", RACE, GRADIENTS, "add_acquire_release(counter, 1)", "add_relaxed(counter, 1)", WIDE),
    dropped("no barrier before ∂zᵀ is used", RACE, GRADIENTS, "barrier();", WIDE,
            around="{}\n#pragma unroll 1\n    for (int k = 0; k < kSteps"),
    dropped("W is refilled while it is read", RACE, GRADIENTS, "barrier();", WIDE, around="{}\n    if (chunk + 1 < end)"),
    # ---- fragments, units, sums
    fault("a low half is left out", NUMBERS, TILE, "is_finite(small[e]) ? small[e] : 0.0f", "0.0f", WIDE),
    fault("the unit of the other row", NUMBERS, TILE, "unit[e / 2]", "unit[1 - e / 2]", WIDE, around="fma(product[e], {},"),
    fault("W is not transposed", NUMBERS, GRADIENTS, "first_column / 8 + n * 2 + me / 16",
          "first_column / 8 + n * 2 + 1 - me / 16", WIDE),
    fault("chunks are not permuted", BANKS, TILE, "eight ^ (row >> 1 & 3)", "eight", WIDE),
    fault("the last chunk is forgotten", NUMBERS, TILE, "(psi.features.channels + kChunk - 1) / kChunk",
          "psi.features.channels / kChunk", WIDE, around="const int chunks = {};"),
    fault("the last of equals wins where the slope is zero", NUMBERS, TILE, "slope == 0.0f", "false", NARROW),
    fault("every slope is positive", NUMBERS, TILE, "slope < 0.0f", "false", WIDE, around="= {} ? -1.0f"),
    fault("windows end where the next begins", NUMBERS, WINDOWS, "(int64_t(node + 1) * pixels + nodes - 1) / nodes",
          "int64_t(node + 1) * pixels / nodes", WIDE),
    fault("pixels of two windows count twice", NUMBERS, POOL, "offset[axis] < window.step", "true", WIDE),
    fault("the first tile of a group alone", NUMBERS, FORWARD, "n < many", "n < 1", WIDE,
          around="n = 0; {}; ++n) {{\n    const float* one = from + n * kMoments * kEmbed;\n    count +="),
    fault("the rest of a tile's mean is forgotten", NUMBERS, FORWARD, "one[2 * kEmbed]", "0.0f", WIDE),
    fault("the gradient of all windows", NUMBERS, GRADIENT, "which[at] == pixel", "true", WIDE),
    fault("z without its mean", NUMBERS, GRADIENT, "(z - c.mean[d])", "z", WIDE),
    fault("a round is left out", NUMBERS, GRADIENTS, "n < c.rounds", "n < c.rounds - 1", WIDE),
    fault("the unit of a pixel is left out", NUMBERS, GRADIENTS, "of_features.x[e % 2]", "1.0f", WIDE),
    # ---- bounds
    fault("a channel of f too many", BOUNDS, TILE, "c < left", "c <= left", WIDE, around="keep(c, {} ?"),
    fault("a row of W too many", BOUNDS, TILE, "row < psi.embed", "true", NARROW.replace(" 6 16 ", " 20 16 ")),
    fault("a pixel of ∂f too many", BOUNDS, GRADIENTS, "pixel < pixels_of(c)", "true", WIDE,
          around="memory.place[thread()] = {} ?"),
)  # fmt: skip
