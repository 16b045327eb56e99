"""However the work is cut (tiles, parts, who adds them), the answer is the same; and the cuts themselves are
sound."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from difnet_kernels.backends.triton import split
from difnet_kernels.backends.triton.launch import Card, launch
from difnet_kernels.backends.triton.rows import KNOWN, Case, Launch
from difnet_kernels.backends.triton.split import Split
from difnet_kernels.backends.triton.walk import host, host_backward, prepare, rows, state
from difnet_kernels.backends.triton.walk.plan import Layout, plan_walks
from difnet_kernels.backends.triton.walk.rows import ROWS, select
from tests.triton.interpreted.bounds import assert_right
from tests.triton.interpreted.cascade import problem, run
from tests.triton.interpreted.plans import in_parts

LAUNCHES = (
    Launch(32, 32, 4, 2),
    Launch(64, 32, 4, 2),
    Launch(32, 64, 4, 2),
    Launch(128, 64, 4, 2),
    Launch(64, 64, 4, 2, in_registers=False),
    Launch(64, 16, 4, 2),
)


@pytest.mark.parametrize("tiles", LAUNCHES, ids=str)
def test_every_tile_shape(monkeypatch: pytest.MonkeyPatch, tiles: Launch) -> None:
    monkeypatch.setattr(rows, "select", lambda case: tiles)
    assert_right(problem(1, 21, 129, (16, 3), state=True))


@pytest.mark.parametrize(("parts", "classes", "nodes"), [(2, 21, 139), (3, 21, 67), (5, 21, 83), (3, 150, 35)])
def test_every_number_of_parts(monkeypatch: pytest.MonkeyPatch, parts: int, classes: int, nodes: int) -> None:
    """Parts of one row are added in their order, forward and backward; the last one may be shorter."""
    monkeypatch.setattr(split, "split_columns", in_parts(parts))
    p = problem(1, classes, nodes, (16,), size=6.0)
    first = assert_right(p)
    again = run(p)
    for name, x in first.tensors().items():
        assert torch.equal(x, again.tensors()[name]), name


@pytest.mark.parametrize(("parts", "classes", "nodes"), [(1, 21, 35), (3, 21, 83), (3, 150, 35)])
def test_who_adds_the_parts_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, parts: int, classes: int, nodes: int
) -> None:
    """A program that has all parts of its rows leaves the bits that a program each leave: so an
    image is the same alone, where rows are shared, and in a batch that fills the card."""
    monkeypatch.setattr(rows, "select", lambda case: Launch(32, 16, 4, 2))
    batch = problem(2, classes, nodes, (16, 3), size=6.0, state=True)
    alone = dataclasses.replace(
        batch, seed=batch.seed[:1], psi=[x[:1] for x in batch.psi], grad=batch.grad[:, :1], state=batch.state[:1]
    )
    monkeypatch.setattr(split, "split_columns", in_parts(parts, all_parts=True))
    full = assert_right(batch)
    monkeypatch.setattr(split, "split_columns", in_parts(parts))
    one = run(alone)
    assert torch.equal(one.states, full.states[:, :1])
    assert torch.equal(one.grad_seed, full.grad_seed[:1]) and torch.equal(one.grad_state, full.grad_state[:1])
    assert all(torch.equal(a, b[:1]) for a, b in zip(one.grad_psi, full.grad_psi, strict=True))


def test_a_part_that_never_sees_the_row_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters far apart: most parts of a row hold nothing but weights that underflow."""
    monkeypatch.setattr(split, "split_columns", in_parts(1000))
    p = problem(1, 5, 139, (4,), size=1.0)
    p.psi = [p.psi[0] + 40.0 * torch.eye(4)[torch.arange(139) // 35 % 4].T[None]]
    assert_right(p)


@pytest.mark.parametrize("row_tiles", (1, 13, 32, 80, 128, 512))
@pytest.mark.parametrize("columns", (1, 2, 7, 27, 64, 105, 256))
@pytest.mark.parametrize("processors", (0, 1, 68, 108, 132))
def test_a_plan_covers_every_column_once_and_sums_alike_in_any_batch(
    row_tiles: int, columns: int, processors: int
) -> None:
    for in_registers in (False, True):
        plans = [
            split.split_columns(batch, row_tiles, columns, processors, in_registers=in_registers)
            for batch in (1, 2, 7, 64)
        ]
        for plan in plans:
            assert (plan.parts - 1) * plan.part_tiles < columns <= plan.parts * plan.part_tiles
            assert (plan.parts, plan.part_tiles) == (plans[0].parts, plans[0].part_tiles)
            assert in_registers or not plan.all_parts


def test_small_batches_are_split_and_large_ones_are_not() -> None:
    alone, full = (split.split_columns(batch, 32, 64, 132, in_registers=True) for batch in (1, 16))
    assert alone.parts >= 4 and not alone.all_parts  # one image of 4096 nodes: 32 row tiles for 264 places
    assert full.all_parts  # sixteen of them: the card is full as it is
    assert split.split_columns(1, 1, 1, 132, in_registers=True) == Split(1, 1, True)
    assert split.split_columns(1, 256, 256, 132, in_registers=False).parts == 1  # 16,384 nodes fill it alone


ARCHS = (0, 80, 86, 89, 90, 100, 103, 120, 121)
WIDTHS = [(DP, KP) for DP in (16, 32, 64, 128, 256) for KP in (16, 32, 64, 128) if DP < 256 or KP < 128]
ALL_CASES = [
    Case(kernel, arch, dict(DP=DP, KP=KP, products=products, nodes=nodes))
    for kernel in ("forward", "backward", "wide_forward", "wide_backward")
    for arch in ARCHS
    for DP, KP in WIDTHS
    for products in (1, 3)
    for nodes in (1, 33, 65, 4096)
]


def test_every_case_has_a_row_and_every_row_a_case() -> None:
    chosen = {next(number for number, row in enumerate(ROWS) if row.serves(case)) for case in ALL_CASES}
    assert chosen == set(range(len(ROWS)))


def test_the_last_row_of_a_kernel_serves_every_case() -> None:
    for kernel in ("forward", "backward", "wide_forward", "wide_backward"):
        last = [row for row in ROWS if row.kernel == kernel][-1]
        assert all(last.serves(case) for case in ALL_CASES if case.kernel == kernel)


@pytest.mark.parametrize(("arch", "nearest"), [(87, 86), (95, 90), (110, 100), (130, 120), (200, 120)])
def test_a_newer_card_takes_the_rows_of_the_nearest(
    arch: int, nearest: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the log says so once, for architectures that the rows do not know."""
    monkeypatch.setattr("difnet_kernels.backends.triton.rows._told", set())
    with caplog.at_level(logging.DEBUG, "difnet_kernels"):
        for case in ALL_CASES:
            if case.arch == nearest:
                assert select(dataclasses.replace(case, arch=arch)) == select(case)
    assert len(caplog.records) == (arch not in KNOWN)
    assert all(f"sm_{arch}" in told.getMessage() and f"sm_{nearest}" in told.getMessage() for told in caplog.records)


def test_tiles_divide_their_padding() -> None:
    for tiles in {select(case) for case in ALL_CASES}:
        assert tiles.pad % tiles.rows == 0 and tiles.pad % tiles.cols == 0 and tiles.cols >= 16


@pytest.mark.parametrize("parts", (1, 2), ids=["alone", "parts"])
@pytest.mark.parametrize(
    ("dtype", "embeds", "forward", "backward"),
    [
        (torch.bfloat16, (3,) * 5, 9, 14),
        (torch.float32, (3,) * 5, 10, 15),
        (torch.float32, (3, 3, 9, 3, 3), 14, 19),
    ],
    ids=["bf16", "fp32", "of_two_widths"],
)
def test_the_number_of_launches(
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
    dtype: torch.dtype,
    embeds: tuple[int, ...],
    forward: int,
    backward: int,
) -> None:
    """Of five walks. Forward: two for the state, one for the ψ of all walks that are alike (fp32: two), the walks, one for the
    result. Backward: the classes' scales, the first gradient, those of ψ, two for each walk, one for the results, those of
    the gates included. Whoever adds the parts of a row, it is no launch."""
    names: list[str] = []

    def counted(what: str, *args: object, **options: object) -> None:
        names.append(what)
        launch(what, *args, **options)  # type: ignore[arg-type]

    for module in (prepare, state, host, host_backward):
        monkeypatch.setattr(module, "launch", counted)
    monkeypatch.setattr(rows, "select", lambda case: Launch(32, 16, 4, 2))
    monkeypatch.setattr(split, "split_columns", in_parts(parts))
    p = problem(1, 3, 17, embeds, steps=1)
    p.seed, p.psi, p.grad = p.seed.to(dtype), [x.to(dtype) for x in p.psi], p.grad.to(dtype)
    run(p)
    begins = names.index("class scales", 1)
    assert (begins, len(names) - begins) == (forward, backward), names


def test_psi_of_walks_that_are_alike_are_prepared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no bit depends on who was prepared with whom."""
    p = problem(2, 3, 17, (5, 5, 5, 9), steps=1)
    walks, layout = plan_walks("forward", p.psi, p.seed, p.precision, Card()), Layout.of(p.seed, 32)
    nothing = [None] * 4
    assert prepare.alike(p.psi, nothing, walks, layout, 0) == [range(3), range(3, 4)]
    assert prepare.alike(p.psi, nothing, walks, layout, 1) == [range(1, 3), range(3, 4)]
    assert prepare.alike(p.psi, [p.psi[0][:, 0], None, None, None], walks, layout, 0)[0] == range(1)
    together = run(p).tensors()
    monkeypatch.setattr(prepare, "TOGETHER", 0)
    assert prepare.alike(p.psi, nothing, walks, layout, 0) == [range(t, t + 1) for t in range(4)]
    for name, alone in run(p).tensors().items():
        assert torch.equal(alone, together[name]), name
