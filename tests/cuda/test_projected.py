"""Ψ and the cascade in one launch: right class by class, the same bits whoever computes what, one operator where it fits and
two where it does not. The truth is the two operators of the reference in fp64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from difnet_kernels import CascadedRandomWalk
from difnet_kernels.backends import BACKENDS, BackendUnavailable
from difnet_kernels.onnx import onnx_decompositions
from tests.cuda import host_backend, twin
from tests.cuda.twin import CARD, Machine
from tests.support.cases import DTYPES, normal
from tests.support.tolerances import HALF_ULP, Setting, assert_each
from tests.support.truth import assert_same

OPS = torch.ops.difnet_kernels
NAME = host_backend.NAME
# batch, classes, grid, embed, and (channels, size) of every map: windows that fit, overlap, hold one pixel or are wider
# than the map, one to three axes; row tiles full and not
Sizes = tuple[int, int, tuple[int, ...], int, tuple[tuple[int, tuple[int, ...]], ...]]
SMALL: Sizes = (2, 4, (7, 9), 16, ((3, (30, 33)), (20, (11, 13)), (70, (7, 9))))
CASES: dict[str, Sizes] = {
    "three maps": SMALL,
    "a signal": (2, 2, (37,), 5, ((3, (150,)), (6, (37,)))),
    "a volume": (1, 3, (2, 3, 7), 33, ((16, (5, 6, 7)), (2, (3, 9, 20)))),
    "two row tiles": (1, 21, (5, 20), 64, ((3, (41, 90)), (130, (9, 20)))),
    "wide channels": (1, 5, (3, 4), 64, ((2048, (5, 4)), (1024, (3, 4)))),
    "many classes": (1, 60, (5, 20), 64, ((3, (41, 45)), (40, (9, 20)))),
    "wider than the map": (3, 23, (4, 17), 3, ((1, (2, 3)), (17, (1, 1)))),
}


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, NAME, host_backend.BACKEND)


def walk_of(sizes: Sizes = SMALL, **options: Any) -> Any:
    """In evaluation, with lively parameters and slopes of both signs."""
    _, _, _, embed, maps = sizes
    options = {"backend": NAME, "scale": 2.0 / embed**0.5, **options}
    made: Any = CascadedRandomWalk([channels for channels, _ in maps], embed, **options).eval()
    with torch.no_grad():
        for number, project in enumerate(made.psi):
            norm = project.norm
            drawn = [project.weight, project.bias]
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.copy_(0.5 + normal(99 - number, embed).abs())
                drawn += [norm.weight, norm.bias, norm.running_mean]
            for place, x in enumerate(drawn):
                x.copy_(normal(100 + 10 * number + place, *x.shape))
            project.weight.mul_(project.weight.shape[1] ** -0.5)
        for raw, number in ((made.mu_raw, 1), (made.beta_raw, 2)):
            raw.copy_(normal(number, *raw.shape))
        if made.gamma is not None:
            made.gamma.fill_(0.75)
    return made


def inputs_of(sizes: Sizes = SMALL, dtype: str = "fp32") -> tuple[Tensor, list[Tensor]]:
    batch, classes, grid, _, maps = sizes
    seed = normal(7, batch, classes, *grid) * 2.0 ** -torch.arange(classes).view(-1, *(1,) * len(grid))
    features = [normal(20 + t, batch, channels, *size) for t, (channels, size) in enumerate(maps)]
    return seed.to(DTYPES[dtype]), [x.to(DTYPES[dtype]) for x in features]


@torch.no_grad()
def truth(walk: Any, seed: Tensor, features: list[Tensor], mask: Tensor | None = None) -> tuple[list[Tensor], float]:
    """Every step in fp64, and the largest logit."""
    exact: Any = copy.deepcopy(walk).double()
    exact.backend = "reference"
    maps = [x.double() for x in features]
    psi = exact.embeddings(maps, seed.shape[2:])
    steps = exact(seed.double(), maps, mask, return_steps=True)
    return list(steps), max(p.square().sum(1).max().item() for p in psi)


def assert_right(steps: tuple[Tensor, ...], true: list[Tensor], logit: float, dtypes: set[torch.dtype]) -> None:
    """Within the bound of a walk of given ψ: those of the launch are as good as fp32 makes them."""
    bound = Setting(frozenset(dtypes), len(true), logit).walk
    if torch.float32 not in dtypes:  # ψ itself is rounded, where the truth is not
        bound += 2 * HALF_ULP[next(iter(dtypes))] * logit
    for t, (ours, exact) in enumerate(zip(steps, true, strict=True)):
        assert_each(f"step {t}", 1, ours, exact, bound)


class Launches:
    """Runs a module on machines of one's own, and counts the launches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = CARD
        self.reports: list[twin.Report] = []
        original = twin.projected_cascade

        def run(*arguments: Any, **results: Any) -> None:
            self.reports.append(original(*arguments, **results, machine=self.machine))

        monkeypatch.setitem(BACKENDS, NAME, replace(host_backend.BACKEND, projected_cascade=run))

    @torch.no_grad()
    def __call__(self, walk: Any, seed: Tensor, features: list[Tensor], **machine: Any) -> tuple[Tensor, ...]:
        self.machine = Machine(**machine)
        before = len(self.reports)
        steps = walk(seed, features, return_steps=True)
        assert len(self.reports) == before + 1 and self.reports[-1].launches == 1
        return steps


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


