"""However the work is cut (tiles, splits, fused or combined), the answer is the same; and the cuts themselves are
sound."""

from __future__ import annotations

import math

import pytest
import torch

from difnet_kernels.backends.triton import launch_rows, split_plan
from difnet_kernels.backends.triton.launch_rows import ROWS, Case, Launch, select
from tests.triton.interpreted.bounds import assert_right
from tests.triton.interpreted.cascade import problem, run

LAUNCHES = (
    Launch(32, 32, 4, 2),
    Launch(64, 32, 4, 2),
    Launch(32, 64, 4, 2),
    Launch(128, 64, 4, 2),
    Launch(64, 64, 4, 2, fused=False),
    Launch(64, 16, 4, 2),
)


@pytest.mark.parametrize("tiles", LAUNCHES, ids=str)
def test_every_tile_shape(monkeypatch: pytest.MonkeyPatch, tiles: Launch) -> None:
    monkeypatch.setattr(launch_rows, "select", lambda case: tiles)
    assert_right(problem(1, 21, 129, (16, 3), state=True))


@pytest.mark.parametrize(("parts", "classes", "nodes"), [(2, 21, 139), (3, 21, 67), (5, 21, 83), (3, 150, 67)])
def test_every_number_of_splits(monkeypatch: pytest.MonkeyPatch, parts: int, classes: int, nodes: int) -> None:
    """Parts of one row are added in a fixed order, forward and backward; the last one may be shorter."""

    def plan(tiles: int, columns: int, processors: int) -> tuple[int, int]:
        per_part = math.ceil(columns / min(parts, columns))
        return math.ceil(columns / per_part), per_part

    monkeypatch.setattr(split_plan, "splits", plan)
    p = problem(1, classes, nodes, (16,), size=6.0)
    first = assert_right(p)
    again = run(p)
    for name, x in first.tensors().items():
        assert torch.equal(x, again.tensors()[name]), name


def test_a_split_that_never_sees_the_row_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters far apart: most parts of a row hold nothing but weights that underflow."""
    monkeypatch.setattr(split_plan, "splits", lambda tiles, columns, processors: (columns, 1))
    p = problem(1, 5, 139, (4,), size=1.0)
    p.psi = [p.psi[0] + 40.0 * torch.eye(4)[torch.arange(139) // 35 % 4].T[None]]
    assert_right(p)


@pytest.mark.parametrize("tiles", (1, 13, 32, 80, 216, 512, 4096))
@pytest.mark.parametrize("columns", (1, 2, 7, 64, 105, 256))
@pytest.mark.parametrize("processors", (0, 1, 68, 108, 132))
def test_a_plan_covers_every_column_once(tiles: int, columns: int, processors: int) -> None:
    parts, per_part = split_plan.splits(tiles, columns, processors)
    assert (parts - 1) * per_part < columns <= parts * per_part


def test_small_batches_are_split_and_large_ones_are_not() -> None:
    assert split_plan.splits(32, 64, 132)[0] >= 4  # one image of 4096 nodes: 32 row tiles for 264 places
    assert split_plan.splits(1, 1, 132)[0] == 1
    assert split_plan.splits(512, 256, 132)[0] <= 2  # four images of 16384 nodes: the card is full as it is


ARCHS = (80, 86, 89, 90, 100, 120)
WIDTHS = [(DP, KP) for DP in (16, 32, 64, 128, 256) for KP in (16, 32, 64, 128) if DP < 256 or KP < 128]
ALL_CASES = [
    Case(kind, arch, DP, KP, products, products, nodes)
    for kind in ("forward", "backward")
    for arch in ARCHS
    for DP, KP in WIDTHS
    for products in (1, 3)
    for nodes in (1, 33, 65, 4096)
]


def test_every_case_has_a_row_and_every_row_a_case() -> None:
    chosen = {next(number for number, row in enumerate(ROWS) if row.serves(case)) for case in ALL_CASES}
    assert chosen == set(range(len(ROWS)))


def test_tiles_divide_their_padding() -> None:
    for launch in {select(case) for case in ALL_CASES}:
        assert launch.pad % launch.rows == 0 and launch.pad % launch.cols == 0 and launch.cols >= 16
