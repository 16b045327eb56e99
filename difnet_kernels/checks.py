"""The validation of inputs: the public functions call it before any work, and ops/checks.py has what is beyond it.

An error names the rule, the argument as the caller knows it, what came, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from difnet_kernels.problem import FLOATS, PRECISIONS


def check_field(name: str, x: Tensor) -> None:
    """A field is a floating-point tensor (B, C, *S) with C >= 1 and at least one spatial axis."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor (B, C, *S); got {type(x).__name__}. Convert it with torch.as_tensor.")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got {x.layout}. Convert it with {name}.to_dense().")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {x.dtype}. Convert it with {name}.float()."
        )
    if x.dim() < 3:
        raise ValueError(
            f"{name} must be (B, C, *S) with at least one spatial axis; got {tuple(x.shape)}. "
            "Add the missing axes with unsqueeze, or reshape a node list to (B, C, N)."
        )
    if x.shape[1] == 0:
        raise ValueError(
            f"{name} must have at least one channel; got {tuple(x.shape)}. Drop the walk or the call instead."
        )


def check_on_grid(name: str, x: Tensor, seed: Tensor) -> None:
    """`x` lies on the grid, in the batch and on the device of `seed`."""
    check_field(name, x)
    if x.shape[0] != seed.shape[0] or x.shape[2:] != seed.shape[2:]:
        raise ValueError(
            f"{name} must be (B, C, *S) on the batch and grid of seed {tuple(seed.shape)}; got {tuple(x.shape)}. "
            "Resize it to the seed's grid, or let PsiProjection pool it there; channels that are the last axis become the "
            "second by movedim(-1, 1)."
        )
    if x.device != seed.device:
        raise ValueError(
            f"{name} must be on the device of seed, {seed.device}; got {x.device}. Move it with {name}.to(seed.device)."
        )


def check_embeddings(psi: Sequence[Tensor] | Tensor, seed: Tensor) -> list[Tensor]:
    """The T embeddings as a list: from a sequence of (B, D_t, *S), or from one tensor (T, B, D, *S). Whether they fit the
    seed is for the operator."""
    if isinstance(psi, Tensor):
        if psi.dim() != seed.dim() + 1:
            raise ValueError(
                f"psi as one tensor must be (T, B, D, *S) with {seed.dim() + 1} axes for seed {tuple(seed.shape)}; got "
                f"{tuple(psi.shape)}. For a single walk pass [psi] or psi.unsqueeze(0)."
            )
        psi = psi.unbind(0)
    elif not isinstance(psi, Sequence):
        raise TypeError(f"psi must be a sequence of tensors or one tensor (T, B, D, *S); got {type(psi).__name__}.")
    if len(psi) == 0:
        raise ValueError("psi must hold at least one embedding; got none. A cascade of no walks is the seed itself.")
    for t, p in enumerate(psi):
        if not isinstance(p, Tensor):
            check_field(f"psi[{t}]", p)
    return list(psi)


def check_gates(
    name: str, gates: Tensor | Sequence[float] | float, walks: int, seed: Tensor, dtype: torch.dtype
) -> Tensor:
    """mu or beta as a tensor of the accumulation dtype. Python numbers are checked against [0, 1]; tensors are used as they
    are, because reading them would make the host wait for the device. Whether they fit is for the operator."""
    if isinstance(gates, Tensor):
        if not gates.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point; got {gates.dtype}. Convert it with {name}.float().")
        return gates if gates.dtype == dtype else gates.to(dtype)
    if not isinstance(gates, Sequence) or isinstance(gates, str):
        raise TypeError(f"{name} must be a (T,) tensor or a sequence of {walks} floats; got {type(gates).__name__}.")
    if len(gates) != walks:
        raise ValueError(f"{name} must hold one value per walk, {walks} in all; got {len(gates)}.")
    for t, gate in enumerate(gates):
        if isinstance(gate, Tensor):
            raise TypeError(f"{name} must be one (T,) tensor or Python floats; got a list of tensors. Use torch.stack.")
        if not isinstance(gate, Real):
            raise TypeError(f"{name}[{t}] must be a number in [0, 1]; got {type(gate).__name__}.")
        if not 0.0 <= gate <= 1.0:
            raise ValueError(
                f"{name}[{t}] must be a probability in [0, 1]; got {gate}. A logit goes through torch.sigmoid first."
            )
    # made where they are read: a copy from the host would wait for the device, and cannot be captured in a graph. A product
    # and not torch.full, because the compiler keeps the factor of a product open and compiles once for all its values
    one = torch.ones((1,), dtype=dtype, device=seed.device)
    return torch.cat([one * (gate if isinstance(gate, (int, float)) else float(gate)) for gate in gates])