# ---- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_one_launch_is_right(launches: Launches, sizes: Sizes) -> None:
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    assert_right(launches(walk, seed, features), *truth(walk, seed, features), {torch.float32})
    assert launches.reports[-1].bank_conflicts == 0


@pytest.mark.parametrize("of_parameters", ["fp32", "same"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit_features(launches: Launches, dtype: str, of_parameters: str) -> None:
    """Beside fp32 parameters ψ is fp32; in a network of 16 bits it has the dtype of the network."""
    walk, (seed, features) = walk_of(scale=0.01), inputs_of(dtype=dtype)  # logits of about 4
    if of_parameters == "same":
        walk = walk.to(DTYPES[dtype])
    steps = launches(walk, seed, features)
    assert all(y.dtype == DTYPES[dtype] for y in steps)
    dtypes = {DTYPES[dtype]} | ({torch.float32} if of_parameters == "fp32" else set())
    assert_right(steps, *truth(walk, seed, features), dtypes)


@pytest.mark.parametrize(
    "change", ["no norm", "not affine", "slope zero", "huge features", "tiny features", "one huge"]
)
def test_other_psi(launches: Launches, change: str) -> None:
    walk, (seed, features) = walk_of(norm=None if change == "no norm" else "batch"), inputs_of()
    if change == "no norm":
        walk.scale = 0.05
    for project, x in zip(walk.psi, features, strict=True):
        norm = project.norm
        if change == "not affine":
            project.norm = nn.BatchNorm2d(16, affine=False).eval()
        elif change == "slope zero":
            norm.weight.data[::2] = 0.0
        elif change == "one huge":  # a pixel does not cost the others their digits
            x[0, 0].flatten()[3] = 1e4
            norm.running_var.fill_(1e4)
            norm.running_var[:] *= 100
        elif change.endswith("features"):  # what fp16 cannot hold without a unit
            size = 1e9 if change == "huge features" else 1e-9
            x.mul_(size)
            norm.running_var.mul_(size**2)
            norm.running_mean.mul_(size)
            norm.eps = 0.0
            project.bias.data.mul_(size)
    assert_right(launches(walk, seed, features), *truth(walk, seed, features), {torch.float32})


def test_a_number_that_is_none_spreads_in_its_image_only() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    features[0][1, 0, 3, 3] = torch.nan
    with torch.no_grad():
        y = walk(seed, features)
    assert bool(y[0].isfinite().all()) and bool(y[1].isnan().all())


def test_a_mask_and_a_residual(launches: Launches) -> None:
    """Whatever masked nodes hold; an image without any returns its seed."""
    walk, (seed, features) = walk_of(residual=True), inputs_of()
    mask = normal(3, 2, 7, 9) > -0.3
    mask[1] = False
    true, logit = truth(walk, seed, features, mask)
    poisoned, last = torch.where(mask.unsqueeze(1), seed, torch.nan), features[2].clone()
    last.masked_fill_(~mask.unsqueeze(1), torch.nan)  # its windows are pixels
    with torch.no_grad():
        steps = walk(poisoned, [*features[:2], last], mask, return_steps=True)
    assert len(launches.reports) == 1
    inside = [torch.where(mask.unsqueeze(1), y, 0) for y in steps]
    assert_right(tuple(inside), [torch.where(mask.unsqueeze(1), y, 0) for y in true], logit, {torch.float32})


# ---- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 2])
def test_bits_do_not_depend_on_who_runs_when(launches: Launches, parts: int) -> None:
    sizes: Sizes = (1, 5, (8, 17), 16, ((3, (20, 40)), (17, (8, 17))))
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    first = launches(walk, seed, features, parts=parts)
    for machine in ({"workers": 1}, {"workers": 3}, {"workers": 40}, *({"schedule": n} for n in range(2, 6))):
        assert_same(launches(walk, seed, features, parts=parts, **machine), first)
    assert_same(launches(walk, seed, features, parts=parts, all_parts=True), first)


def test_an_image_alone_equals_itself_in_a_batch(launches: Launches) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    together = launches(walk, seed, features)
    for b in range(2):
        part = slice(b, b + 1)
        assert_same(launches(walk, seed[part], [x[part] for x in features]), [y[part] for y in together])


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_strides_change_no_bit(launches: Launches, layout: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.mT.contiguous().mT,
        "sliced": lambda x: x.new_zeros(3, x.shape[1] + 1, x.shape[2], 2 * x.shape[3])[1:, 1:, :, ::2].copy_(x),
    }
    laid = [ways[layout](x) for x in features]
    assert_same(launches(walk, ways[layout](seed), laid), launches(walk, seed, features))


# ---- one operator or two ----------------------------------------------------------------------------------------------


def operators(run: Callable[[], object]) -> list[str]:
    """The operators of the package that a call runs, from outside in."""
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.namespace == "difnet_kernels":
                names.append(operator._opname)
            return operator(*args, **(kwargs or {}))

    with Names():
        run()
    return names


ONE, TWO = ["projected_cascade"], [*["projection_forward"] * 3, "cascade_forward"]


def test_one_operator_without_gradients() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == ONE
    walk.requires_grad_(False)
    assert operators(lambda: walk(seed, features)) == ONE


def _hooked(walk: Any) -> None:
    walk.psi[0].register_forward_hook(lambda module, inputs, output: output)


NOT_FITTING: dict[str, tuple[Callable[[Any], object], int]] = {
    "in training": (lambda walk: walk.train(), 3),
    "no running statistics": (lambda walk: setattr(walk.psi[1].norm, "running_mean", None), 3),
    "gaussian": (lambda walk: setattr(walk, "affinity", "gaussian"), 3),
    "a hook": (_hooked, 3),
    "another module": (lambda walk: walk.psi.__setitem__(1, _Own()), 2),
    "another norm": (lambda walk: setattr(walk.psi[1], "norm", nn.GroupNorm(4, 16)), 2),
}


class _Own(nn.Module):
    def forward(self, x: Tensor, grid: tuple[int, ...], *, backend: str | None = None) -> Tensor:
        return nn.functional.adaptive_max_pool2d(x, grid)[:, :16]


@pytest.fixture
def with_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the cascade beside the Ψ of the reference."""
    other = BACKENDS["reference"]
    monkeypatch.setitem(
        BACKENDS,
        NAME,
        replace(
            host_backend.BACKEND,
            refuses_projection=other.refuses_projection,
            projection_forward=other.projection_forward,
            projection_backward=other.projection_backward,
        ),
    )


@pytest.mark.usefixtures("with_projection")
@pytest.mark.parametrize("change", NOT_FITTING)
def test_what_does_not_fit_takes_two(change: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    act, projections = NOT_FITTING[change]
    act(walk)
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == [*["projection_forward"] * projections, "cascade_forward"]


@pytest.mark.usefixtures("with_projection")
def test_gradients_take_two() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    assert operators(lambda: walk(seed, features)) == TWO
    walk.requires_grad_(False)
    assert operators(lambda: walk(seed.requires_grad_(), features)) == TWO


@pytest.mark.usefixtures("with_projection")
@pytest.mark.parametrize(
    "sizes",
    [(1, 2, (3, 4), 65, ((3, (5, 5)),)), (1, 2, (3,), 4, ((3, (5,)),) * 13)],
)
def test_what_is_too_wide_takes_two(sizes: Sizes) -> None:
    walk, (seed, features) = walk_of(sizes), inputs_of(sizes)
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == [*["projection_forward"] * len(features), "cascade_forward"]


def test_a_backend_without_it_takes_two() -> None:
    walk, (seed, features) = walk_of(backend="reference"), inputs_of()
    with torch.no_grad():
        assert operators(lambda: walk(seed, features)) == TWO


def test_the_operator_has_no_gradient() -> None:
    seed, features = inputs_of((1, 2, (3,), 4, ((3, (5,)),)))
    given = _arguments(seed.requires_grad_(), features)
    (y,) = OPS.projected_cascade(*given)
    with pytest.raises(NotImplementedError, match="projected_cascade is for inference"):
        y.sum().backward()


def _arguments(seed: Tensor, features: list[Tensor], embed: int = 4) -> tuple[Any, ...]:
    volumes = [x.view(*x.shape[:2], *(1,) * (5 - x.dim()), *x.shape[2:]) for x in features]
    weight = [normal(t, embed, x.shape[1]) for t, x in enumerate(features)]
    vectors = [[normal(10 * n + t, embed).abs() + 0.5 for t in range(len(features))] for n in range(5)]
    gates = torch.full((len(features),), 0.5)
    return seed, volumes, weight, *vectors, [1e-5] * len(features), 0.5, gates, gates, None, "high", NAME, True


def test_opcheck() -> None:
    torch.library.opcheck(OPS.projected_cascade.default, _arguments(*inputs_of()))


def test_it_counts_what_the_two_count() -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    counts = []
    for backend in (NAME, "reference"):
        walk.backend = backend
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            walk(seed, features)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_another_backend_says_that_it_lacks_it() -> None:
    seed, features = inputs_of()
    *given, _, _ = _arguments(seed, features)
    with pytest.raises(BackendUnavailable, match="does not bring Ψ and the cascade in one launch"):
        OPS.projected_cascade(*given, "reference", True)


@pytest.fixture
def compiler() -> Iterator[list[str]]:
    """The operators of the graphs that are compiled while it is in use."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def _nodes(graph: torch.fx.GraphModule) -> list[str]:
    return [
        node.target._opname for node in graph.graph.nodes if getattr(node.target, "namespace", "") == "difnet_kernels"
    ]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_keeps_one_node(compiler: list[str], dynamic: bool) -> None:
    walk, (seed, features) = walk_of(residual=True), inputs_of()

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiler.extend(_nodes(graph))
        return graph

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = torch.compile(walk, fullgraph=True, dynamic=dynamic, backend=count)(seed, features)
        assert_same([ours], [walk(seed, features)])
    assert compiler == ONE


def test_an_exported_program_keeps_one_node(compiler: list[str]) -> None:
    """Under torch.no_grad(). Without it a program may be trained later, and keeps the two that have gradients."""
    walk, (seed, features) = walk_of(), inputs_of()
    with torch.no_grad():
        program = torch.export.export(walk, (seed, features))
        assert_same([program.module()(seed, features)], [walk(seed, features)])
    assert _nodes(program.graph_module) == ONE
    plain = program.run_decompositions(onnx_decompositions())
    assert _nodes(plain.graph_module) == []
    true, logit = truth(walk, seed, features)
    assert_right((plain.module()(seed, features),), true[-1:], len(true) * logit, {torch.float32})


# ---- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, Callable[[Tensor, list[Tensor]], tuple[Any, ...]]] = {
    "a channel less": lambda seed, x: (seed, [x[0], x[1][:, 1:], x[2]]),
    "another batch": lambda seed, x: (seed, [x[0], x[1][:1], x[2]]),
    "an axis less": lambda seed, x: (seed, [x[0], x[1].flatten(2), x[2]]),
    "integers": lambda seed, x: (seed, [x[0].long(), *x[1:]]),
    "no class": lambda seed, x: (seed[:, :0], x),
    "a map less": lambda seed, x: (seed, x[:2]),
    "a mask of numbers": lambda seed, x: (seed, x, torch.ones(2, 7, 9)),
    "a mask of another grid": lambda seed, x: (seed, x, torch.ones(2, 9, 7, dtype=torch.bool)),
    "no pixel": lambda seed, x: (seed, [x[0][:, :, :0], *x[1:]]),
}


@torch.no_grad()
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_says_what_the_two_say(bad: str) -> None:
    walk, (seed, features) = walk_of(), inputs_of()
    given = BAD[bad](seed, features)
    told = []
    for backend in (NAME, "reference"):
        walk.backend = backend
        with pytest.raises((TypeError, ValueError)) as raised:
            walk(*given)
        told.append((type(raised.value), str(raised.value)))
    assert told[0] == told[1]
