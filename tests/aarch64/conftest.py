"""Tests of this folder need a cross compiler and an emulator, so they run where `--backends aarch64` asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.aarch64.backend import NAME


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NAME not in (config.getoption("--backends") or "").split(","):
        items[:] = [item for item in items if Path(__file__).parent not in item.path.parents]
