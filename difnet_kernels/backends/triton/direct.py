"""Compiled kernels that are kept and started directly, without Triton's own look at every argument.

A binary follows from the constants, the dtypes of the tensors, the alignment of those that are not `given_`, the launch
row and the device; all else compiles nothing new (`launch.kernel`). Triton finds that out again at every launch, which is
most of its time on the host. Here the first launch of a case is Triton's own, and the next ones start what it compiled, with
addresses in place of tensors: the launcher asks nobody about those.

The way to start a binary is not part of Triton's public interface. It is the same in the versions below; under any other,
with launch hooks (a profiler's), or for a case that the rules do not cover, every launch is Triton's own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver

LOG = logging.getLogger(__name__)
VERSIONS = frozenset({(3, 6), (3, 7), (3, 8), (3, 9)})
ALIGNED = 15  # the bits that are zero in the address of what loads of 16 bytes may read

_address, _dtype = Tensor.data_ptr, attrgetter("dtype")
Key = tuple[Any, ...]


@cache
def known(version: str) -> bool:
    """Whether this version of Triton starts a binary in the way of `Direct.started`; the log says so once if not."""
    if tuple(int(part) for part in version.split(".")[:2]) in VERSIONS:
        return True
    LOG.debug("Triton %s is not among those whose binaries are started directly: every launch is its own", version)
    return False


def _getter(names: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """The values of these names, as a tuple whatever their number."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda arguments: tuple(arguments[name] for name in names)


class Direct:
    """The binaries of one kernel, by what they follow from. Its parameters: tensors (x_ptr, or x_ptrs for a tuple of them),
    sizes, strides and other numbers of a given type, constants."""

    def __init__(self, parameters: Mapping[str, inspect.Parameter], constants: frozenset[str]):
        tensors = [name for name in parameters if name.endswith(("_ptr", "_ptrs"))]
        numbers = [name for name in parameters if name not in constants and name not in tensors]
        sizes = [name for name in numbers if parameters[name].annotation is inspect.Parameter.empty]
        typed = [name for name in numbers if name not in sizes]
        order = [*tensors, *sizes, *typed, *(name for name in parameters if name in constants)]
        assert order == list(parameters), f"tensors, sizes, other numbers, constants: {order}"
        self.tuples = any(name.endswith("_ptrs") for name in tensors)
        self.tensors, self.others = _getter(tensors), _getter(order[len(tensors) :])
        self.constants = slice(len(numbers), None)
        self.given = _getter([place for place, name in enumerate(tensors) if name.startswith("given_")])
        self.aligned = [place for place, name in enumerate(tensors) if not name.startswith("given_")]
        self.kept: dict[Key, tuple[Any, ...]] = {}

    def started(
        self, device: int, arguments: Mapping[str, Any], programs: int, warps: int, stages: int, of: torch.dtype | None
    ) -> Key | None:
        """Starts the binary of this case if it was kept: None. Else the case, to be kept once it was launched; or () if it
        cannot be.

        of: all tensors but `given_` are this package's own: aligned, and of dtypes that follow from this one and the constants
        (any dtype, where from the constants alone); None: look at them all. Sizes are below 2³¹, or the backend had refused
        the problem, so they are 32-bit numbers to Triton.
        """
        tensors, others = self.tensors(arguments), self.others(arguments)
        looked_at = tensors if of is None else self.given(tensors)
        addresses: list[Any]
        types: tuple[Any, ...]
        if self.tuples:
            addresses = [tuple(map(_address, x)) if type(x) is tuple else x.data_ptr() for x in tensors]
            types = tuple(tuple(map(_dtype, x)) if type(x) is tuple else x.dtype for x in looked_at)
        else:
            addresses, types = list(map(_address, tensors)), tuple(map(_dtype, looked_at))
        hooked = knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls
        if hooked or (of is None and not self.all_aligned(addresses)):
            return ()
        key = (device, warps, stages, of, types, others[self.constants])
        found = self.kept.get(key)
        if found is None:
            return key
        run, function, metadata = found
        stream = driver.active.get_current_stream(device)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *addresses, *others)
        return None

    def all_aligned(self, addresses: Sequence[Any]) -> bool:
        """Whether loads of 16 bytes may read every tensor but `given_`."""
        return not any(addresses[place] & ALIGNED for place in self.aligned)

    def keep(self, key: Key, made: Any) -> None:
        """What Triton compiled and started for this case."""
        run = getattr(made, "_run", None)  # not there before it was started
        if key and run is not None and known(triton.__version__):
            self.kept[key] = run, made.function, made.packed_metadata
