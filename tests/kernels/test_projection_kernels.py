"""The kernels of Ψ below the operator: what projection_forward and projection_backward promise, over the edges of their tiles.

The truth is dense and in fp64: all of z, torch's own pooling to find the winners, autograd for the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d

from difnet_kernels.backends import BACKENDS
from difnet_kernels.problem import accumulation_dtype
from tests.support.cases import DTYPES, normal
from tests.support.projections import Shape
from tests.support.tolerances import HALF_ULP, PROJECTION, assert_within
from tests.support.truth import assert_same

Axes = tuple[int, int, int]


# one below, at and above registers, panels, tiles and blocks of channels
WIDTHS = (1, 3, 15, 16, 17, 31, 33, 64, 65, 200)
# windows that fit, overlap, hold one pixel, outnumber the pixels; rows of one, two and many tiles; signals, images, volumes
GRIDS: tuple[tuple[Axes, Axes], ...] = (
    ((1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (1, 3, 2)),
    ((1, 1, 63), (1, 1, 20)),
    ((1, 1, 64), (1, 1, 64)),
    ((1, 1, 65), (1, 1, 1)),
    ((1, 1, 1100), (1, 1, 300)),
    ((1, 1, 7), (1, 1, 600)),
    ((1, 127, 9), (1, 64, 5)),
    ((1, 9, 127), (1, 5, 64)),
    ((1, 81, 81), (1, 41, 41)),
    ((1, 41, 41), (1, 41, 41)),
    ((1, 13, 17), (1, 5, 17)),
    ((1, 5, 200), (1, 7, 10)),
    ((1, 200, 1), (1, 30, 1)),
    ((1, 2, 3), (1, 5, 7)),
    ((5, 6, 7), (2, 3, 7)),
    ((3, 4, 9), (4, 2, 11)),
    ((2, 5, 70), (2, 5, 70)),
    ((7, 1, 1), (3, 1, 1)),
    ((4, 9, 9), (3, 1, 4)),
)
# every grid twice; C, D and B rotate with coprime periods
CASES = tuple(
    Shape(1 + i % 3, WIDTHS[(3 * i + 1) % 10], WIDTHS[(7 * i + 5 + i // 10) % 10], *GRIDS[i % len(GRIDS)])
    for i in range(2 * len(GRIDS))
)
SMALL = Shape(2, 70, 40, (1, 27, 35), (1, 12, 16))
BAND = Shape(3, 5, 17, (2, 30, 70), (1, 14, 33))


@dataclass
class Problem:
    """Arguments of the two functions; None where a case does without."""

    features: Tensor
    weight: Tensor
    slope: Tensor | None
    grid: Axes
    grad_peak: Tensor
    grad_mean: Tensor | None
    grad_variance: Tensor | None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.features, self.weight, self.slope

    @property
    def upstream(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.grad_peak, self.grad_mean, self.grad_variance


def draw(case: Shape, dtype: str = "fp32", weight_dtype: str = "fp32", statistics: bool = True) -> Problem:
    """Numbered inputs of a case; slopes of both signs."""
    features = normal(1, case.batch, case.channels, *case.size).to(DTYPES[dtype])
    accumulate = accumulation_dtype(features, [torch.empty(0, dtype=DTYPES[weight_dtype])])
    return Problem(
        features,
        normal(2, case.embed, case.channels, dtype=accumulate),
        normal(3, case.embed, dtype=accumulate),
        case.grid,
        normal(4, case.batch, case.embed, *case.grid, dtype=accumulate),
        normal(5, case.embed, dtype=accumulate) if statistics else None,
        normal(6, case.embed, dtype=accumulate) if statistics else None,
    )


@dataclass
class Forward:
    peak: Tensor
    position: Tensor
    mean: Tensor | None
    variance: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [x for x in (self.peak, self.position, self.mean, self.variance) if x is not None]


def forward(kernel: str, problem: Problem) -> Forward:
    """Outputs start as NaN and -1, so what nobody writes shows."""
    embed = problem.weight.shape[0]
    peak = problem.weight.new_full((problem.features.shape[0], *problem.grid, embed), float("nan")).movedim(-1, 1)
    statistics = problem.grad_mean is not None or problem.grad_variance is not None
    mean, variance = problem.weight.new_full((2, embed), float("nan")) if statistics else (None, None)
    result = Forward(peak, torch.full_like(peak, -1, dtype=torch.int32), mean, variance)
    BACKENDS[kernel].projection_forward(
        *problem.inputs, peak=peak, position=result.position, mean=mean, variance=variance
    )
    return result


def backward(kernel: str, problem: Problem, made: Forward, wanted: str = "features and weight") -> list[Tensor]:
    """The gradients that are wanted: of the features, of the weight."""
    dense = torch.empty_like(problem.features, memory_format=torch.preserve_format)
    grad_features = dense.fill_(float("nan")) if "features" in wanted else None
    grad_weight = torch.full_like(problem.weight, float("nan")) if "weight" in wanted else None
    BACKENDS[kernel].projection_backward(
        *problem.upstream,
        problem.features,
        problem.weight,
        made.position,
        made.mean,
        grad_features=grad_features,
        grad_weight=grad_weight,
    )
    return [x for x in (grad_features, grad_weight) if x is not None]


def projected(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """All of z in fp64, and the leaves it is made of."""
    features = problem.features.double().clone(memory_format=torch.contiguous_format).requires_grad_()
    weight = problem.weight.double().requires_grad_()
    return torch.einsum("dc,bczyx->bdzyx", weight, features), features, weight


def sign(problem: Problem) -> Tensor:
    slope = torch.ones(problem.weight.shape[0]) if problem.slope is None else problem.slope
    return slope.double().sign().view(1, -1, 1, 1, 1)


def at(z: Tensor, position: Tensor) -> Tensor:
    return z.flatten(2).gather(2, position.long().flatten(2)).view(position.shape)


def assert_true(kernel: str, problem: Problem) -> None:
    """Values, winners and moments of z, and with the same winners both gradients."""
    made = forward(kernel, problem)
    z, features, weight = projected(problem)
    bound = PROJECTION[problem.weight.dtype]
    floor = bound * z.abs().max().item()
    chosen = at(z, made.position)
    assert_within("peak", made.peak, chosen, 0.0, floor=floor)
    # where two pixels are closer than rounding either may win; the loser is never farther away
    key = sign(problem) * z.detach()
    assert_within("winner", at(key, made.position), adaptive_max_pool3d(key, problem.grid), 0.0, floor=2 * floor)
    loss = (chosen * problem.grad_peak).sum()
    if made.mean is not None and made.variance is not None:
        mean, variance = z.mean((0, 2, 3, 4)), z.var((0, 2, 3, 4), unbiased=False)
        assert_within("mean", made.mean, mean, 0.0, floor=floor)
        assert_within("variance", made.variance, variance, bound, floor=floor**2)
        for moment, grad in ((mean, problem.grad_mean), (variance, problem.grad_variance)):
            loss = loss + (0.0 if grad is None else (moment * grad).sum())
    loss.backward()
    grad_features, grad_weight = backward(kernel, problem, made)
    assert features.grad is not None and weight.grad is not None
    assert_within("features", grad_features, features.grad, 4 * bound + HALF_ULP[grad_features.dtype])
    # a sum over the pixels of products that cancel: relative to the sum of their sizes
    terms = problem.features.double().abs().sum((0, 2, 3, 4)).max() * features.grad.abs().max()
    assert_within("weight", grad_weight, weight.grad, bound, floor=bound * float(terms))


@pytest.mark.smoke
@pytest.mark.parametrize("case", CASES, ids=str)
def test_edges_of_tiles_panels_and_windows(kernel: str, case: Shape) -> None:
    assert_true(kernel, draw(case, statistics=case.channels % 2 == 1))


@pytest.mark.parametrize("weight_dtype", ["fp32", pytest.param("fp64", marks=pytest.mark.needs(dtype="fp64"))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(kernel: str, dtype: str, weight_dtype: str) -> None:
    """Sums are fp64 if either side is, else fp32; the gradient has the dtype of the features."""
    for case in (SMALL, BAND):
        assert_true(kernel, draw(case, dtype, weight_dtype))


@pytest.mark.parametrize(("features", "weight"), [(-70, -30), (60, 50), (-100, 90), (-105, 20), (90, -100)])
def test_any_scale_that_a_result_can_have(kernel: str, features: int, weight: int) -> None:
    """Powers of two, of everything and of single pixels and channels: results scale, whatever multiplies them."""
    for case in (SMALL, Shape(1, 130, 20, (1, 9, 9), (1, 9, 9))):
        problem = draw(case, statistics=False)
        problem.features *= 2.0**features
        problem.weight *= 2.0**weight
        assert_true(kernel, problem)
        problem = draw(case, statistics=False)
        problem.features[0, :, 0, 3] *= 2.0**features
        problem.weight[3] *= 2.0**weight
        z, made = projected(problem)[0].detach(), forward(kernel, problem)
        size = torch.einsum("dc,bczyx->bdzyx", problem.weight.double().abs(), problem.features.double().abs())
        chosen, terms = at(z, made.position), at(size, made.position)
        assert bool(((made.peak - chosen).abs() <= PROJECTION[torch.float32] * terms).all())


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "cut_out": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1, 1, 0))[:, :, 1:, 3:-1, 1:-2],
    "cut_out_of_channels_last": lambda x: torch.nn.functional.pad(
        x.contiguous(memory_format=torch.channels_last_3d), (1, 2, 3, 1, 0, 1, 2, 1)
    )[:, 2:-1, :-1, 3:-1, 1:-2],
    "every_other_column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "rows_and_columns_swapped": lambda x: x.mT.contiguous().mT,
    "rows_overlap": lambda x: x.flatten()[: x[0, 0].numel()].as_strided(x.shape, (3, 1, 5, 2, 1)),
    "one_image_expanded": lambda x: x[:1].expand_as(x),
    "one_channel_expanded": lambda x: x[:, :1].expand_as(x),
    "one_pixel_expanded": lambda x: x[..., :1, :1].expand_as(x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_change_no_bit(kernel: str, layout: str, dtype: str) -> None:
    """Those of the features, and of the gradient that comes in."""
    for case in (SMALL, BAND):
        problem = draw(case, dtype)
        problem.features = LAYOUTS[layout](problem.features)
        problem.grad_peak = LAYOUTS[layout](problem.grad_peak)
        made = forward(kernel, problem)
        grads = backward(kernel, problem, made)
        plain = draw(case, dtype)
        plain.features, plain.grad_peak = problem.features.contiguous().clone(), problem.grad_peak.contiguous().clone()
        assert_same(made.tensors(), forward(kernel, plain).tensors())
        assert_same(grads, backward(kernel, plain, made))


STATISTICS = {
    "one_number_expanded": lambda x: x[:1].expand_as(x),
    "every_other_number": lambda x: x.repeat_interleave(3)[1::3],
}


@pytest.mark.parametrize("layout", STATISTICS)
def test_strides_of_the_statistics_change_no_bit(kernel: str, layout: str) -> None:
    """The gradient of a sum has stride 0; the kernels read the channels one after the other, so the operator sees to it."""
    for case in (SMALL, Shape(1, 3, 20, (1, 9, 7), (1, 4, 5))):
        problem = draw(case)
        made = forward(kernel, problem)
        assert problem.grad_mean is not None and problem.grad_variance is not None and made.mean is not None
        problem.grad_mean, problem.grad_variance = (
            STATISTICS[layout](x) for x in (problem.grad_mean, problem.grad_variance)
        )
        given = (*problem.upstream, problem.features, problem.weight, made.position, None, made.mean)
        ours = torch.ops.difnet_kernels.projection_backward(*given, True, True, kernel)
        problem.grad_mean, problem.grad_variance = (
            x.clone(memory_format=torch.contiguous_format) for x in (problem.grad_mean, problem.grad_variance)
        )
        assert_same(list(ours), backward(kernel, problem, made))


@pytest.mark.parametrize("outer", ["channels", "columns"])
def test_outputs_have_strides_too(kernel: str, outer: str) -> None:
    """And nothing around them is touched."""
    problem = draw(SMALL)
    shape = (SMALL.batch, SMALL.embed, *SMALL.grid)
    if outer == "channels":
        held = [torch.full((*shape[:4], shape[4] + 2), -5.0), torch.full((*shape[:4], shape[4] + 2), -5).int()]
        peak, position = (x[..., 1:-1] for x in held)
    else:
        held = [torch.full((*shape, 2), -5.0), torch.full((*shape, 2), -5).int()]
        peak, position = (x[..., 1] for x in held)
    moments = torch.empty(2, SMALL.embed)
    wide = torch.full((*problem.features.shape, 3), -5.0)
    expected = forward(kernel, problem)
    run = BACKENDS[kernel]
    run.projection_forward(*problem.inputs, peak=peak, position=position, mean=moments[0], variance=moments[1])
    assert_same([peak, position, *moments], expected.tensors())
    run.projection_backward(
        *problem.upstream,
        problem.features,
        problem.weight,
        position,
        moments[0],
        grad_features=wide[..., 1],
        grad_weight=None,
    )
    assert_same([wide[..., 1]], backward(kernel, problem, expected, "features"))
    around = [held[0][..., 0], held[1][..., 0], wide[..., 0], wide[..., 2]]
    assert all(bool((x == -5).all()) for x in around)


SIGNS = {"none": None, "plus": 2.0, "minus": -0.5, "zero": 0.0, "minus_zero": -0.0, "mixed": float("nan")}


@pytest.mark.parametrize("slope", SIGNS)
@pytest.mark.parametrize("case", [*CASES[5:20], SMALL, BAND], ids=str)
def test_the_first_of_equal_pixels_wins(kernel: str, slope: str, case: Shape) -> None:
    """Small whole numbers: sums are exact, and windows are full of ties."""
    problem = draw(case, statistics=False)
    problem.features = problem.features.round().clamp(-1, 1)
    problem.weight = problem.weight.round().clamp(-1, 1)
    problem.slope = None if slope == "none" else torch.full((case.embed,), SIGNS[slope])
    if slope == "mixed":
        problem.slope = torch.arange(case.embed).remainder(3).sub(1).float()
    made = forward(kernel, problem)
    z = projected(problem)[0].detach()
    _, position = adaptive_max_pool3d(sign(problem) * z, problem.grid, return_indices=True)
    assert_same([made.position.long(), made.peak.double()], [position, at(z, position)])


@pytest.mark.parametrize("slope", ["none", "plus", "minus", "zero", "mixed"])
def test_nan_wins_its_windows_and_no_other(kernel: str, slope: str) -> None:
    problem = draw(BAND, statistics=False)
    if slope != "mixed":
        problem.slope = None if slope == "none" else torch.full((BAND.embed,), SIGNS[slope])
    clean = forward(kernel, problem)
    problem.features[1, 2, 0, 11, 40] = float("nan")
    problem.features[1, 3, 1, 12, 41] = float("nan")
    problem.features[2, 0, 1, 29, 69] = float("nan")
    bad = problem.features.isnan().any(1, keepdim=True)
    reached = (adaptive_max_pool3d(bad.double(), problem.grid) > 0).expand(clean.peak.shape)
    made = forward(kernel, problem)
    assert torch.equal(made.peak.isnan(), reached)
    assert bool(at(bad.expand(-1, BAND.embed, -1, -1, -1), made.position)[reached].all())
    assert torch.equal(made.peak[~reached], clean.peak[~reached])
    assert torch.equal(made.position[~reached], clean.position[~reached])


@pytest.mark.parametrize("case", [SMALL, BAND, Shape(2, 3, 5, (1, 9, 14), (1, 4, 4))], ids=str)
def test_the_last_nan_of_a_window_wins(kernel: str, case: Shape) -> None:
    """As in torch, whatever the slope; most windows see several."""
    problem = draw(case, statistics=False)
    problem.slope = torch.arange(case.embed).remainder(3).sub(1).float()
    problem.features[:, 1].flatten(1)[:, ::4] = float("nan")
    z = projected(problem)[0].detach()
    peak, position = adaptive_max_pool3d(sign(problem) * z, problem.grid, return_indices=True)
    reached = peak.isnan()
    assert bool(reached.any())
    made = forward(kernel, problem)
    assert torch.equal(made.peak.isnan(), reached)
    assert torch.equal(made.position[reached].long(), position[reached])


def test_infinity_is_the_largest_number(kernel: str) -> None:
    problem = draw(BAND, statistics=False)
    problem.weight.abs_()
    problem.slope = None
    problem.features[0, :, 0, 9, 9] = float("inf")
    problem.features[1] = float("-inf")
    z = projected(problem)[0].detach()
    peak, position = adaptive_max_pool3d(z, problem.grid, return_indices=True)
    made = forward(kernel, problem)
    assert torch.equal(made.peak.isinf(), peak.isinf())
    assert torch.equal(made.position[peak.isinf()].long(), position[peak.isinf()])


def test_infinity_reaches_the_gradients_as_it_is(kernel: str) -> None:
    """One feature, one weight: what they are multiplied by is not zero anywhere, as every window is a pixel."""
    case = Shape(1, 70, 20, (1, 9, 9), (1, 9, 9))
    problem = draw(case, statistics=False)
    made = forward(kernel, problem)
    problem.features[0, 2, 0, 4, 4] = float("inf")
    (grad_weight,) = backward(kernel, problem, made, "weight")
    assert bool(grad_weight[:, 2].isinf().all()) and int(grad_weight.isfinite().sum()) == 20 * 69
    problem = draw(case, statistics=False)
    problem.weight[3, 5] = float("inf")
    (grad_features,) = backward(kernel, problem, made, "features")
    assert bool(grad_features[:, 5].isinf().all()) and int(grad_features.isfinite().sum()) == 69 * 81


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("case", [SMALL, BAND, Shape(2, 1, 3, (1, 1, 1000), (1, 1, 7))], ids=str)
def test_a_large_mean_leaves_the_variance(kernel: str, case: Shape, dtype: str) -> None:
    """The mean is 10⁴ deviations; each pixel counts once although windows overlap."""
    problem = draw(case, dtype)
    problem.features += 1e4
    problem.weight = torch.eye(case.embed, case.channels, dtype=problem.weight.dtype)
    made = forward(kernel, problem)
    assert made.mean is not None and made.variance is not None
    offset = (problem.weight.sum(1) * 1e4).double()
    z = projected(problem)[0].detach() - offset.view(1, -1, 1, 1, 1)  # exact, so the truth keeps all its digits
    # fp64 has no wider type to merge tiles in, and rounds once for each
    assert_within("mean", made.mean, offset + z.mean((0, 2, 3, 4)), 8 * HALF_ULP[made.mean.dtype])
    assert_within("variance", made.variance, z.var((0, 2, 3, 4), unbiased=False), PROJECTION[made.mean.dtype])


@pytest.mark.parametrize("case", [SMALL, BAND, Shape(2, 150, 64, (1, 41, 41), (1, 41, 41))], ids=str)
def test_threads_change_no_bit(kernel: str, threads: None, case: Shape) -> None:
    problem = draw(case)
    results = []
    for count in (1, 2, 3, 2, 7):
        torch.set_num_threads(count)
        made = forward(kernel, problem)
        results.append([*made.tensors(), *backward(kernel, problem, made)])
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("case", [BAND, Shape(3, 65, 20, (1, 29, 40), (1, 13, 17))], ids=str)
def test_an_image_alone_equals_itself_in_a_batch(kernel: str, case: Shape) -> None:
    problem = draw(case, statistics=False)
    together = forward(kernel, problem)
    (grad,) = backward(kernel, problem, together, "features")
    for b in range(case.batch):
        one = draw(case, statistics=False)
        one.features, one.grad_peak = problem.features[b : b + 1], problem.grad_peak[b : b + 1]
        apart = forward(kernel, one)
        assert_same(apart.tensors(), [x[b : b + 1] for x in together.tensors()])
        assert_same(backward(kernel, one, apart, "features"), [grad[b : b + 1]])


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_what_is_not_wanted_changes_nothing(kernel: str, poisoned: None, mean: bool, variance: bool) -> None:
    """One gradient of the two, and a statistic without a gradient."""
    problem = draw(SMALL)
    made = forward(kernel, problem)
    problem.grad_mean = problem.grad_mean if mean else None
    problem.grad_variance = problem.grad_variance if variance else None
    both = backward(kernel, problem, made)
    assert_same([*backward(kernel, problem, made, "features"), *backward(kernel, problem, made, "weight")], both)
    zero = torch.zeros(SMALL.embed)
    problem.grad_mean = zero if problem.grad_mean is None else problem.grad_mean
    problem.grad_variance = zero if problem.grad_variance is None else problem.grad_variance
    for name, ours, full in zip(("features", "weight"), both, backward(kernel, problem, made), strict=True):
        assert_within(name, ours, full, PROJECTION[torch.float32])
