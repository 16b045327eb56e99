"""What depends on the device that is measured: a CPU, a CUDA GPU, or a CPU that plays a GPU in a rehearsal.

The rehearsal runs every stage of `gpu_suite` on small problems, so that no import, path or archive fails on a card.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
REHEARSAL = "BENCHMARK_REHEARSAL"
# a kernel's name -> seconds and launches in one call
Kernels = dict[str, tuple[float, float]]


class Cpu:
    name, torch, on_gpu, backend = "cpu", "cpu", False, None
    rehearsed = False

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


class Cuda:
    name, torch, on_gpu, backend = "cuda", "cuda", True, "triton"
    rehearsed = False

    def seconds(self, call: Callable[[], object]) -> float:
        """By events; the L2 cache is flushed before."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed().zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    @cache  # noqa: B019  one device lives as long as its process
    def _flushed(self) -> Tensor:
        return torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def growth(self, run: Callable[[], object]) -> int:
        """Bytes that the allocator holds more at the worst moment of `run` than before."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def captured(self, call: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        """The replay of `call` as a CUDA graph, and the tensors that a replay writes."""
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

    def profiled(self, call: Callable[[], object], times: int = 3) -> Kernels:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(times):
                call()
            torch.cuda.synchronize()
        return {
            event.key: (event.device_time_total * 1e-6 / times, event.count / times)
            for event in seen.key_averages()
            if event.device_time_total > 0
        }

    def facts(self) -> dict[str, object]:
        properties = torch.cuda.get_device_properties(0)
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        return {
            "device": properties.name,
            "arch": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "gpu_memory_gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "nvidia_smi": said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        }


class Rehearsal(Cpu):
    """A CPU that answers like a GPU: a graph is the call itself, a profile one kernel."""

    name, on_gpu, rehearsed = "cuda", True, True

    def growth(self, run: Callable[[], object]) -> int:
        run()
        return 1

    def captured(self, call: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        made = call()

        def replay() -> None:
            for old, new in zip(tensors_of(made), tensors_of(call()), strict=True):
                old.detach().copy_(new)

        return replay, made

    def profiled(self, call: Callable[[], object], times: int = 1) -> Kernels:
        return {"walk_rehearsed": (self.seconds(call), 1.0)}

    def facts(self) -> dict[str, object]:
        return {"device": "rehearsal on a CPU", "arch": "sm_90", "multiprocessors": 1}


Device = Cpu | Cuda | Rehearsal


@cache
def device(name: str) -> Device:
    """The device called "cpu" or "cuda"; the environment variable BENCHMARK_REHEARSAL puts a CPU in a GPU's place."""
    if name == "cpu":
        return Cpu()
    if name != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {name!r}.")
    return Rehearsal() if os.environ.get(REHEARSAL) else Cuda()


def tensors_of(made: object) -> list[Tensor]:
    """The tensors in lists of lists."""
    if isinstance(made, Tensor):
        return [made]
    return [x for part in made for x in tensors_of(part)] if isinstance(made, (list, tuple)) else []


def here() -> str:
    """What this machine can measure: its GPU, if it has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def said(*command: str) -> str | None:
    """The first line of what a command says, or None where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
