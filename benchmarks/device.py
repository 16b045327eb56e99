"""What depends on the device that is measured: a CPU, a CUDA card, or a CPU that plays a card in a rehearsal.

The rehearsal runs every stage of `gpu_suite` on small problems, so that no import, path or archive fails on a card.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
REHEARSAL = "BENCHMARK_REHEARSAL"


class Device:
    """A CPU. What only a card can do (growth, captured, profiled) raises NotImplementedError."""

    name, torch, on_gpu, rehearsed = "cpu", "cpu", False, False
    backend: str | None = None

    def seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        pass

    def free_bytes(self) -> int:
        try:
            with open("/proc/meminfo") as lines:
                return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
        except (OSError, StopIteration):
            return 8 * 2**30

    def facts(self) -> dict[str, Any]:
        """For the header of a results file."""
        return {}

    def growth(self, run: Callable[[], object]) -> int:
        """Bytes that the allocator holds more at the worst moment of `run` than before."""
        raise NotImplementedError

    def captured(self, call: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        """The replay of `call` as a CUDA graph, and the tensors that a replay writes."""
        raise NotImplementedError

    def profiled(self, call: Callable[[], object]) -> dict[str, tuple[float, float]]:
        """Seconds and launches in one call, by kernel."""
        raise NotImplementedError


class Card(Device):
    name, torch, on_gpu, backend = "cuda", "cuda", True, "triton"

    def seconds(self, call: Callable[[], object]) -> float:
        """By events; the L2 cache is flushed before."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _flush_buffer().zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def growth(self, run: Callable[[], object]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def captured(self, call: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        here.wait_stream(side)
        graph, cause = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph):
                try:
                    made = call()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:
            torch.cuda.set_stream(here)  # a capture that fails stays on its own stream, and complains of itself alone
            raise cause or error from None
        return graph.replay, made

    def profiled(self, call: Callable[[], object]) -> dict[str, tuple[float, float]]:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
        events = [event for event in seen.key_averages() if event.device_time_total > 0]
        return {event.key: (event.device_time_total * 1e-6 / 3, event.count / 3) for event in events}

    def facts(self) -> dict[str, Any]:
        chip = torch.cuda.get_device_properties(0)
        query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        asked = ["nvidia-smi", query, "--format=csv,noheader"]
        smi = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which(asked[0]) else None
        memory = round(chip.total_memory / 2**30)
        return {"device": chip.name, "arch": f"sm_{chip.major}{chip.minor}", "multiprocessors": chip.multi_processor_count,
                "gpu_memory_gib": memory, "cuda": torch.version.cuda, "nvidia_smi": smi}  # fmt: skip


class Rehearsal(Device):
    """A CPU that answers like a card: a graph is the call itself, a profile one kernel."""

    name, on_gpu, rehearsed = "cuda", True, True

    def facts(self) -> dict[str, Any]:
        return {"device": "rehearsal on a CPU", "arch": "sm_90", "multiprocessors": 1}

    def growth(self, run: Callable[[], object]) -> int:
        run()
        return 1

    def captured(self, call: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        made = call()

        def replay() -> None:
            for old, new in zip(tensors_of(made), tensors_of(call()), strict=True):
                old.detach().copy_(new)

        return replay, made

    def profiled(self, call: Callable[[], object]) -> dict[str, tuple[float, float]]:
        return {"walk_rehearsed": (self.seconds(call), 1.0)}


@cache
def _flush_buffer() -> Tensor:
    return torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")


@cache
def device(name: str) -> Device:
    """The device called "cpu" or "cuda"; the environment variable BENCHMARK_REHEARSAL puts a CPU in a card's place."""
    if name == "cpu":
        return Device()
    return Rehearsal() if os.environ.get(REHEARSAL) else Card()


def tensors_of(made: object) -> list[Tensor]:
    """The tensors in lists of lists."""
    if isinstance(made, Tensor):
        return [made]
    return [x for part in made for x in tensors_of(part)] if isinstance(made, (list, tuple)) else []


def here() -> str:
    """What this machine can measure: its card, if it has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
