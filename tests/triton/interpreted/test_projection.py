"""The Triton kernels compute Ψ1-Ψ4: interpreted on the CPU, against torch's layers in fp64 and autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difnet_kernels.backends import triton as triton_backend
from difnet_kernels.backends.triton.projection import host, rows
from difnet_kernels.backends.triton.projection.rows import ROWS
from difnet_kernels.backends.triton.rows import Case, Launch
from difnet_kernels.problem import Projection
from tests.support.tolerances import assert_within
from tests.triton.interpreted.projection import (
    ADDED_IN_ANOTHER_ORDER,
    LARGE_MEAN,
    ONE_PIXEL,
    SPREAD_OF_A_LARGE_MEAN,
    assert_right,
    projection,
    run,
    truth,
)

# (size, grid, channels, batch): ragged, identity, larger than the input, one window, ranks one to three
SHAPES = (
    ((9,), (4,), 3, 2),
    ((7,), (5,), 17, 2),
    ((3,), (8,), 3, 1),
    ((9, 9), (4, 4), 17, 1),
    ((9, 9), (4, 4), 3, 2),
    ((6, 7), (6, 7), 17, 2),
    ((12, 8), (4, 4), 3, 1),
    ((4, 5), (7, 6), 3, 1),
    ((4, 5), (7, 6), 17, 1),
    ((5, 4), (1, 1), 17, 1),
    ((11, 5), (1, 1), 3, 1),
    ((1, 1), (3, 2), 17, 2),
    ((5, 4, 3), (2, 4, 2), 3, 1),
    ((3, 2, 4), (2, 2, 3), 17, 1),
    ((2, 3, 2), (3, 2, 4), 3, 2),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_and_gradient_is_right(shape: tuple[tuple[int, ...], tuple[int, ...], int, int]) -> None:
    size, grid, channels, batch = shape
    assert_right(projection(size, grid, channels, batch=batch))


@pytest.mark.parametrize("channels", (1, 2, 4, 5, 16, 40, 64, 130))
def test_every_number_of_channels(channels: int) -> None:
    """Up to four by multiply-adds; then chunks, the last one ragged or full."""
    assert_right(projection((5, 6), (3, 4), channels))


@pytest.mark.parametrize(
    ("embed", "channels"), [(1, 3), (16, 3), (64, 3), (200, 3), (1, 20), (16, 20), (33, 20), (64, 20), (130, 20)]
)
def test_every_width_of_psi(embed: int, channels: int) -> None:
    assert_right(projection((4, 3), (2, 3), channels, embed))


@pytest.mark.parametrize("channels", (3, 20))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=["fp16", "bf16"])
def test_16_bit_features(dtype: torch.dtype, channels: int) -> None:
    """bf16 passes through fp32 here, because the interpreter misreads it; the values are bf16's."""
    p = projection(channels=channels, dtype=dtype)
    answer = assert_right(p.but(grad_peak=p.grad_peak.to(dtype)))
    assert answer.grad_features.dtype == dtype and answer.peak.dtype == torch.float32


@pytest.mark.parametrize("channels", (3, 20))
@pytest.mark.parametrize("kept", ("both", "mean", "variance", "neither"))
def test_gradients_of_the_wanted_statistics(kept: str, channels: int) -> None:
    p = projection((5, 6), (3, 4), channels)
    assert_right(
        p.but(
            grad_mean=p.grad_mean if kept in ("both", "mean") else None,
            grad_variance=p.grad_variance if kept in ("both", "variance") else None,
        )
    )


