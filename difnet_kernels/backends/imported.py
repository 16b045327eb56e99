"""A function of a backend whose modules are imported by its first use, not with the package."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any


class Imported:
    """The function `name` of `module`. Calling it works, and costs a call; `function` is the function itself."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    @cached_property
    def function(self) -> Callable[..., None]:
        found: Callable[..., None] = getattr(import_module(self.module), self.name)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.function(*args, **kwargs)
