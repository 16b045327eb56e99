"""A decomposed program holds no operator of the library and computes what the module computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels import CascadedRandomWalk, DiffusedHead, onnx_decompositions, random_walk


def plain(net: nn.Module, *inputs: Tensor) -> nn.Module:
    program = torch.export.export(net, inputs).run_decompositions(onnx_decompositions())
    assert not [node for node in program.graph.nodes if "difnet_kernels" in str(node.target)]
    return program.module()


def lived_in(net: nn.Module) -> nn.Module:
    """Statistics and slopes as after some training: also negative slopes, where a pooling wants the least."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for x in (module.weight.data, module.bias.data, module.running_mean):
                x.normal_()
            module.running_var.uniform_(0.5, 2.0)
            assert module.weight.min() < 0
    return net.eval()


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("affinity", "grid"),
    [("dot", (5, 4)), ("dot", (7, 11)), ("gaussian", (5, 4)), ("cosine", (5, 4))],  # windows of two sizes, or of one
)
def test_a_walk(affinity: str, grid: tuple[int, int]) -> None:
    """Against the module in fp64; fp32 rounding of logits below 100 reaches 1e-5 of the scores."""
    torch.manual_seed(0)
    net = lived_in(CascadedRandomWalk((3, 6), 8, affinity=affinity, scale="sqrt"))
    seed, features = torch.randn(2, 5, *grid), [torch.randn(2, 3, 13, 11), torch.randn(2, 6, 7, 6)]

    class Net(nn.Module):
        def __init__(self, walk: nn.Module) -> None:
            super().__init__()
            self.walk = walk

        def forward(self, seed: Tensor, image: Tensor, block: Tensor) -> tuple[Tensor, ...]:
            return self.walk(seed, [image, block], return_steps=True)

    true = copy.deepcopy(net).double()(seed.double(), [x.double() for x in features], return_steps=True)
    for found, step in zip(plain(Net(net), seed, *features)(seed, *features), true, strict=True):
        torch.testing.assert_close(found.double(), step, rtol=0, atol=1e-5 * step.abs().max().item())


def test_a_head_with_a_stride() -> None:
    torch.manual_seed(0)
    head = lived_in(DiffusedHead(nn.Conv2d(4, 5, 3, padding=1), [4], stride=4, embed_dim=8))
    head.walk.gamma.data.fill_(0.7)
    features = torch.randn(2, 4, 16, 12)
    expected = head(features)
    assert (expected - head.head(features)).abs().max() > 0.01
    torch.testing.assert_close(plain(head, features)(features), expected, rtol=0, atol=1e-5)


def test_a_state_a_bias_and_lse() -> None:
    """A mask is a bias of -inf; its nodes keep their state."""

    class Net(nn.Module):
        def forward(
            self, state: Tensor, psi: Tensor, seed: Tensor, bias: Tensor, mask: Tensor
        ) -> tuple[Tensor, Tensor]:
            return random_walk(state, psi, seed, 0.6, 0.5, bias=bias, mask=mask, return_lse=True, backend="reference")

    torch.manual_seed(0)
    mask = torch.ones(2, 5, 4, dtype=torch.bool)
    mask[1, 3:] = False
    inputs = torch.randn(2, 3, 5, 4), torch.randn(2, 4, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 5, 4), mask
    for found, expected in zip(plain(Net(), *inputs)(*inputs), Net()(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
