"""The problems that are measured are the problems that are tested."""

from __future__ import annotations

from benchmarks.cases import CASES
from tests.cases import PAPER


def test_benchmarks_and_tests_mean_the_same_by_a_name():
    measured = {name: (case.batch, case.grid, case.embed, case.classes) for name, case in CASES.items()}
    tested = {name: (case.batch, case.grid, case.embed, case.classes) for name, case in PAPER.items()}
    assert measured == tested


def test_a_grid_holds_the_nodes():
    for case in (*CASES.values(), CASES["eval505"].but(nodes=7)):
        assert case.grid[0] * case.grid[1] == case.nodes
