"""How long does Ψ take, from a feature map to embeddings on the grid of the seed, beside the three torch layers?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, batch_norm, conv2d

from benchmarks.clock import Call
from benchmarks.correctness import Verdict
from benchmarks.tasks import DTYPES, Entrant, Row, Task, contest

EPSILON = 1e-5


@dataclass(frozen=True)
class PsiTask(Task):
    """Ψ1 in evaluation mode: features (B, channels, side, side) to (B, D, *grid of the case)."""

    channels: int = 256
    side: int = 127

    def __str__(self) -> str:
        return f"{super().__str__()}-C{self.channels}-S{self.side}"

    def measure(self, device: str) -> list[Row]:
        draw = torch.Generator().manual_seed(7)
        shape = (self.case.batch, self.channels, self.side, self.side)
        dtype = DTYPES[self.dtype]
        features = torch.randn(shape, generator=draw).to(device, dtype, memory_format=torch.channels_last)
        weight = (torch.randn(self.case.embed, self.channels, generator=draw) * self.channels**-0.5).to(device, dtype)
        bias = torch.randn(self.case.embed, generator=draw).to(device, dtype)
        norm = nn.BatchNorm2d(self.case.embed, eps=EPSILON).to(device, dtype).eval()
        with torch.no_grad():
            for values, low in ((norm.running_var, 0.5), (norm.weight, 0.5)):
                values.copy_((low + torch.rand(self.case.embed, generator=draw)).to(device, dtype))
            norm.running_mean.copy_(torch.randn(self.case.embed, generator=draw).to(device, dtype))
        truth = _layers(features.double(), weight.double(), bias.double(), _double(norm), self.case.grid)

        def ours() -> Tensor:
            from difnet_kernels import psi_projection

            with torch.no_grad():
                return psi_projection(features, weight, bias, norm, self.case.grid)

        def layers() -> Tensor:
            with torch.no_grad():
                return _layers(features, weight, bias, norm, self.case.grid)

        def checked(call: Call) -> tuple[Call, Verdict]:
            error = ((call().double() - truth).abs().max() / truth.abs().max()).item()
            # one product over the channels and one affine map
            return call, Verdict(error, 1e-5 if self.dtype == "fp32" else 4 * 2.0**-8, "psi")

        entrants = {
            "ours": Entrant("difnet_kernels", None, lambda: checked(ours)),
            "layers": Entrant("conv, BN, pool", None, lambda: checked(layers)),
        }
        return contest(self, {name: entrants[name] for name in self.contenders}, device)


def _layers(features: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, grid: tuple[int, int]) -> Tensor:
    projected = conv2d(features, weight[:, :, None, None], bias)
    normal = batch_norm(
        projected, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=EPSILON
    )
    return adaptive_max_pool2d(normal, grid)


def _double(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    twin = nn.BatchNorm2d(norm.num_features, eps=EPSILON)
    twin.load_state_dict(norm.state_dict())
    return twin.to(norm.weight.device).double().eval()
