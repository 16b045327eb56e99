"""The normalisation inside Ψ keeps the state of its module exactly as torch's own batch normalisation would."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from difnet_kernels import PsiProjection, psi_projection
from tests.support.cases import normal
from tests.support.projections import Shape, composed, features, module, run
from tests.support.tolerances import PROJECTION, assert_within
from tests.support.truth import assert_same

SHAPE = Shape(3, 4, 5, (9, 7), (4, 3))
BOUND = PROJECTION[torch.float32]


def _both(norm: nn.BatchNorm2d, training: bool, backend: str | None = None, shift: float = 0.0) -> None:
    """Several batches through Ψ with `norm`, and through torch's layers with a copy of it in fp64: outputs, gradients,
    buffers. shift: added to the bias before the normalisation."""
    weight, bias = normal(1, 5, 4).requires_grad_(), (normal(2, 5) + shift).requires_grad_()
    twin = type(norm)(5, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.load_state_dict(norm.state_dict())
    theirs = nn.Sequential(nn.Conv2d(4, 5, 1), twin, nn.AdaptiveMaxPool2d(SHAPE.grid)).double().train(training)
    with torch.no_grad():
        theirs[0].weight.copy_(weight[..., None, None])
        theirs[0].bias.copy_(bias)
    norm.train(training)
    upstream = normal(3, 3, 5, *SHAPE.grid)
    for number in range(3):
        x = features(SHAPE, number=number).requires_grad_()
        exact = x.detach().double().requires_grad_()
        ours, true = psi_projection(x, weight, bias, norm, SHAPE.grid, backend=backend), theirs(exact)
        assert_within("psi", ours, true, BOUND)
        leaves = [x, weight, *norm.parameters()]
        true_leaves = [exact, theirs[0].weight, *twin.parameters()]
        grads = torch.autograd.grad(ours, leaves, upstream)
        true_grads = torch.autograd.grad(true, true_leaves, upstream.double())
        for place, (a, b) in enumerate(zip(grads, true_grads, strict=True)):
            assert_within(f"gradient {place}", a.reshape(b.shape), b, BOUND, floor=BOUND * SHAPE.values**0.5)
        for name, buffer in norm.named_buffers():
            assert_within(name, buffer.double(), twin.get_buffer(name).double(), BOUND)


@pytest.mark.smoke
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("momentum", "affine", "track"), list(product((0.1, None, 0.0, 1.0), (True, False), (True, False)))
)
def test_it_is_torchs_batch_normalisation(
    backend: str, momentum: float | None, affine: bool, track: bool, training: bool
) -> None:
    norm = nn.BatchNorm2d(5, 1e-3, momentum, affine, track)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(normal(4, 5))
            norm.bias.copy_(normal(5, 5))
    _both(norm, training, backend)


def test_a_large_bias_takes_nothing_from_the_result() -> None:
    """In training it cancels; as a part of the mean it would take the mean's last digits with it."""
    x, weight, norm = features(SHAPE), normal(1, 5, 4), nn.BatchNorm2d(5).train()
    plain = psi_projection(x, weight, None, norm, SHAPE.grid)
    assert torch.equal(psi_projection(x, weight, torch.full((5,), 1e6), norm, SHAPE.grid), plain)


def test_statistics_switched_off_after_the_start() -> None:
    """track_running_stats is read at every call, as torch reads it."""
    norm = nn.BatchNorm2d(5)
    _both(norm, True)
    norm.track_running_stats = False
    before = norm.running_mean.clone()
    psi_projection(features(SHAPE), torch.randn(5, 4), None, norm.train(), SHAPE.grid)
    assert torch.equal(norm.running_mean, before)


def test_a_half_network_keeps_half_buffers() -> None:
    ours = module(SHAPE).bfloat16().train()
    ours(features(SHAPE, "bf16"), SHAPE.grid)
    wide = module(SHAPE).bfloat16().float().train()
    wide(features(SHAPE, "bf16").float(), SHAPE.grid)
    for name in ("running_mean", "running_var"):
        half = getattr(ours.norm, name)
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, getattr(wide.norm, name).bfloat16())
    assert ours.norm.num_batches_tracked == 1


def test_the_bias_before_a_normalisation_has_the_gradient_zero() -> None:
    """Not none: optimisers and gradient buckets expect one."""
    ours = module(SHAPE).train()
    ours(features(SHAPE), SHAPE.grid).square().sum().backward()
    assert ours.bias.grad is not None and not ours.bias.grad.any()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm], ids=["alone", "sync"])
def test_one_value_per_channel_is_refused_as_torch_does(kind: type[nn.BatchNorm2d]) -> None:
    norm, x, weight = kind(5).train(), torch.randn(1, 4, 1, 1), torch.randn(5, 4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        psi_projection(x, weight, None, norm, (2, 2))
    psi_projection(x, weight, None, norm.eval(), (2, 2))


def test_a_training_step_is_bitwise_reproducible(kernel: str) -> None:
    def step() -> list[Tensor]:
        ours = module(SHAPE).train()
        optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
        for number in range(3):
            optimizer.zero_grad()
            x = features(SHAPE, number=number)
            psi = psi_projection(x, ours.weight, ours.bias, ours.norm, SHAPE.grid, backend=kernel)
            psi.square().sum().backward()
            optimizer.step()
        return [*ours.state_dict().values()]

    first = step()
    for _ in range(5):
        assert_same(step(), first)


SHARES = {"unequal": (slice(0, 1), slice(1, 3)), "none": (slice(0, 0), slice(0, 3))}


def _process(rank: int, group: Path, shares: str, results: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=group.as_uri(), rank=rank, world_size=2)
    try:
        ours = nn.SyncBatchNorm.convert_sync_batchnorm(module(SHAPE)).train()
        assert isinstance(ours, PsiProjection) and isinstance(ours.norm, nn.SyncBatchNorm)
        part = SHARES[shares][rank]
        found = run(ours, features(SHAPE)[part], SHAPE.grid, weights=normal(4, 3, 5, *SHAPE.grid)[part])
        results[rank] = [x.numpy() for x in found]  # type: ignore[index]
        if rank == 0:  # one process may evaluate alone, also without running statistics
            ours.eval().norm.running_mean = ours.norm.running_var = None
            ours(features(SHAPE), SHAPE.grid)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_share_the_statistics(shares: str, tmp_path: Path) -> None:
    """Outputs, gradients and buffers are those of one process with the whole batch, however it is shared out."""
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_process, (tmp_path / "group", shares, results), nprocs=2)
        one, two = ([torch.from_numpy(x) for x in results[rank]] for rank in (0, 1))
    weights = normal(4, 3, 5, *SHAPE.grid)
    ours = module(SHAPE).train()
    whole = run(composed(ours, SHAPE), features(SHAPE).double(), weights=weights)
    for place, name in enumerate(("psi", "features")):
        assert_within(name, torch.cat([one[place], two[place]]), whole[place], BOUND)
    floor = BOUND * whole[4].abs().max().item()
    for place, name in enumerate(("weight", "bias", "gamma", "beta"), 2):
        assert_within(name, (one[place] + two[place]).reshape(whole[place].shape), whole[place], BOUND, floor=floor)
    for place in range(6, 9):
        assert_within(f"buffer {place}", one[place], whole[place], BOUND)
        assert torch.equal(one[place], two[place])