def check_gate(name: str, gate: Tensor | float, seed: Tensor, dtype: torch.dtype) -> Tensor:
    """mu or beta of a single walk, as a (1,) tensor."""
    if not isinstance(gate, Tensor):
        return check_gates(name, (gate,), 1, seed, dtype)
    if gate.numel() != 1:
        raise ValueError(f"{name} must be a scalar, a 0-d or (1,) tensor, for a single walk; got {tuple(gate.shape)}.")
    return check_gates(name, gate.reshape(1), 1, seed, dtype)


def check_projection(
    features: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], *, last: str = "bias"
) -> None:
    """features (B, C, *S) with one to three axes and a pixel each, weight (D, C), bias (D,) or None, grid like S. `last` is
    what the caller calls the bias."""
    check_field("features", features)
    axes = features.dim() - 2
    if axes > 3:
        raise ValueError(f"features must be (B, C, *S) with one to three spatial axes; got {tuple(features.shape)}.")
    if not 0 < math.prod(features.shape[2:]) < 2**31:
        raise ValueError(f"features must have 1 to 2^31 - 1 pixels per image to pool; got {tuple(features.shape)}.")
    _check_parameter("weight", weight, features, 2)
    if weight.shape[0] == 0 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must be (D, C) with at least one row, C = {features.shape[1]} being the channels of features "
            f"{tuple(features.shape)}; got {tuple(weight.shape)}.{_channels_last(features, weight.shape[1])}"
        )
    if bias is not None:
        _check_parameter(last, bias, features, 1)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(f"{last} must be ({weight.shape[0]},), one per row of weight; got {tuple(bias.shape)}.")
    check_grid(grid, axes, features)


def check_grid(grid: Sequence[int], axes: int, features: Tensor) -> None:
    rule = f"grid must be {axes} positive sizes, one per spatial axis of features {tuple(features.shape)}"
    if isinstance(grid, (str, dict, set)) or not hasattr(grid, "__len__") or not hasattr(grid, "__getitem__"):
        raise TypeError(f"{rule}; got {grid!r} ({type(grid).__name__}). Write it as {(8,) * axes}, for example.")
    if any(isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) for size in grid):
        raise TypeError(f"{rule}, in Python integers; got {grid!r}. Take int() of each.")
    if len(grid) != axes or min(grid) < 1:
        raise ValueError(f"{rule}; got {tuple(grid)}.")


def _channels_last(x: Tensor, channels: int) -> str:
    """What to say where the last axis would have fitted."""
    if x.dim() < 3 or x.shape[-1] != channels:
        return ""
    return " The channels seem to be the last axis: pass them second, as movedim(-1, 1) does."


def _check_parameter(name: str, x: Tensor, features: Tensor, axes: int) -> None:
    if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.dim() != axes:
        told = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor with {axes} axes; got {told}.")
    if x.device != features.device:
        raise ValueError(
            f"{name} must be on the device of features, {features.device}; got {x.device}. Move it with "
            f"{name}.to(features.device)."
        )


def check_bias(name: str, bias: Tensor, seed: Tensor, *, field: str = "seed") -> None:
    """The bias of one walk is floating point, (B, *S) or (1, *S) on the batch and grid of seed. `field` is what the caller
    calls the seed."""
    shape = (seed.shape[0], *seed.shape[2:])
    if not isinstance(bias, Tensor):
        raise TypeError(f"{name} must be a tensor {shape} or None; got {type(bias).__name__}.")
    if bias.dtype not in FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {bias.dtype}. A boolean mask is the argument mask."
        )
    if bias.shape[1:] != shape[1:] or bias.shape[0] not in (1, shape[0]):
        raise ValueError(
            f"{name} must be (B, *S), one number per node of {field} {tuple(seed.shape)}: {shape}, or 1 in place of B; got "
            f"{tuple(bias.shape)}."
        )
    if bias.device != seed.device:
        raise ValueError(
            f"{name} must be on the device of {field}, {seed.device}; got {bias.device}. Move it with "
            f"{name}.to({field}.device)."
        )


def check_biases(bias: Tensor | Sequence[Tensor | None] | None, seed: Tensor, walks: int) -> list[Tensor | None]:
    """The bias of every walk, from one (B, *S) for all of them, one tensor (T, B, *S), or a sequence of T; an empty list where
    no walk has one."""
    if bias is None:
        return []
    if isinstance(bias, Tensor):
        if bias.dim() != seed.dim():
            check_bias("bias", bias, seed)
            return [bias] * walks
        bias = bias.unbind(0)
    elif not isinstance(bias, Sequence):
        raise TypeError(
            f"bias must be None, a tensor (B, *S) or (T, B, *S), or a sequence of {walks}; got {type(bias).__name__}."
        )
    if len(bias) != walks:
        raise ValueError(f"bias must hold one entry per walk, {walks} in all; got {len(bias)}.")
    for t, b in enumerate(bias):
        if b is not None:
            check_bias(f"bias[{t}]", b, seed)
    return [] if all(b is None for b in bias) else list(bias)


