"""One process or many: which device is mine, and sums over all of them. Started by torchrun, or alone."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among `size` of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float | torch.Tensor) -> torch.Tensor:
        """The values summed over all processes, fp64, on this process's device."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        stacked = torch.stack([torch.as_tensor(value, dtype=dtype, device=self.device) for value in values])
        if self.size > 1:
            dist.all_reduce(stacked)
        return stacked

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(device: str | None = None) -> Processes:
    """Enter the group torchrun announces in the environment (nccl on GPUs, gloo on CPUs), or stay alone.

    device: "cpu", "cuda", "cuda:1" …; None takes a GPU if there is one. Several processes spread over the GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        return Processes(0, 1, chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), size, chosen)


def choose_device(name: str | None = None) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1" …; None takes a GPU if there is one. ValueError if it is not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda, cuda:1 …; got {name!r}.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(
            f"--device {name} needs a CUDA torch and that GPU; torch {torch.__version__} sees {found or 'none'}."
        )
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda, cuda:1 …; got {name!r}, where the walks have no kernels.")
    return chosen


def leave() -> None:
    """Take the process group down, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
