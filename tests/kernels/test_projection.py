"""Ψ is conv, batch normalisation and adaptive max pooling, whatever the sizes, dtypes, strides and the mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels import PsiProjection, psi_projection
from difnet_kernels.problem import accumulation_dtype
from tests.support.cases import DTYPES, normal
from tests.support.projections import NAMES, PAPER, SHAPES, Shape, composed, features, module, random_shape, run
from tests.support.tolerances import GRADCHECK, PROJECTION, assert_within
from tests.support.truth import assert_same

SMALL = Shape(2, 6, 16, (13, 17), (5, 6))
# with fewer values a batch normalisation hardly depends on its input, and gradients are the rounding of zero
FEW_VALUES = 16
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def assert_composed(ours: PsiProjection, x: Tensor, shape: Shape, backend: str) -> None:
    """Output, gradients and running buffers equal those of torch's layers in fp64 on the same rounded numbers."""
    theirs = composed(ours, shape)
    mine = run(_on(ours, backend), x, shape.grid)
    true = run(theirs, x.double())
    bound = PROJECTION[accumulation_dtype(x, [ours.weight])]
    # gradients of parameters are sums of B·N terms of about one that may cancel (in training, that of the bias to zero)
    sums = bound * (true[0].numel() / shape.embed) ** 0.5
    floors = dict.fromkeys(("weight", "bias", "gamma", "beta"), sums)
    for name, a, b in zip(NAMES, mine, true, strict=True):
        assert_within(name, a.reshape(b.shape), b, bound, floor=floors.get(name, 0.0))


class _on(nn.Module):
    """A projection that runs on one backend."""

    def __init__(self, ours: PsiProjection, backend: str) -> None:
        super().__init__()
        self.ours, self.backend = ours, backend

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        ours = self.ours
        return psi_projection(x, ours.weight, ours.bias, ours.norm, grid, backend=self.backend)


@pytest.mark.smoke
@MODES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_conv_norm_pool(backend: str, shape: Shape, training: bool) -> None:
    assert_composed(module(shape).train(training), features(shape), shape, backend)


@MODES
@pytest.mark.parametrize("shape", PAPER, ids=str)
def test_the_sizes_of_the_paper(kernel: str, shape: Shape, training: bool) -> None:
    assert_composed(module(shape).train(training), features(shape), shape, kernel)


@pytest.mark.parametrize("number", range(200))
def test_random_shapes(kernel: str, number: int) -> None:
    shape = random_shape(number)
    training = number % 2 == 1 and shape.values >= FEW_VALUES
    ours = module(shape, number).train(training)
    assert_composed(ours, features(shape, number=number), shape, kernel)


@MODES
@pytest.mark.parametrize("dtype", ["fp64", "bf16", "fp16"])
def test_other_dtypes(backend: str, dtype: str, training: bool) -> None:
    """Features of any dtype beside fp32 parameters, and parameters of the dtype of the features."""
    ours, x = module(SMALL).train(training), features(SMALL, dtype)
    if dtype == "fp64":
        ours = ours.double()
    assert_composed(ours, x, SMALL, backend)
    assert psi_projection(x, ours.weight, None, None, SMALL.grid, backend=backend).dtype == ours.weight.dtype
    narrow = ours.weight.to(x.dtype)
    assert psi_projection(x, narrow, None, None, SMALL.grid, backend=backend).dtype == x.dtype


def _layouts(x: Tensor) -> dict[str, Tensor]:
    padded = torch.zeros(x.shape[0] + 1, x.shape[1] + 2, x.shape[2] + 3, 2 * x.shape[3], dtype=x.dtype)
    sliced = padded[1:, 1:-1, 2:-1, ::2]
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "sliced": sliced.copy_(x),
        "expanded": x[:1].expand(x.shape),
        "constant": x[:, :1, :1].expand(x.shape),
    }


@MODES
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded", "constant"])
def test_strides_change_no_bit(kernel: str, layout: str, training: bool) -> None:
    x = _layouts(features(SMALL))[layout]
    ours = _on(module(SMALL), kernel).train(training)
    if not training:  # training moves the running buffers
        assert_same(run(ours, x, SMALL.grid), run(ours, x.contiguous(), SMALL.grid))
    twin = _on(module(SMALL), kernel).train(training)
    assert_same(run(ours, x, SMALL.grid), run(twin, x.contiguous(), SMALL.grid))


@pytest.mark.parametrize("layout", ["channels_last", "stride 0", "sliced"])
def test_strides_of_gradients(kernel: str, layout: str) -> None:
    """Output and gradients of features and weight; those of bias, γ and β are sums of torch's own, in the order of memory."""
    ours, x = _on(module(SMALL).eval(), kernel), features(SMALL)
    shape = (SMALL.batch, SMALL.embed, *SMALL.grid)
    weights = {
        "channels_last": torch.randn(shape).contiguous(memory_format=torch.channels_last),
        "stride 0": torch.ones(()).expand(shape),
        "sliced": torch.randn(*shape[:3], 2 * shape[3])[..., ::2],
    }[layout]
    same = run(ours, x, SMALL.grid, weights=weights.contiguous())
    assert_same(run(ours, x, SMALL.grid, weights=weights)[:3], same[:3])


