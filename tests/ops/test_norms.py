"""Ψ calls the normalisation that it does not know: only torch's own classes, left as they are, are read instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from difnet_kernels import CascadedRandomWalk, PsiProjection, psi_projection
from difnet_kernels.batch_norm import fuses
from tests.support.cases import DTYPES, normal
from tests.support.tolerances import PROJECTION, assert_within

EMBED, GRID = 6, (3, 4)


class NormAct(nn.BatchNorm2d):
    """As networks have it: a batch normalisation and its activation in one module."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Frozen(nn.Module):
    """Statistics and slopes that never move, as detection networks have them."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        for name, value in (("weight", normal(1, embed)), ("bias", normal(2, embed)), ("mean", normal(3, embed))):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.view(-1, 1, 1)) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def _hooked(kind: str) -> nn.Module:
    norm = nn.BatchNorm2d(EMBED)
    if kind == "forward hook":
        norm.register_forward_hook(lambda module, given, out: 2 * out)
    elif kind == "pre-hook":
        norm.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    else:
        norm.forward = lambda x: nn.BatchNorm2d.forward(norm, x).exp()  # type: ignore[method-assign]
    return norm


NORMS: dict[str, Callable[[], Any]] = {
    "subclass with a forward": lambda: NormAct(EMBED),
    "frozen": lambda: Frozen(EMBED),
    "identity": nn.Identity,
    "group": lambda: nn.GroupNorm(2, EMBED),
    "instance": lambda: nn.InstanceNorm2d(EMBED, affine=True),
    "forward hook": lambda: _hooked("forward hook"),
    "pre-hook": lambda: _hooked("pre-hook"),
    "forward put on the instance": lambda: _hooked("forward"),
    "compiled": lambda: torch.compile(nn.BatchNorm2d(EMBED), backend="eager"),
    "compiled in place": lambda: _compiled(nn.BatchNorm2d(EMBED)),
    "a function": lambda: torch.nn.functional.leaky_relu,
}


def _compiled(norm: nn.Module) -> nn.Module:
    norm.compile(backend="eager")
    return norm


def _layers(features: Tensor, weight: Tensor, bias: Tensor, norm: Any) -> Tensor:
    return adaptive_max_pool2d(norm(nn.functional.conv2d(features, weight[..., None, None], bias)), GRID)


@pytest.mark.smoke
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NORMS)
def test_any_normalisation_is_the_layers_one_by_one(name: str, training: bool) -> None:
    """Output, every gradient, every buffer."""
    torch.manual_seed(0)
    ours = NORMS[name]()
    theirs = (
        copy.deepcopy(ours)
        if isinstance(ours, nn.Module) and "compiled" not in name and "put" not in name
        else NORMS[name]()
    )
    found = []
    for norm, run in ((ours, psi_projection), (theirs, _layers)):
        if isinstance(norm, nn.Module):
            norm.train(training)
        leaves = [normal(5, 2, 3, 9, 11), normal(6, EMBED, 3), normal(7, EMBED)]
        leaves = [x.requires_grad_() for x in leaves]
        psi = run(*leaves, norm, GRID) if run is psi_projection else run(*leaves, norm)
        learn = [*leaves, *(norm.parameters() if isinstance(norm, nn.Module) else ())]
        grads = torch.autograd.grad(psi, learn, normal(8, *psi.shape))
        buffers = [b.double() for b in norm.buffers()] if isinstance(norm, nn.Module) else []
        found.append([psi.detach(), *grads, *buffers])
    for number, (a, b) in enumerate(zip(*found, strict=True)):
        assert_within(f"result {number}", a, b.double(), 4 * PROJECTION[torch.float32], floor=1e-5)
    assert found[0][0].movedim(1, -1).is_contiguous(), "node-major, as the fused way has it"


@pytest.mark.smoke
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_torchs_own_classes_are_fused(kind: type[nn.Module]) -> None:
    assert fuses(kind(EMBED))  # type: ignore[call-arg]
    assert fuses(None)
    assert not any(fuses(make()) for make in NORMS.values())


@pytest.mark.smoke
def test_hooks_of_the_module_run() -> None:
    ran = []
    walk = CascadedRandomWalk((3,), EMBED)
    walk.psi[0].norm.register_forward_hook(lambda *_: ran.append(1))
    walk(torch.randn(1, 2, *GRID), [torch.randn(1, 3, 9, 11)])
    assert ran


@pytest.mark.parametrize("size", [(20,), (4, 5, 6)], ids=str)
def test_a_hooked_norm_of_images_serves_signals_and_volumes(size: tuple[int, ...]) -> None:
    plain = PsiProjection(3, EMBED)
    hooked = copy.deepcopy(plain)
    hooked.norm.register_forward_hook(lambda module, given, out: None)
    x, grid = torch.randn(2, 3, *size), tuple(n // 2 for n in size)
    assert_within("psi", hooked(x, grid), plain(x, grid).double(), PROJECTION[torch.float32])
    assert_within("mean", hooked.norm.running_mean, plain.norm.running_mean.double(), PROJECTION[torch.float32])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_called_norm_in_16_bits_and_under_autocast(dtype: str) -> None:
    half = PsiProjection(3, EMBED)
    half.norm = nn.GroupNorm(2, EMBED)
    half = half.to(DTYPES[dtype])
    assert half(torch.randn(2, 3, 9, 11, dtype=DTYPES[dtype]), GRID).dtype == DTYPES[dtype]
    full = PsiProjection(3, EMBED)
    full.norm = nn.GroupNorm(2, EMBED)
    x = normal(1, 2, 3, 9, 11)
    with torch.autocast("cpu", DTYPES[dtype]):
        cast = full(x, GRID)
    assert_within("psi", cast.float(), full(x, GRID).double(), PROJECTION[torch.float32])


def test_what_a_norm_returns_must_be_a_map() -> None:
    with pytest.raises(ValueError, match=r"norm must return a map \(B, D, \*S\)"):
        psi_projection(torch.randn(2, 3, 9, 11), torch.randn(EMBED, 3), None, lambda z: z.mean((2, 3)), GRID)
    with pytest.raises(TypeError, match=r"norm must return a map \(B, D, \*S\), .* got NoneType"):
        psi_projection(torch.randn(2, 3, 9, 11), torch.randn(EMBED, 3), None, lambda z: None, GRID)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="norm must be a normalisation to call"):
        psi_projection(torch.randn(2, 3, 9, 11), torch.randn(EMBED, 3), None, "batch", GRID)  # type: ignore[arg-type]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(3, 4, 1)
        self.walk = CascadedRandomWalk((3, 4), EMBED, residual=True)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.scores(image)
        out = self.walk(scores, [image, scores])
        assert isinstance(out, Tensor)
        return out


def _wrapped(how: str, net: Net) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    if how == "DDP":
        return nn.parallel.DistributedDataParallel(net)
    if how == "FSDP1":
        policy = ModuleWrapPolicy({nn.BatchNorm2d, PsiProjection})
        return FullyShardedDataParallel(
            net, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
        )
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for psi in net.walk.psi:
        fully_shard(psi.norm, mesh=mesh)
        fully_shard(psi, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def _process(rank: int, world: int, group: Path, how: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=group.as_uri(), rank=rank, world_size=world)
    try:
        torch.manual_seed(0)
        net = Net()
        alone = copy.deepcopy(net)
        run = _wrapped(how, net)
        image = torch.randn(2, 3, 6, 7)
        optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (run, alone)]
        for _ in range(2):
            losses = [module(image).square().mean() for module in (run, alone)]
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        results[rank] = [loss.item() for loss in losses]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("how", ["DDP", "FSDP1", "FSDP2"])
def test_a_wrapped_net_learns_as_it_does_alone(how: str, tmp_path: Path) -> None:
    """Also where every normalisation is sharded by itself, as wrap policies do."""
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_process, (2, tmp_path / "group", how, results), nprocs=2)
        for wrapped, alone in results.values():
            assert wrapped == pytest.approx(alone, rel=1e-4)
