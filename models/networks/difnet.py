"""DifNet (Jiang et al. 2018), in the order of its Fig. 1."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from models.networks.deeplab import Details, Network, SeedBranch, upsample
from models.networks.diffusion import Cascade, ClosedForm
from models.networks.resnet import ResNetTrunk

WALKS = (1, 2, 3, 4, 5)


class DifNet(Network):
    """Scores from one branch, diffused by a cascade of random walks along the similarities of the other.

    importance: the map M of the seed s = M x, or None for s = x.
    walk: the diffusion; it gets one feature map per entry of `walks`.
    walks: which of the five walks exist; walk 1 reads the image, walks 2…5 the stages of the similarity branch.
           The paper's ablation is (1, 3, 5). The similarity branch has no stage past the last walk's.
    """

    def __init__(
        self,
        seed_branch: SeedBranch,
        similarity_branch: ResNetTrunk,
        importance: nn.Module | None,
        walk: Cascade | ClosedForm,
        walks: Sequence[int] = WALKS,
    ) -> None:
        super().__init__()
        self.seed_branch = seed_branch
        self.similarity_branch = similarity_branch
        self.importance = importance
        self.walk = walk
        self.walks = check_walks(walks)

    def forward(self, image: torch.Tensor, return_details: bool = False) -> torch.Tensor | Details:
        """image (B, 3, H, W), normalised -> logits (B, K, H, W), or all intermediate maps as `Details`."""
        scores, psi = self.branches(image)  # (B, K, H', W'), x, and T × (B, D, H', W')
        importance = None if self.importance is None else self.importance(scores)  # (B, 1, H', W'), M
        seed = scores if importance is None else importance * scores  # (B, K, H', W'), s
        if not return_details:
            return upsample(self.walk.diffuse(seed, psi), image)
        steps = list(self.walk.steps(seed, psi))  # y¹ … yᵀ
        return Details(upsample(steps[-1], image), scores, importance, seed, steps, psi)

    def trunks(self) -> list[ResNetTrunk]:
        return [self.seed_branch.trunk, self.similarity_branch]

    def similarity(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The embeddings ψₜ (B, D, H', W') of every walk: softmax of each row of ψₜ ψₜᵀ is Pₜ."""
        levels = (image, *self.similarity_branch(image))
        return self.walk.embeddings([levels[walk - 1] for walk in self.walks], ResNetTrunk.grid(image.shape[2:]))

    def branches(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores x and embeddings ψ. The branches do not read each other, so a GPU runs them side by side."""
        home, away = device_of(self.seed_branch), device_of(self.walk.psi)
        if home != away:  # launches return at once, so two devices overlap by themselves
            psi = self.similarity(image.to(away, non_blocking=True))
            scores = self.seed_branch(image.to(home, non_blocking=True))
            return scores, [embedding.to(home, non_blocking=True) for embedding in psi]
        if not self._side_by_side(image):
            return self.seed_branch(image), self.similarity(image)

        main, side = torch.cuda.current_stream(image.device), _side_stream(image.device)
        side.wait_stream(main)
        image.record_stream(side)
        with torch.cuda.stream(side):
            psi = self.similarity(image)
        scores = self.seed_branch(image)
        main.wait_stream(side)
        for embedding in psi:  # the allocator must not reuse their memory while the walks still read it
            embedding.record_stream(main)
        return scores, psi

    def place(self, device_map: Mapping[str, str | torch.device]) -> "DifNet":
        """Put the branches on devices: {"seed": "cuda:0", "similarity": "cuda:1"}.

        Ψ lives with the similarity branch, so that only embeddings travel; everything else with the seed branch,
        where logits come out.
        """
        if set(device_map) != {"seed", "similarity"}:
            raise ValueError(f"device_map needs exactly the keys 'seed' and 'similarity'; got {sorted(device_map)}.")
        self.to(device_map["seed"])
        self.similarity_branch.to(device_map["similarity"])
        self.walk.psi.to(device_map["similarity"])
        return self

    def _side_by_side(self, image: torch.Tensor) -> bool:
        # a compiler schedules by itself, and the gradient buckets of data parallel training expect one stream
        if not image.is_cuda or torch.compiler.is_compiling():
            return False
        return not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized())


def check_walks(walks: Sequence[int]) -> tuple[int, ...]:
    """The walks in order; ValueError unless they are distinct, increasing and among 1 … 5."""
    walks = tuple(int(walk) for walk in walks)
    if not walks or sorted(set(walks)) != list(walks) or not set(walks) <= set(WALKS):
        raise ValueError(f"walks must be distinct, increasing and among {WALKS}; got {walks}.")
    return walks


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


_SIDE_STREAMS: dict[torch.device, "torch.cuda.Stream"] = {}


def _side_stream(device: torch.device) -> "torch.cuda.Stream":
    # one per device for the whole process: streams are few, and modules must stay picklable and copyable
    if device not in _SIDE_STREAMS:
        _SIDE_STREAMS[device] = torch.cuda.Stream(device)
    return _SIDE_STREAMS[device]