def check_mask(mask: Tensor, seed: Tensor, *, field: str = "seed") -> None:
    """A mask is boolean, (B, *S) on the batch, grid and device of seed."""
    shape = (seed.shape[0], *seed.shape[2:])
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean tensor {shape} or None; got {type(mask).__name__}.")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean, True where a node exists; got {mask.dtype}. Compare it with something, as mask > 0."
        )
    if mask.shape != shape:
        raise ValueError(
            f"mask must be (B, *S), one flag per node of {field} {tuple(seed.shape)}: {shape}; got {tuple(mask.shape)}."
        )
    if mask.device != seed.device:
        raise ValueError(
            f"mask must be on the device of {field}, {seed.device}; got {mask.device}. Move it with mask.to({field}.device)."
        )


def check_state(state: Tensor, seed: Tensor) -> None:
    check_on_grid("state", state, seed)
    if state.shape[1] != seed.shape[1]:
        raise ValueError(f"state and seed must have the same classes; got {state.shape[1]} and {seed.shape[1]}.")


def check_nodes(nodes: Tensor | Sequence[Any], psi: Tensor) -> Tensor:
    """(B, M) flat indices or (B, M, len(S)) coordinates as a tensor of int64 on the device of psi (B, D, *S)."""
    if not isinstance(nodes, Tensor):
        try:
            nodes = torch.as_tensor(nodes, device=psi.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"nodes must be integer indices, as a tensor, an array or nested lists; got {type(nodes).__name__} ({error})."
            ) from None
    if nodes.dtype.is_floating_point or nodes.dtype.is_complex or nodes.dtype == torch.bool:
        raise TypeError(f"nodes must be integer indices; got {nodes.dtype}. Convert them with nodes.long().")
    axes = psi.dim() - 2
    if nodes.dim() not in (2, 3) or nodes.shape[0] != psi.shape[0] or (nodes.dim() == 3 and nodes.shape[2] != axes):
        raise ValueError(
            f"nodes must be (B, M) flat indices or (B, M, {axes}) coordinates for psi {tuple(psi.shape)}; got "
            f"{tuple(nodes.shape)}."
        )
    if nodes.device != psi.device:
        raise ValueError(
            f"nodes must be on the device of psi, {psi.device}; got {nodes.device}. Move them with nodes.to(psi.device)."
        )
    return nodes.long()


def check_count(name: str, value: int) -> None:
    """A number of channels or classes."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive integer; got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer; got {value}.")


def check_counts(name: str, values: Sequence[int]) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        remedy = ""
        if isinstance(values, int):
            remedy = f" For one walk write [{values}]."
        elif isinstance(values, Mapping):
            remedy = f" Write {list(values.values())!r}."
        raise TypeError(f"{name} must be a sequence of positive integers, one per walk; got {values!r}.{remedy}")
    if len(values) == 0:
        raise ValueError(f"{name} must name the channels of at least one walk; got none.")
    for t, value in enumerate(values):
        check_count(f"{name}[{t}]", value)


def check_precision(precision: str) -> None:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}; got {precision!r}.")


def check_rate(name: str, value: float) -> None:
    """A learning rate."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a positive number; got {value!r} ({type(value).__name__}).")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number; got {value}.")


def check_solver(mu: float | None, tol: float, max_walks: int | None) -> None:
    """What an iteration to a tolerance demands; mu is None where its value cannot be read yet."""
    if mu is not None and not 0.0 <= mu < 1.0:
        raise ValueError(f"mu must be in [0, 1) for a steady state to exist; got {mu}.")
    if isinstance(tol, bool) or not isinstance(tol, Real):
        raise TypeError(f"tol must be a positive number; got {tol!r} ({type(tol).__name__}).")
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol must be a positive number below 1, a share of the largest seed; got {tol}.")
    if max_walks is not None:
        check_count("max_walks", max_walks)


def check_store(store: int) -> None:
    if isinstance(store, bool) or not isinstance(store, int):
        raise TypeError(f"store must be a number of bytes; got {store!r} ({type(store).__name__}).")
    if store < 0:
        raise ValueError(f"store must be a number of bytes, 0 or more; got {store}.")
