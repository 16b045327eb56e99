"""A torch citizen: torch.compile without graph breaks, export, autocast, activation checkpointing, copies, saving."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels import CascadedRandomWalk, cascaded_random_walk, random_walk
from difnet_kernels.modules.projected import backend_for
from tests.support.cases import Case, make
from tests.support.truth import both

SMALL = Case(2, (5, 7), 6, 4, 2, "smooth")


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _leaves(case: Case = SMALL, number: int = 0) -> list[Tensor]:
    inputs = make(case, number=number)
    return [x.requires_grad_() for x in (inputs.seed, *inputs.psi, inputs.mu, inputs.beta)]


def _loss(backend: str, steps: bool = False):  # type: ignore[no-untyped-def]
    def run(seed: Tensor, first: Tensor, second: Tensor, mu: Tensor, beta: Tensor) -> Tensor:
        y = cascaded_random_walk(2 * seed, [first, second], mu, beta, backend=backend, return_steps=steps)
        return sum(step.square().sum() for step in y) if steps else y.square().sum()

    return run


def _equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_the_mark_of_a_constant_is_that_of_torch() -> None:
    """It is set by hand, because torch's function for it imports the compiler."""

    def marked() -> None: ...

    torch.compiler.assume_constant_result(marked)
    assert vars(marked) and vars(backend_for) == vars(marked)


