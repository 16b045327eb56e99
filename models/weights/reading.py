"""Files of tensors: safetensors, and .pth with tensors and numbers only. Nothing that is read here can run code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from models.weights.authors import StateDict

WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net", "weights")  # keys under which people nest them


def read_tensors(path: Path) -> StateDict:
    """The tensors of a file by their names, unwrapped: `{"state_dict": {...}, "epoch": 3}` -> the inner ones."""
    content: Mapping[str, Any] = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pth(path)
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, dict):
            content = inner
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} must hold the tensors of a network by name; it has {sorted(map(str, content))[:6]}.")
    return tensors


def below(tensors: StateDict, landmark: str) -> StateDict:
    """The tensors that share the prefix of `landmark`, without it: "module.backbone." before "conv1.weight", say.

    Of several prefixes the shortest counts; {} if no key ends with the landmark.
    """
    prefixes = [key.removesuffix(landmark) for key in tensors if key == landmark or key.endswith(f".{landmark}")]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=len)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def read_pth(path: str | Path) -> dict[str, Any]:
    """Unpickle a .pth file with tensors (and numpy numbers, which the authors' files hold) only."""
    try:
        with torch.serialization.safe_globals(_numpy_number_types()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and numbers, so it is not read: loading it could run code. Re-save its "
            f"state dict alone, in a place you trust. ({str(error).splitlines()[0]})"
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is empty, cut short or not a torch file: {error!r}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a state dict; got a {type(content).__name__}.")
    return content


def _numpy_number_types() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]  # numpy's own function, whatever module this numpy has it in
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype,
            type(np.dtype(np.float32)), type(np.dtype(np.float64)), type(np.dtype(np.int64))]  # fmt: skip


def read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors and header."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is cut short: {error}.") from error


def read_header(path: Path) -> dict[str, str]:
    """The header alone."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is cut short: {error}.") from error