@pytest.mark.parametrize("slope", (None, 1.0, -1.0, 0.0, float("nan")), ids=str)
@pytest.mark.parametrize("channels", (3, 17))
def test_the_sign_of_the_slope_decides(slope: float | None, channels: int) -> None:
    p = projection((5, 6), (3, 4), channels)
    assert_right(p.but(slope=None if slope is None else torch.full((5,), slope)))


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _sliced(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    wide[..., 1 : 1 + 2 * x.shape[-1] : 2] = x
    return wide[..., 1 : 1 + 2 * x.shape[-1] : 2]


@pytest.mark.parametrize("channels", (3, 17, 32), ids=["narrow", "ragged", "even"])
@pytest.mark.parametrize("layout", (_channels_last, _sliced))
def test_strides_change_nothing(layout, channels: int) -> None:  # type: ignore[no-untyped-def]
    """Features, gradients and outputs in another layout give the same bits, where the interpreter's own matrix product
    does (a transposed operand is added up in another order there)."""
    p = projection((5, 6), (3, 4), channels, batch=2)
    q = p.but(features=layout(p.features), grad_peak=layout(p.grad_peak))
    ours, theirs = run(p).tensors(), run(q).tensors()
    for name, expected in ours.items():
        if layout is _channels_last and channels > 4 and name != "position":
            assert_within(name, theirs[name], expected, ADDED_IN_ANOTHER_ORDER)
        else:
            assert torch.equal(expected, theirs[name]), name


@pytest.mark.parametrize("channels", (3, 17))
@pytest.mark.parametrize("keep", (0, 1, 2, 3), ids=["batch", "channels", "rows", "columns"])
def test_expanded_features_and_gradients_are_read_with_stride_zero(keep: int, channels: int) -> None:
    p = projection((5, 6), (3, 4), channels, batch=2)
    q = p.but(
        features=p.features.narrow(keep, 0, 1).expand_as(p.features),
        grad_peak=p.grad_peak.narrow(keep, 0, 1).expand_as(p.grad_peak),
    )
    dense = q.but(features=q.features.contiguous(), grad_peak=q.grad_peak.contiguous())
    ours = run(q, grad_features=torch.empty(2, channels, 1, 5, 6)).tensors()
    for name, expected in run(dense).tensors().items():
        assert torch.equal(expected, ours[name]), name


@pytest.mark.parametrize("channels", (2, 17))
@pytest.mark.parametrize("slope", (1.0, -1.0))
def test_the_first_of_equals_wins(slope: float, channels: int) -> None:
    """Features of few values: nearly every window has several best pixels."""
    p = projection((8, 9), (3, 2), channels, training=False)
    p = p.but(features=(p.features > 0.5).float(), weight=p.weight.sign(), slope=torch.full((5,), slope))
    assert_right(p)


@pytest.mark.parametrize("channels", (3, 17))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_what_is_not_finite_wins_as_in_torch(value: float, channels: int) -> None:
    p = projection((9, 7), (3, 4), channels, batch=2, training=False)
    slope = torch.tensor([1.0, -0.7, 0.4, 0.2, -2.0])
    features = p.features.clone()
    features[0, 1, 3, 2] = value
    features[0, 0, 7, 5] = value
    q = p.but(features=features, slope=slope)
    ours, true = run(q), truth(q)
    assert torch.equal(ours.position.long(), true.position)
    assert torch.equal(ours.peak.isnan(), true.peak.isnan())
    assert torch.equal(ours.peak.isinf(), true.peak.isinf())
    infinite = true.peak.isinf()
    assert torch.equal(ours.peak[infinite].double(), true.peak[infinite])
    clean = run(p.but(slope=slope))
    assert torch.equal(ours.peak[1], clean.peak[1])
    assert torch.equal(ours.grad_features[1], clean.grad_features[1])


@pytest.mark.parametrize("channels", (3, 20))
def test_the_variance_survives_a_large_mean(channels: int) -> None:
    """|mean| is 10³ times the spread; a sum of squares in fp32 would have no digit left."""
    p = projection((19, 12), (7, 3), channels, offset=0.0)
    weight = p.weight.abs() + 0.1
    p = p.but(features=p.features * 1e-3 + 1.0, weight=weight)
    ours, true = run(p), truth(p)
    assert ours.mean is not None and ours.variance is not None and true.mean is not None and true.variance is not None
    assert (true.mean.abs() / true.variance.sqrt()).min() > 500
    assert_within("mean", ours.mean, true.mean, LARGE_MEAN)
    assert_within("variance", ours.variance, true.variance, SPREAD_OF_A_LARGE_MEAN)


@pytest.mark.parametrize("scale", (1e-30, 1e-6, 1e6, 1e30))
@pytest.mark.parametrize("channels", (3, 17))
def test_features_of_any_unit(scale: float, channels: int) -> None:
    p = projection((5, 6), (3, 4), channels, training=False)
    assert_right(p.but(features=p.features * scale))


def test_pixels_and_channels_of_different_units_keep_their_precision() -> None:
    p = projection((4, 4), (4, 4), 20, training=False)
    units = 10.0 ** torch.arange(-8.0, 8.0).reshape(1, 1, 4, 4)
    q = p.but(features=p.features * units, weight=p.weight * 10.0 ** torch.arange(-4.0, 6.0, 2.0)[:, None])
    ours, true = run(q), truth(q)
    for d in range(5):
        for y in range(4):
            for x in range(4):
                at = (slice(None), d, 0, y, x)
                assert_within(f"peak {d} {y} {x}", ours.peak[at], true.peak[at], ONE_PIXEL)


@pytest.mark.parametrize("channels", (3, 20))
def test_an_image_alone_is_the_image_in_a_batch(channels: int) -> None:
    p = projection((5, 6), (3, 4), channels, batch=2)
    whole = run(p)
    for b in range(2):
        one = run(p.but(features=p.features[b : b + 1], grad_peak=p.grad_peak[b : b + 1]))
        assert torch.equal(one.peak[0], whole.peak[b]) and torch.equal(one.position[0], whole.position[b])


@pytest.mark.parametrize("channels", (3, 20))
def test_blocks_and_ranges_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """Many blocks of pixels through a small scratch, many parts of grad_weight, as in a large image."""
    p = projection((13, 11), (5, 3), channels, batch=2)
    monkeypatch.setattr(host, "SCRATCH", 64 * 16 * 2)
    monkeypatch.setattr(host, "PROGRAMS", 3)
    assert_right(p)


NARROW_TILES = {(True, row.launch.cols, 0) for row in ROWS if row.kernel.startswith("narrow")}
WIDE_TILES = {
    (False, row.launch.cols, chunk)
    for row in ROWS
    if not row.kernel.startswith("narrow")
    for DP, chunk in rows.CHUNKS.items()
    if row.most.get("DP", DP) >= DP
}


@pytest.mark.parametrize("tile", sorted(NARROW_TILES | WIDE_TILES), ids=str)
def test_every_tile_of_the_table(monkeypatch: pytest.MonkeyPatch, tile: tuple[bool, int, int]) -> None:
    narrow, pixels, chunk = tile
    monkeypatch.setattr(rows, "select", lambda case: Launch(0, pixels, 4, 2))
    if not narrow:
        monkeypatch.setitem(rows.CHUNKS, 16, chunk)
    assert_right(projection((5, 6), (3, 4), 3 if narrow else 70))


@pytest.mark.parametrize("n", range(1, 40))
def test_the_widest_window_is_the_widest(n: int) -> None:
    for m in range(1, 40):
        windows = [-(-(i + 1) * n // m) - i * n // m for i in range(m)]
        assert host.widest(n, m) == max(windows)


def test_every_row_is_the_first_to_serve_some_case() -> None:
    """Every row is reached by some case, and the last of every kind serves all."""
    kernels = {row.kernel for row in ROWS}
    cases = [
        Case(kernel, arch, dict(DP=DP, statistics=statistics, channels_last=last))
        for kernel in kernels
        for arch in (80, 86, 90, 100, 120)
        for DP in rows.CHUNKS
        for statistics in (0, 1)
        for last in (0, 1)
    ]
    taken = {id(next(row for row in ROWS if row.serves(case))) for case in cases}
    assert taken == {id(row) for row in ROWS}


@pytest.mark.parametrize("changes", ({"embed": 257}, {"dtypes": (torch.float64,)}, {"pixels": 2**31 - 1}), ids=str)
def test_what_cannot_run_is_refused_with_the_reason(changes: dict[str, object]) -> None:
    fits = Projection(1, 3, 64, 255025, 4096, (torch.float32, torch.float32), torch.device("cpu"))
    assert triton_backend.refuses_projection(fits) is None
    assert triton_backend.refuses_projection(replace(fits, **changes)) is not None  # type: ignore[arg-type]
