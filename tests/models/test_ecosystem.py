"""Two networks of other libraries with a walk in them, in everything that training and deployment do to a network."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from difnet_kernels import DiffusedHead, onnx_decompositions, parameter_groups

# network -> its package and the recipe that builds it
NETWORKS = {"fcn": ("torchvision", "torchvision_heads"), "unet": ("segmentation_models_pytorch", "smp_decoders")}
SIDE = 32


class Logits(nn.Module):
    """The network as a function of an image: torchvision's return a dict."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found = self.network(image)
        return found["out"] if isinstance(found, dict) else found


def build(name: str, gamma: float = 0.7) -> Logits:
    """A network of a recipe with a walk, whose statistics are of a batch, in evaluation mode."""
    package, recipe = NETWORKS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install .[examples]")
    torch.manual_seed(0)
    network = importlib.import_module(f"docs.examples.{recipe}").build(name)
    if name == "fcn":
        network.classifier = DiffusedHead(network.classifier, [128], embed_dim=16)
    else:
        network.segmentation_head = DiffusedHead(network.segmentation_head, [16], stride=8, embed_dim=16)
    net = Logits(network)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    net.train()(images(8)).sum().backward()
    for x in net.parameters():
        x.requires_grad_(x.grad is not None)  # an encoder may have stages that the decoder does not read
    (walk,) = (module.walk for module in net.modules() if isinstance(module, DiffusedHead))
    walk.gamma.data.fill_(gamma)
    return net.eval()


def copied(net: nn.Module) -> nn.Module:
    """In the mode of its origin, which the graphs of torchvision's feature extraction forget."""
    return copy.deepcopy(net).train(net.training)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def gradients(net: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    run(image).square().mean().backward()
    return {name: x.grad.clone() for name, x in net.named_parameters() if x.grad is not None}


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """In units of the largest value: fp32 rounding through twenty layers."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_average_and_a_copy_are_the_network(name):
    """EMA of two networks is the mean of their weights, μ, β and γ among them; a copy shares nothing with its origin."""
    net = build(name)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75))
    average.update_parameters(net)
    other = copied(net)
    with torch.no_grad():
        assert torch.equal(other(images(2)), net(images(2)))
        for x in other.parameters():
            x.add_(1.0)
        average.update_parameters(other)
        for mean, before in zip(average.module.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mean, before + 0.25)
        average.eval()(images(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_is_the_network(name):
    """One graph, forward and backward, in training."""
    net = build(name).train()
    image, other = images(4), copied(net)
    expected, seen = gradients(net, net, image), torch.compile(other, fullgraph=True, backend="aot_eager")
    found = gradients(other, seen, image)
    torch.compiler.reset()
    assert found.keys() == expected.keys()
    largest = max(x.abs().max() for x in expected.values())
    for key, x in expected.items():
        torch.testing.assert_close(found[key], x, rtol=1e-3, atol=1e-4 * largest.item(), msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_runs_in_torch_and_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install .[examples]")
    pytest.importorskip("onnxscript", reason="pip install .[examples]")
    net, image = build(name), images(1)
    with torch.no_grad():
        expected = net(image)
    exported = torch.export.export(net, (image,))
    close(exported.module()(image), expected)
    program = exported.run_decompositions(onnx_decompositions())
    torch.onnx.export(program, (image,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    close(torch.from_numpy(logits), expected)


def _process(rank: int, folder: str) -> None:
    """Of two: gradients of every network under both kinds of parallel training, each on its half of the images."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    mesh, image = init_device_mesh("cpu", (2,)), images(4)[2 * rank : 2 * rank + 2]
    for name in NETWORKS:
        net = build(name)
        replicated = nn.parallel.DistributedDataParallel(copied(net))
        found = {"ddp": gradients(replicated.module, replicated, image)}
        sharded = copied(net)
        for module in sharded.modules():
            if isinstance(module, DiffusedHead):
                fully_shard(module.walk, mesh=mesh)
                fully_shard(module, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        grads = gradients(sharded, sharded, image)
        found["fsdp"] = {key: x.full_tensor() for key, x in grads.items()}
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """The folder with the gradients that two processes found."""
    for package, _ in NETWORKS.values():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install .[examples]")
    folder = tmp_path_factory.mktemp("parallel")
    torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_have_the_gradients_of_one(name, kind, parallel):
    """Replicated and sharded: the mean over both halves of the images is that of all of them."""
    net = build(name)
    expected, found = gradients(net, net, images(4)), torch.load(parallel / f"{name}.pt")[kind]
    assert found.keys() == expected.keys()
    largest = max(x.abs().max() for x in expected.values())
    for key, x in expected.items():
        torch.testing.assert_close(found[key], x, rtol=1e-3, atol=1e-5 * largest.item(), msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_lightning_trains_saves_and_reads_it(name, tmp_path):
    """With the rates of `parameter_groups`; from γ = 0, which moves."""
    lightning = pytest.importorskip("lightning", reason="pip install .[ecosystem]")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build(name, gamma=0.0)

        def forward(self, image: Tensor) -> Tensor:
            return self.net(image)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameter_groups(self.net, 0.01, weight_decay=1e-4), momentum=0.9)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=2, default_root_dir=tmp_path, enable_checkpointing=False, devices=1, **quiet)
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(images(4), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    walk = next(m.walk for m in again.modules() if isinstance(m, DiffusedHead))
    assert walk.gamma.item() != 0
    with torch.no_grad():
        assert torch.equal(again.eval()(images(2)), module.eval()(images(2)))
