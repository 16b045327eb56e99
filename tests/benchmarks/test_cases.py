"""The problems that are measured, which tests/support/cases.py takes as those that are tested."""

from __future__ import annotations

from benchmarks.cases import CASES
from tests.support import cases


def test_a_grid_holds_the_nodes():
    for case in (*CASES.values(), CASES["eval505"].but(nodes=7)):
        assert case.grid[0] * case.grid[1] == case.nodes


def test_tests_lay_out_the_nodes_as_benchmarks_do():
    """Each has a Case of its own, one counting nodes and one holding their grid."""
    assert {name: case.nodes for name, case in cases.PAPER.items()} == {c.name: c.nodes for c in CASES.values()}