def test_the_result_is_node_major(backend: str) -> None:
    """So that the walk reads it without a copy."""
    psi = _on(module(SMALL).eval(), backend)(features(SMALL), SMALL.grid)
    assert psi.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.smoke
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_the_first_of_equal_pixels_takes_the_gradient(backend: str, sign: float) -> None:
    """As in torch: first in scan order, also where the slope of the normalisation is negative or zero."""
    shape = Shape(2, 1, 3, (7, 9), (3, 4))
    x = (normal(1, 2, 1, 7, 9) * 1.5).round()
    ours = PsiProjection(1, 3).eval()
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([[1.0], [-2.0], [0.0]]))
        ours.norm.weight.fill_(sign)
    weights = normal(2, 2, 3, 3, 4)
    theirs = composed(ours, shape)
    mine = run(_on(ours, backend), x, shape.grid, weights=weights)
    true = run(theirs, x.double(), weights=weights)
    for name, a, b in zip(NAMES, mine, true, strict=True):
        assert_within(name, a.reshape(b.shape), b, 1e-6)


def test_nan_wins_its_windows_and_no_other(backend: str) -> None:
    ours, x = _on(module(SMALL).eval(), backend), features(SMALL)
    clean = ours(x, SMALL.grid)
    x[1, 3, 6, 8] = float("nan")
    psi = ours(x, SMALL.grid)
    expected = torch.zeros(SMALL.grid, dtype=torch.bool)
    expected[2, 2:4] = True  # rows 5 to 7 of 13; columns 5 to 8 and 8 to 11 of 17
    assert torch.equal(psi[1].isnan(), expected.expand_as(psi[1]))
    assert torch.equal(psi[0], clean[0])
    assert torch.equal(psi[1][:, ~expected], clean[1][:, ~expected])


def test_a_large_mean_leaves_the_variance(backend: str) -> None:
    """Statistics by sums of squares would lose it: here the mean is 10⁴ deviations."""
    shape = Shape(2, 4, 8, (16, 16), (4, 4))
    x = features(shape) + 1e4
    ours = module(shape).train()
    with torch.no_grad():
        ours.weight.copy_(torch.eye(8)[:, :4])
    _on(ours, backend)(x, shape.grid)
    before = module(shape).norm.running_var[:4].double()
    expected = 0.9 * before + 0.1 * x.double().var((0, 2, 3), unbiased=True)
    assert_within("variance", ours.norm.running_var[:4], expected, 1e-4)


@pytest.mark.needs(dtype="fp64")
def test_gradcheck(backend: str) -> None:
    shape = Shape(2, 2, 3, (4, 5), (3, 2))
    ours = module(shape).double().train()
    ours.norm.track_running_stats = False
    parameters = [ours.weight, ours.bias, ours.norm.weight, ours.norm.bias]

    def psi(x: Tensor, *_: Tensor) -> Tensor:
        return psi_projection(x, ours.weight, ours.bias, ours.norm, shape.grid, backend=backend)

    x = features(shape, "fp64").requires_grad_()
    assert torch.autograd.gradcheck(psi, (x, *parameters), **GRADCHECK)


def test_a_second_derivative_raises(backend: str) -> None:
    x = features(SMALL).requires_grad_()
    psi = _on(module(SMALL).eval(), backend)(x, SMALL.grid)
    (grad,) = torch.autograd.grad(psi.square().sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="differentiable once"):
        grad.sum().backward()


