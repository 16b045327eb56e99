"""Where one line crosses another for good."""

from __future__ import annotations

from benchmarks.crossover import crossing

OURS = {64: 2.0, 256: 4.0, 1024: 8.0}


def test_between_two_points_on_a_straight_line_through_the_logarithms():
    # behind by a factor of two at 64, ahead by as much at 256: level in the middle, at 128
    assert crossing(OURS, {64: 1.0, 256: 8.0, 1024: 64.0}) == "from N ≈ 130"


def test_the_last_crossing_counts():
    assert crossing(OURS, {64: 4.0, 256: 2.0, 1024: 16.0}) == "from N ≈ 510"


def test_always_never_and_not_known():
    assert crossing(OURS, dict.fromkeys(OURS, 9.0)) == "at every N, 64 to 1024"
    assert crossing(OURS, dict.fromkeys(OURS, 1.0)) == "nowhere up to N = 1024"
    assert crossing(OURS, {128: 1.0}) is None
    # N that only one of them has says nothing
    assert crossing(OURS, {64: 9.0, 65536: 1.0}) == "at every N, 64 to 64"
