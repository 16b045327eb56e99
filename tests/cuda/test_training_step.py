"""A step of training of the tiny DifNet, with Ψ and the walks on the twin, equals the CPU's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from difnet_kernels import CascadedRandomWalk, cascaded_random_walk
from difnet_kernels.backends import BACKENDS
from models import build_model
from models.networks import diffusion
from tests.cuda import host_backend


def trained(backend: str, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the parameters after one step, of an image of 65² (9² nodes)."""
    monkeypatch.setattr(diffusion, "cascaded_random_walk", partial(cascaded_random_walk, backend=backend))
    torch.manual_seed(3)
    model = build_model("difnet_tiny", 5).train()
    for part in model.modules():
        if isinstance(part, CascadedRandomWalk):
            part.backend = backend  # of its Ψ
    image, label = torch.randn(2, 3, 65, 65), torch.randint(5, (2, 65, 65))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(image), label)  # logits of the size of the image
    loss.backward()
    optimizer.step()
    return loss.item(), {name: x.detach().clone() for name, x in model.named_parameters()}


def test_a_training_step_equals_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noting(name: str, *given: Any, **more: Any) -> None:
        used.append(name)
        host_backend.BACKEND.direction(name)(*given, **more)

    names = ("cascade_forward", "cascade_backward", "projection_forward", "projection_backward")
    twin = replace(host_backend.BACKEND, **{name: partial(noting, name) for name in names})  # type: ignore[arg-type]
    monkeypatch.setitem(BACKENDS, host_backend.NAME, twin)
    loss, parameters = trained(host_backend.NAME, monkeypatch)
    assert set(used) == set(names)
    assert used.count("projection_backward") == used.count("projection_forward") > 1
    expected_loss, expected = trained("cpu", monkeypatch)
    torch.manual_seed(3)
    start = dict(build_model("difnet_tiny", 5).named_parameters())
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    moved = 0
    for name, x in parameters.items():
        step, size = expected[name] - start[name].detach(), (expected[name] - start[name].detach()).abs().max()
        moved += bool(size > 0)
        assert (x - start[name].detach() - step).abs().max() <= 1e-3 * size + 1e-7, name
    assert moved > len(parameters) / 2
