"""Protocols of construction: tracers, meta devices, another import, type checkers."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from difnet_kernels import CascadedRandomWalk, cascaded_random_walk

ROOT = Path(__file__).resolve().parents[2]


class Net(nn.Module):
    """The walk beside layers, as a user has it, and once more as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.features = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.walk = CascadedRandomWalk(in_channels=(3, 6), embed_dim=5)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.scores(image)
        out = cascaded_random_walk(self.walk(scores, [image, self.features(image)]), [scores], [0.5], [0.5])
        assert not isinstance(out, tuple)
        return out


@pytest.mark.smoke
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("how", ["fx", "jit.trace"])
def test_a_net_can_be_traced(how: str, training: bool) -> None:
    """Ψ is recorded layer by layer, the cascade as one call; results, gradients and buffers are those of the net."""
    torch.manual_seed(0)
    net, image = Net().train(training), torch.randn(2, 3, 8, 10)
    twin = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = (
            torch.fx.symbolic_trace(twin)
            if how == "fx"
            else torch.jit.trace(copy.deepcopy(net), image, check_trace=False)
        )
    if how == "jit.trace":
        traced.load_state_dict(net.state_dict())
    ours, theirs = traced(image), net(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    theirs_of = dict(net.named_parameters())
    for name, parameter in traced.named_parameters():
        true = theirs_of[name].grad
        torch.testing.assert_close(parameter.grad, true, rtol=1e-3, atol=1e-4 * max(1.0, true.abs().max().item()))


@pytest.mark.smoke
def test_a_symbolic_trace_serves_other_sizes() -> None:
    net = Net().eval()
    traced = torch.fx.symbolic_trace(net)
    for size in ((1, 3, 8, 10), (3, 3, 13, 9)):
        image = torch.randn(size)
        torch.testing.assert_close(traced(image), net(image), rtol=1e-4, atol=1e-5)


@pytest.mark.smoke
def test_a_module_made_on_meta_is_initialised_where_it_comes_to_lie() -> None:
    """As sharded training does it: to_empty leaves memory as it was, reset_parameters fills it."""
    with torch.device("meta"):
        walk = CascadedRandomWalk((3, 7), 5, gate=0.25)
    walk = walk.to_empty(device="cpu")
    for parameter in walk.parameters():
        parameter.detach().fill_(float("nan"))
    torch.manual_seed(0)
    for module in walk.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(0)
    fresh = CascadedRandomWalk((3, 7), 5, gate=0.25)
    assert torch.equal(walk.mu, fresh.mu) and torch.equal(walk.beta, fresh.beta)
    for (name, ours), theirs in zip(walk.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def _python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.smoke
def test_the_package_may_be_imported_again() -> None:
    """By reload, module by module as notebooks do, or after it was forgotten: operators are registered once more."""
    done = _python(
        "import importlib, sys, torch\n"
        "import difnet_kernels as old\n"
        "s, p = torch.randn(1, 2, 5).requires_grad_(), torch.randn(1, 3, 5)\n"
        "before = old.cascaded_random_walk(s, [p], [.5], [.5])\n"
        "importlib.reload(old)\n"
        "for name in sorted(name for name in sys.modules if name.startswith('difnet_kernels')):\n"
        "    importlib.reload(sys.modules[name])\n"
        "for name in [name for name in sys.modules if name.startswith('difnet_kernels')]:\n"
        "    del sys.modules[name]\n"
        "import difnet_kernels as new\n"
        "for package in (old, new):\n"
        "    y = package.cascaded_random_walk(s, [p], [.5], [.5])\n"
        "    assert torch.equal(y, before)\n"
        "    y.sum().backward()\n"
        "new.psi_projection(torch.randn(1, 3, 4, 4), torch.randn(5, 3), None, None, (2, 2))\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_type_checker_knows_what_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    use = tmp_path / "use.py"
    use.write_text(
        "import torch\n"
        "from difnet_kernels import cascaded_random_walk, random_walk\n"
        "s, p = torch.randn(1, 2, 5), torch.randn(1, 3, 5)\n"
        "y: torch.Tensor = cascaded_random_walk(s, [p], [0.5], [0.5])\n"
        "steps: tuple[torch.Tensor, ...] = cascaded_random_walk(s, [p], [0.5], [0.5], return_steps=True)\n"
        "y.argmax(1)\n"
        "b = torch.zeros(1, 5)\n"
        "y = random_walk(s, p, s, 0.5, 0.5, bias=b, mask=b == 0)\n"
        "pair: tuple[torch.Tensor, torch.Tensor] = random_walk(s, p, s, 0.5, 0.5, return_lse=True)\n"
        "y = cascaded_random_walk(s, [p, p], [0.5] * 2, [0.5] * 2, bias=[b, None])\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", str(use)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_a_program_saved_before_says_what_to_do() -> None:
    """Its call has one argument less; guessing it would hand on a list for a tensor."""
    s, p, gate = torch.randn(1, 2, 5), torch.randn(1, 3, 5), torch.rand(1)
    with pytest.raises(RuntimeError, match=r"exported with difnet_kernels 0\.1\. Export it again"):
        torch.ops.difnet_kernels.cascade_forward(None, s, [p], gate, gate, "high", "", False)
