"""Without a card there is nothing to collect in the file that needs one."""

from __future__ import annotations

import pytest

from difnet_kernels.backends import cuda

collect_ignore = [] if cuda.unusable() is None else ["test_on_a_card.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what needs no library of the twin: the room cuda-host, which runs at the same time, compiles that meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_projection_faults.py")