@pytest.mark.smoke
@pytest.mark.parametrize("steps", [False, True], ids=["last", "steps"])
def test_compiled_equals_eager(backend: str, steps: bool) -> None:
    """One graph, no breaks, forward and backward (with aot_eager, which compiles all but the machine code)."""
    leaves = _leaves()
    compiled = torch.compile(_loss(backend, steps), fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(*leaves), _loss(backend, steps)(*leaves)
    _equal((ours, *torch.autograd.grad(ours, leaves)), (theirs, *torch.autograd.grad(theirs, leaves)))


def test_one_graph_serves_all_sizes(backend: str) -> None:
    """dynamic=True: batch, classes, grid and embedding change and nothing is compiled again."""
    compiled = torch.compile(_loss(backend), fullgraph=True, dynamic=True, backend="aot_eager")
    # no size of the first is another's or the number of walks: equal sizes are taken to stay equal
    cases = (Case(5, (9, 4), 6, 3, 2, "smooth"), Case(3, (5, 7), 5, 4, 2, "smooth"), Case(4, (6, 6), 8, 7, 2, "smooth"))
    for case in cases:
        leaves = _leaves(case)
        with torch.compiler.set_stance("fail_on_recompile" if case != cases[0] else "default"):
            ours = compiled(*leaves)
        theirs = _loss(backend)(*leaves)
        _equal((ours, *torch.autograd.grad(ours, leaves)), (theirs, *torch.autograd.grad(theirs, leaves)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_default_compiler(kernel: str, layout: str) -> None:
    """Inductor, all the way to machine code, with neighbours on both sides that it may fuse or lay out as it likes."""
    inputs = make(SMALL)
    leaves = [inputs.seed, *inputs.psi]
    if layout == "channels_last":
        leaves = [x.contiguous(memory_format=torch.channels_last) for x in leaves]
    leaves = [x.requires_grad_() for x in (*leaves, inputs.mu, inputs.beta)]
    compiled = torch.compile(_loss(kernel), fullgraph=True)
    ours, theirs = compiled(*leaves), _loss(kernel)(*leaves)
    _equal((ours, *torch.autograd.grad(ours, leaves)), (theirs, *torch.autograd.grad(theirs, leaves)))


def test_a_compiled_single_walk(backend: str) -> None:
    inputs = make(SMALL)
    state = make(SMALL, number=1).seed

    def run(state: Tensor, psi: Tensor, seed: Tensor) -> Tensor:
        return random_walk(state, psi, seed, 0.5, 0.25, backend=backend)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(state, inputs.psi[0], inputs.seed), run(state, inputs.psi[0], inputs.seed))


class Net(nn.Module):
    """A small network around the walk, to compile, export, checkpoint and copy."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.features = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.walk = CascadedRandomWalk(in_channels=(3, 6), embed_dim=5)

    def forward(self, image: Tensor) -> Tensor:
        return self.walk(self.scores(image), [image, self.features(image)])


def _net() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(2, 3, 8, 10)


def test_the_module_compiles() -> None:
    net, image = _net()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    _equal((compiled(image),), (net(image),))


def test_the_module_in_training_compiles() -> None:
    """With batch statistics and a backward through them."""
    net, image = _net()
    other = copy.deepcopy(net)
    net.train()(image).square().sum().backward()
    torch.compile(other.train(), fullgraph=True, backend="aot_eager")(image).square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def _exported(net: nn.Module, image: Tensor, sizes: dict[int, torch.export.Dim] | None) -> nn.Module:
    """The exported program, after a round trip through a file; the cascade is one operator in it."""
    program = torch.export.export(net, (image,), dynamic_shapes=(sizes,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.difnet_kernels.cascade_forward.default) == 1
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "any_batch"])
def test_the_module_exports(dynamic: bool) -> None:
    """Its grid stays what it was, because torch's adaptive pooling makes its output size a constant."""
    net, image = _net()
    alone = _exported(net, image, {0: torch.export.Dim("batch")} if dynamic else None)
    for other in [image, torch.randn(5, 3, 8, 10)] if dynamic else [image]:
        _equal((alone(other),), (net(other),))


def test_the_cascade_exports_for_any_grid() -> None:
    class Cascade(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = cascaded_random_walk(x, [x.sin(), 2 * x], [0.5, 0.25], [0.75, 0.5])
            assert isinstance(y, Tensor)
            return y

    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    alone = _exported(Cascade(), torch.randn(3, 4, 5, 7), sizes)
    for shape in ((3, 4, 5, 7), (2, 4, 9, 6), (5, 4, 2, 33)):
        x = torch.randn(shape)
        _equal((alone(x),), (Cascade()(x),))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_walk_alone(backend: str, dtype: torch.dtype) -> None:
    """Logits of hundreds in 16 bits would be noise: gates, logits and sums stay fp32, results keep the seed's dtype."""
    inputs = make(SMALL)
    plain = both(inputs, backend)
    with torch.autocast(inputs.seed.device.type, dtype):
        cast = both(inputs, backend)
    assert all(torch.equal(a, b) for a, b in zip(cast.tensors(), plain.tensors(), strict=True))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_module_under_autocast(dtype: torch.dtype, compiled: bool) -> None:
    """Convolutions may be 16-bit; mu and beta are fp32, and every parameter gets a finite gradient of its own dtype."""
    net, image = _net()
    net.train()
    run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    with torch.autocast("cpu", dtype):
        assert net.walk.mu.dtype == net.walk.beta.dtype == torch.float32
        y = run(image)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert parameter.grad.dtype == torch.float32, name
    assert net.walk.mu_raw.grad.abs().max() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(backend: str, reentrant: bool) -> None:
    """The recomputed forward has the same bits, so the gradients have too."""
    leaves = _leaves()
    plain = torch.autograd.grad(_loss(backend)(*leaves), leaves)
    _checkpointed = torch.utils.checkpoint.checkpoint(_loss(backend), *leaves, use_reentrant=reentrant)
    _checkpointed.backward()
    assert all(torch.equal(leaf.grad, g) for leaf, g in zip(leaves, plain, strict=True))


def test_a_network_copies_saves_and_loads() -> None:
    net, image = _net()
    twin = copy.deepcopy(net)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = Net().eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin(image), net(image))
    assert torch.equal(fresh(image), net(image))


def test_the_operator_shows_in_a_profile(backend: str) -> None:
    """One name per direction, so that a user's profile says where the time went."""
    leaves = _leaves()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _loss(backend)(*leaves).backward()
    names = {event.key for event in profile.key_averages()}
    assert {"difnet_kernels::cascade_forward", "difnet_kernels::cascade_backward"} <= names
