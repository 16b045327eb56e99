"""Which problems the backend refuses for their device: decided by the tensors' own, whichever is the current one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from difnet_kernels.backends import triton as backend
from difnet_kernels.problem import Problem, Projection


def problems(device: str) -> tuple[Problem, Projection]:
    seed, psi = torch.empty(1, 3, 8, device="meta"), torch.empty(1, 4, 8, device="meta")
    cascade = Problem.of(seed, [psi], "high")
    projection = Projection.of(torch.empty(1, 3, 4, 4, device="meta"), torch.empty(4, 3, device="meta"), (2, 2))
    cascade.device = projection.device = torch.device(device)
    return cascade, projection


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Two GPUs, sm_90 and sm_75, of which the second is the current one."""
    found = [(9, 0), (7, 5)]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: found[torch.device(device or "cuda:1").index]
    )
    for cached in (backend.unusable, backend._too_old):
        cached.cache_clear()
    yield found
    for cached in (backend.unusable, backend._too_old):
        cached.cache_clear()


def reasons(device: str) -> list[str | None]:
    cascade, projection = problems(device)
    return [backend.refuses(cascade), backend.refuses_projection(projection)]


def test_the_device_of_the_tensors_decides(cards: list[tuple[int, int]]) -> None:
    assert backend.unusable() is None
    assert reasons("cuda:0") == [None, None]
    assert all(reason is not None and "sm_75" in reason and "sm_80" in reason for reason in reasons("cuda:1"))


def test_other_devices_are_told_where_to_go(cards: list[tuple[int, int]]) -> None:
    for device in ("cpu", "xpu:0"):
        assert all(reason is not None and device in reason and "CUDA" in reason for reason in reasons(device))


def test_cards_that_are_all_too_old(cards: list[tuple[int, int]]) -> None:
    cards[0] = (7, 0)
    assert backend.unusable() == "the GPU is sm_70; the kernels need sm_80 or later"


def test_rocm_is_no_cuda(cards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "ROCm" in str(backend.unusable())


def test_no_device_at_all(cards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.unusable() == "no CUDA device"
