"""The contenders: ours, and what a user could choose instead today, each as fast as it can be called.

A contender maps fields to fields, `seed (B, K, *S), psi, mu, beta -> y (B, K, *S)`: all T walks with their epilogue,
and the padding that it needs, because a user pays for that too. Everyone gets the same channels-last fields, whose
nodes are rows in memory: the layout that suits all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.cases import Case
from benchmarks.cost import dense_bytes
from benchmarks.device import Device
from difnet_kernels import cascaded_random_walk
from difnet_kernels.backends import BACKENDS, reference
from difnet_kernels.problem import Problem

Cascade = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], Tensor]
# w = P y for node-major psi (B, N, D) and state (B, N, K)
Walk = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is asked of a contender."""

    case: Case
    dtype: torch.dtype
    on: Device
    direction: str  # "forward" or "forward+backward"

    @property
    def on_gpu(self) -> bool:
        return self.on.on_gpu


@dataclass(frozen=True)
class Contender:
    """why_not: the reason that it cannot run a setting, or None. fp32_logits: whether its 16-bit path keeps them."""

    name: str
    title: str
    why_not: Callable[[Setting], str | None]
    build: Callable[[Setting], Cascade]
    fp32_logits: bool = False


def cascade_of(walk: Walk) -> Cascade:
    """T walks around any product P y; what follows it is the reference's, in the dtype of the fields."""

    def cascade(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
        s = seed.flatten(2).mT  # (B, N, K), a view of a channels-last field
        mu, beta = mu.to(s.dtype), beta.to(s.dtype)
        y = s
        for t, p in enumerate(psi):
            y = reference.step(walk(p.flatten(2).mT, y), s, y, mu[t], beta[t])
        return y.mT.reshape(seed.shape)

    return cascade


def dense_walk(psi: Tensor, state: Tensor) -> Tensor:
    """The formula of the paper, matrices and all."""
    return torch.softmax(psi @ psi.mT, -1) @ state


def backend_in_use(on: Device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that `cascaded_random_walk` chooses for a small problem."""
    field = torch.zeros(1, 8, 16, dtype=dtype, device=on.torch)
    problem = Problem.of(field, [field], "high")
    runs = (
        name
        for name, backend in BACKENDS.items()
        if (backend.why_not(problem) or backend.not_preferred(problem)) is None
    )
    return next(runs)


def _ours_unfit(setting: Setting) -> str | None:
    # without a compiled library the package falls back to the dense reference, which has the dense path's appetite
    return _too_large(setting) if backend_in_use(setting.on, setting.dtype) == "reference" else None


def _too_large(setting: Setting) -> str | None:
    needed = dense_bytes(setting.case, setting.direction, torch.finfo(setting.dtype).bits // 8)
    limit = 0.6 * setting.on.free_bytes()
    return None if needed < limit else f"needs about {needed / 2**30:.1f} GiB for N × N matrices"


def _compiled(setting: Setting) -> Cascade:
    mode = "max-autotune-no-cudagraphs" if setting.on_gpu else None
    return cascade_of(torch.compile(dense_walk, dynamic=False, mode=mode))


def uncompilable(on: Device) -> str | None:
    if on.rehearsed:
        return "a rehearsal compiles nothing"
    if not on.on_gpu and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "torch.compile needs a C++ compiler"
    return None


def _sdpa(backend: str | None, widths: Callable[[int, int], tuple[int, int]]) -> Callable[[Setting], Cascade]:
    """SDPA with Q = K = ψ, V = y, scale 1; `widths(D, K)` are what this kernel wants Q and V padded to."""

    def build(setting: Setting) -> Cascade:
        wide, values = widths(setting.case.embed, setting.case.classes)

        def walk(psi: Tensor, state: Tensor) -> Tensor:
            classes = state.shape[-1]
            q = pad(psi, (0, wide - psi.shape[-1])).unsqueeze(1) if wide > psi.shape[-1] else psi.unsqueeze(1)
            v = pad(state, (0, values - classes)).unsqueeze(1) if values > classes else state.unsqueeze(1)
            return scaled_dot_product_attention(q, q, v, scale=1.0)[:, 0, :, :classes]

        cascade = cascade_of(walk)
        if backend is None:
            return cascade

        from torch.nn.attention import SDPBackend, sdpa_kernel

        def only(seed: Tensor, psi: Sequence[Tensor], mu: Tensor, beta: Tensor) -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return cascade(seed, psi, mu, beta)

        return only

    return build


def _same_widths(embed: int, classes: int) -> tuple[int, int]:
    wide = _up(max(embed, classes), 8)
    return wide, wide


def _own_widths(embed: int, classes: int) -> tuple[int, int]:
    return _up(embed, 8), _up(classes, 8)


def _flex(setting: Setting) -> Cascade:
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False)
    # the GPU kernel takes powers of two, from 16
    values = max(16, 1 << (setting.case.classes - 1).bit_length()) if setting.on_gpu else setting.case.classes

    def walk(psi: Tensor, state: Tensor) -> Tensor:
        q, classes = psi.unsqueeze(1), state.shape[-1]
        v = pad(state, (0, values - classes)).unsqueeze(1)
        return attention(q, q, v, scale=1.0)[:, 0, :, :classes]

    return cascade_of(walk)


def _flex_unfit(setting: Setting) -> str | None:
    if not setting.on_gpu and setting.direction != "forward":
        return "FlexAttention has no backward on a CPU"
    return uncompilable(setting.on)


def _keops(setting: Setting) -> Cascade:
    from pykeops.torch import Vi, Vj

    def walk(psi: Tensor, state: Tensor) -> Tensor:
        psi, state = psi.contiguous(), state.contiguous()
        return (Vi(psi) | Vj(psi)).sumsoftmaxweight(Vj(state), dim=2)

    return cascade_of(walk)


def _on_gpu(setting: Setting, half: bool = False) -> str | None:
    if half and setting.dtype not in (torch.float16, torch.bfloat16):
        return "takes fp16 and bf16 only"
    return None if setting.on_gpu else "runs on a GPU only"


def _keops_unfit(setting: Setting) -> str | None:
    if find_spec("pykeops") is None:
        return "pykeops is not installed"
    return "KeOps has no bf16" if setting.dtype == torch.bfloat16 else None


def _sdpa_unfit(setting: Setting) -> str | None:
    return "see the rows of its kernels" if setting.on_gpu else None


def _flash_sinkhorn(setting: Setting) -> Cascade:
    """P y from its streamed log-sum-exp and plan, image by image: P_ij = exp(f_i + g_j + ψ_i·ψ_j) with f = -lse, g = 0. Its
    values are as wide as its points."""
    from flash_sinkhorn.kernels.apply_flash import apply_plan_mat_flashstyle
    from flash_sinkhorn.kernels.sinkhorn_flashstyle_sqeuclid import flashsinkhorn_lse

    options = {"eps": 1.0, "cost_scale": 0.5, "allow_tf32": False}

    def walk(psi: Tensor, state: Tensor) -> Tensor:
        width, classes = psi.shape[-1], state.shape[-1]
        wide = _up(max(width, classes), 8)
        points, values = pad(psi, (0, wide - width)), pad(state, (0, wide - classes))
        zero = psi.new_zeros(psi.shape[1], dtype=torch.float32)
        images = []
        for x, y in zip(points, values, strict=True):
            shifted = flashsinkhorn_lse(x, x, zero, **options)
            images.append(apply_plan_mat_flashstyle(x, x, shifted, zero, zero, zero, y, axis=1, **options))
        return torch.stack(images)[..., :classes].to(state.dtype)

    return cascade_of(walk)


def _flash_sinkhorn_unfit(setting: Setting) -> str | None:
    missing = None if find_spec("flash_sinkhorn") else "flash_sinkhorn is not installed"
    return _on_gpu(setting) or missing or ("its plan has no gradient" if setting.direction != "forward" else None)


def _ffpa(setting: Setting) -> Cascade:
    from ffpa_attn import ffpa_attn_func

    wide = _same_widths(setting.case.embed, setting.case.classes)[0]

    def walk(psi: Tensor, state: Tensor) -> Tensor:
        q = pad(psi, (0, wide - psi.shape[-1])).unsqueeze(1).contiguous()
        v = pad(state, (0, wide - state.shape[-1])).unsqueeze(1).contiguous()
        return ffpa_attn_func(q, q, v, scale=1.0)[:, 0, :, : state.shape[-1]]

    return cascade_of(walk)


def _ffpa_unfit(setting: Setting) -> str | None:
    missing = None if find_spec("ffpa_attn") else "ffpa_attn is not installed"
    wide = _same_widths(setting.case.embed, setting.case.classes)[0]
    narrow = None if 256 < wide <= 1024 else "hands widths outside 257 to 1024 to SDPA"
    return _half_on_gpu(setting) or missing or narrow


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


_half_on_gpu = partial(_on_gpu, half=True)
CONTENDERS = {
    name: Contender(name, title, why_not, build, fp32_logits=name == "ours")
    for name, title, why_not, build in (
        ("ours", "difnet_kernels", _ours_unfit, lambda _: cast(Cascade, cascaded_random_walk)),
        ("dense", "dense, eager", _too_large, lambda _: cascade_of(dense_walk)),
        ("dense_compiled", "dense, torch.compile", lambda s: uncompilable(s.on) or _too_large(s), _compiled),
        ("sdpa", "SDPA", _sdpa_unfit, _sdpa(None, _same_widths)),
        ("sdpa_own", "SDPA, D ≠ V", _sdpa_unfit, _sdpa(None, _own_widths)),
        ("sdpa_flash", "SDPA, flash", _half_on_gpu, _sdpa("FLASH_ATTENTION", _same_widths)),
        ("sdpa_efficient", "SDPA, memory-efficient", _on_gpu, _sdpa("EFFICIENT_ATTENTION", _own_widths)),
        ("sdpa_cudnn", "SDPA, cuDNN", _half_on_gpu, _sdpa("CUDNN_ATTENTION", _own_widths)),
        ("flex", "FlexAttention", _flex_unfit, _flex),
        ("keops", "KeOps", _keops_unfit, _keops),
        ("flash_sinkhorn", "FlashSinkhorn", _flash_sinkhorn_unfit, _flash_sinkhorn),
        ("ffpa", "FFPA", _ffpa_unfit, _ffpa),
    )
}  # fmt: skip
ON_CPU = ("ours", "dense", "dense_compiled", "sdpa", "flex", "keops")
ON_GPU = tuple(name for name in CONTENDERS if name not in ("sdpa", "sdpa_own"))
# who asks for no compiler at the first call of every shape
QUICK = {False: ("ours", "dense", "sdpa"), True: ("ours", "dense", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn")}
# on wide embeddings: on a CPU SDPA is dense where D ≠ V, so there it stands twice, with V padded to D and as it is
WIDE = {
    False: ("ours", "dense", "sdpa", "sdpa_own", "flash_sinkhorn", "ffpa"),
    True: (*QUICK[True], "flash_sinkhorn", "ffpa"),
}
