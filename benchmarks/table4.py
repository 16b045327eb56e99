"""Table 4 of the paper: the time of each part of DifNet-50, and of Sim-Deeplab-101, on one image of 505²."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases import CASES
from benchmarks.clock import Call
from benchmarks.peers import CONTENDERS, Setting
from benchmarks.tasks import DTYPES, UNAVAILABLE, Entrant, Row, Task, contest

# seconds in Table 4 of the paper, on one GTX 1080
PAPER_DEVICE = "GTX 1080"
PAPER = {"seed_branch": 0.018, "similarity_branch": 0.015, "ours": 0.006, "sim_deeplab101": 0.036}
SIDE = 505
# the parts, then the diffusion (Ψ and five walks) by each contender
PARTS = {
    "seed_branch": "DifNet-50, seed branch",
    "similarity_branch": "DifNet-50, similarity branch",
    "difnet50": "DifNet-50, all of it",
    "sim_deeplab101": "Sim-Deeplab-101",
}


@dataclass(frozen=True)
class Table4Task(Task):
    """Rows of Table 4; contenders name parts of the models, or contenders of the diffusion."""

    def measure(self, device: str) -> list[Row]:
        titles = {name: PARTS.get(name) or f"Diffusion, {CONTENDERS[name].title}" for name in self.contenders}
        if importlib.util.find_spec("models") is None or importlib.util.find_spec("models.builder") is None:
            reason = "models not available"
            return [self.row(name, title, status=UNAVAILABLE, reason=reason) for name, title in titles.items()]
        calls = _calls(self, device)
        rounds = (1, 20) if device == "cpu" else (3, 200)  # seconds each on a CPU
        entrants = {}
        for name, title in titles.items():
            reason = None
            if name in CONTENDERS:
                setting = Setting(CASES["eval505"], DTYPES[self.dtype], device, self.direction)
                reason = CONTENDERS[name].why_not(setting)
            entrants[name] = Entrant(title, reason, _warm(calls[name]))
        return contest(self, entrants, device, rounds=rounds)


def _warm(call: Call) -> Callable[[], tuple[Call, None]]:
    def prepare() -> tuple[Call, None]:
        call()
        return call, None

    return prepare


def _calls(task: Table4Task, device: str) -> dict[str, Call]:
    from models.builder import build_model

    torch.manual_seed(0)
    dtype = DTYPES[task.dtype]
    backward = task.direction == "forward+backward"

    def network(name: str) -> nn.Module:
        return build_model(name).to(device, dtype, memory_format=torch.channels_last).eval()

    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) - 0.5
    image = image.to(device, dtype, memory_format=torch.channels_last)
    networks: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in networks:
            networks[name] = network(name)
        return networks[name]

    def run(part: Callable[[], list[Tensor]], owner: nn.Module | None = None) -> Call:
        def call() -> None:
            if not backward:
                with torch.no_grad():
                    part()
                return
            outputs = part()
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            if owner is not None:
                owner.zero_grad(set_to_none=True)

        return call

    difnet = get("difnet50")
    with torch.no_grad():
        scores = difnet.seed_branch(image)
        seed = (difnet.importance(scores) * scores).detach()
        levels = [image, *(level.detach() for level in difnet.similarity_branch(image))]

    def seed_branch() -> list[Tensor]:
        x = difnet.seed_branch(image)
        return [difnet.importance(x) * x]

    def diffusion(contender: str) -> Callable[[], list[Tensor]]:
        cascade = CONTENDERS[contender].build(Setting(CASES["eval505"], dtype, device, task.direction))

        def part() -> list[Tensor]:
            psi = difnet.walk.embeddings(levels, seed.shape[2:])
            return [cascade(seed, psi, difnet.walk.mu, difnet.walk.beta)]

        return part

    calls = {
        "seed_branch": run(seed_branch, difnet),
        "similarity_branch": run(lambda: list(difnet.similarity_branch(image)), difnet),
        "difnet50": run(lambda: [difnet(image)], difnet),
        "sim_deeplab101": run(lambda: [get("sim_deeplab101")(image)], None),
    }
    for contender in task.contenders:
        if contender in CONTENDERS:
            calls[contender] = run(diffusion(contender), difnet)
    return calls
