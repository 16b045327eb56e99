"""What is measured is tested: benchmarks and tests have a list each."""

from __future__ import annotations

from benchmarks.cases import CASES
from tests.support import cases


def test_a_grid_holds_the_nodes():
    for case in (*CASES.values(), CASES["eval505"].but(nodes=7)):
        assert case.grid[0] * case.grid[1] == case.nodes


def test_both_lists_have_the_problems_of_the_paper():
    measured = {case.name: (case.batch, case.grid, case.embed, case.classes) for case in CASES.values()}
    tested = {name: (case.batch, case.grid, case.embed, case.classes) for name, case in cases.PAPER.items()}
    assert measured == tested, "a case that is added to benchmarks/cases.py is added to tests/support/cases.py"