@MODES
def test_the_same_bits_every_time(kernel: str, threads: None, training: bool) -> None:
    """Run to run and for any number of threads, also where windows overlap."""
    for shape in (SMALL, Shape(2, 16, 64, (41, 41), (41, 41))):  # torch sums in parallel above some 30,000 numbers
        results = []
        for count in (2, 1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(run(_on(module(shape).train(training), kernel), features(shape), shape.grid))
        for other in results[1:]:
            assert_same(other, results[0])


def test_an_image_alone_equals_itself_in_a_batch(kernel: str) -> None:
    ours, x = _on(module(SMALL).eval(), kernel), features(SMALL)
    together = ours(x, SMALL.grid)
    for b in range(SMALL.batch):
        assert torch.equal(ours(x[b : b + 1], SMALL.grid)[0], together[b])


@MODES
def test_nothing_is_left_unwritten(kernel: str, poisoned: None, training: bool) -> None:
    shape = Shape(2, 5, 19, (9, 11), (4, 3))
    assert all(x.isfinite().all() for x in run(_on(module(shape).train(training), kernel), features(shape), shape.grid))


@pytest.mark.smoke
@MODES
def test_compiled_equals_eager(backend: str, training: bool) -> None:
    """One graph without breaks, running buffers included."""
    torch.compiler.reset()
    ours, twin = (_on(module(SMALL).train(training), backend) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = features(SMALL)

    class Compiled(nn.Module):
        parameters = staticmethod(ours.parameters)
        buffers = staticmethod(ours.buffers)

        def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
            return compiled(x, grid)

    for name, a, b in zip(NAMES, run(Compiled(), x, SMALL.grid), run(twin, x, SMALL.grid), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    torch.compiler.reset()


def test_it_can_be_exported(backend: str) -> None:
    ours, x = _on(module(SMALL).eval(), backend), features(SMALL)
    program = torch.export.export(ours, (x, SMALL.grid))
    assert torch.equal(program.module()(x, SMALL.grid), ours(x, SMALL.grid))


def test_autocast_does_not_reach_it(backend: str) -> None:
    """ψ feeds logits in the hundreds: a 16-bit projection would leave noise."""
    ours, x = _on(module(SMALL).eval(), backend), features(SMALL)
    with torch.autocast(x.device.type, torch.bfloat16):
        inside = ours(x, SMALL.grid)
    assert torch.equal(inside, ours(x, SMALL.grid))


@MODES
@pytest.mark.parametrize("part", ["all", "no bias", "no norm"])
def test_an_empty_batch(backend: str, part: str, training: bool) -> None:
    """Nothing comes of it but zero gradients; a batch normalisation counts it, as in torch, and stays where it is."""
    ours = module(SMALL).train(training)
    before = ours.norm.running_mean.clone()
    x = features(SMALL)[:0].requires_grad_()
    bias, norm = None if part == "no bias" else ours.bias, None if part == "no norm" else ours.norm
    psi = psi_projection(x, ours.weight, bias, norm, SMALL.grid, backend=backend)
    assert psi.shape == (0, SMALL.embed, *SMALL.grid)
    psi.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert ours.weight.grad is not None and not ours.weight.grad.any()
    assert torch.equal(ours.norm.running_mean, before)
    assert ours.norm.num_batches_tracked == (1 if training and norm is not None else 0)


FEATURES, WEIGHT = torch.randn(2, 3, 7, 9), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": [1.0]}, TypeError, ("features must be a tensor", "list")),
        ({"features": FEATURES.int()}, TypeError, ("features must be float16", "int32")),
        ({"features": FEATURES[0, 0]}, ValueError, ("features must be (B, C, *S)", "(7, 9)")),
        ({"features": torch.randn(2, 3, 2, 2, 2, 2)}, ValueError, ("one to three spatial axes",)),
        ({"features": FEATURES[..., :0]}, ValueError, ("pixels per image to pool", "(2, 3, 7, 0)")),
        ({"weight": WEIGHT[:, :2]}, ValueError, ("C = 3", "(5, 2)")),
        ({"weight": WEIGHT[:0]}, ValueError, ("at least one row", "(0, 3)")),
        ({"weight": WEIGHT[..., None]}, TypeError, ("weight must be a floating-point tensor with 2 axes", "(5, 3, 1)")),
        ({"weight": WEIGHT.int()}, TypeError, ("weight must be a floating-point tensor", "int32")),
        ({"weight": WEIGHT.to("meta")}, ValueError, ("weight must be on the device of features", "meta")),
        ({"bias": torch.randn(4)}, ValueError, ("bias must be (5,)", "(4,)")),
        ({"bias": 1.0}, TypeError, ("bias must be a floating-point tensor", "float")),
        ({"grid": (3,)}, ValueError, ("2 positive sizes", "(3,)")),
        ({"grid": (3, 0)}, ValueError, ("2 positive sizes", "(3, 0)")),
        ({"norm": "batch"}, TypeError, ("norm must be a normalisation to call", "str")),
        ({"norm": nn.BatchNorm2d(4)}, ValueError, ("norm must have 5 features", "got 4")),
        ({"norm": nn.BatchNorm2d(5).to("meta")}, ValueError, ("norm.weight must be on the device", "meta")),
        ({"backend": "gpu"}, ValueError, ("backend must be None or one of", "'gpu'")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_it_says_what_is_wrong(change: dict[str, object], error: type[Exception], words: tuple[str, ...]) -> None:
    arguments = {"features": FEATURES, "weight": WEIGHT, "bias": None, "norm": None, "grid": (3, 4), **change}
    with pytest.raises(error) as caught:
        psi_projection(**arguments)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_dtypes_of_the_result() -> None:
    """As type promotion has it: a half network gives half embeddings, half features and fp32 weights give fp32."""
    for field, parameter, result in (("bf16", "bf16", "bf16"), ("bf16", "fp32", "fp32"), ("fp64", "fp32", "fp64")):
        x, weight = FEATURES.to(DTYPES[field]), WEIGHT.to(DTYPES[parameter])
        assert psi_projection(x, weight, None, None, (3, 4)).dtype == DTYPES[result]
