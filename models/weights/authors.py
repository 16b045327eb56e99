"""Key maps between the authors' released checkpoints and ours.

Theirs, after the `module.` prefix of data parallel training: `model_sed.*` and `model_dif.*` (the trunks, ASPP as
`model_sed.layer5.conv2d_list.i`), `diffuse{t}.*` (Ψ, and raw `alpha`, `beta` of shape [1]), `mask_layer.*` (H).
Their `alpha` and `beta` are raw values with μ = sigmoid(-alpha), β = sigmoid(-beta): exactly our raw parameters.
Both directions move the same bits: tensors are renamed, and the 1×1 weight of Ψ is reshaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.networks.difnet import WALKS

StateDict = dict[str, torch.Tensor]

# (theirs, ours), longest first: the first prefix that fits wins
PREFIXES = (
    ("model_sed.layer5.conv2d_list.", "seed_branch.head.branches."),
    ("model_sed.", "seed_branch.trunk."),
    ("model_dif.", "similarity_branch."),
    *((f"mask_layer.bn{i}.", f"importance.layers.{3 * i}.") for i in range(3)),
    *((f"mask_layer.conv{i + 1}.", f"importance.layers.{3 * i + 2}.") for i in range(3)),
)
PSI_PREFIXES = (("conv.", ""), ("bn.", "norm."))
SIM_DEEPLAB_PREFIXES = (
    ("layer5.conv2d_list.", "seed_branch.head.branches."),
    ("", "seed_branch.trunk."),
)
RAW = {"alpha": "walk.mu_raw", "beta": "walk.beta_raw"}


def convert_authors(state_dict: Mapping[str, Any], walks: Sequence[int] = WALKS) -> StateDict:
    """The authors' state dict (or their whole checkpoint) -> ours, for a DifNet or a Sim-Deeplab.

    walks: the walks of the network, for checkpoints of the ablation. Raises ValueError for keys that have no place.
    """
    nested = state_dict.get("state_dict")
    theirs = _without_module(nested if isinstance(nested, dict) else state_dict)
    if not any(key.startswith("model_sed.") for key in theirs):
        return {_rename(key, SIM_DEEPLAB_PREFIXES): tensor for key, tensor in theirs.items()}
    ours: StateDict = {}
    raw: dict[str, dict[int, torch.Tensor]] = {name: {} for name in RAW.values()}
    for key, tensor in theirs.items():
        if not key.startswith("diffuse"):
            ours[_rename(key, PREFIXES)] = tensor
            continue
        walk, _, rest = key.removeprefix("diffuse").partition(".")
        if not walk.isdecimal() or int(walk) + 1 not in walks:
            raise ValueError(f"{key!r} belongs to no walk of {tuple(walks)} (theirs count from 0, ours from 1).")
        index = list(walks).index(int(walk) + 1)
        if rest in RAW:
            raw[RAW[rest]][index] = tensor.reshape(())
        else:
            ours[f"walk.psi.{index}.{_rename(rest, PSI_PREFIXES)}"] = tensor.flatten(1) if tensor.dim() == 4 else tensor
    for name, values in raw.items():
        if sorted(values) != list(range(len(walks))):
            raise ValueError(f"The checkpoint has {len(values)} of the {len(walks)} values of {name}; pass `walks`.")
        ours[name] = torch.stack([values[index] for index in range(len(walks))])
    return ours


def to_authors(state_dict: Mapping[str, torch.Tensor], walks: Sequence[int] = WALKS) -> StateDict:
    """The inverse of `convert_authors`: our state dict -> the authors' key names, without `module.`."""
    if not any(key.startswith("walk.") for key in state_dict):
        inverse = [(ours, theirs) for theirs, ours in SIM_DEEPLAB_PREFIXES]
        return {_rename(key, inverse): tensor for key, tensor in state_dict.items()}
    inverse = [(ours, theirs) for theirs, ours in PREFIXES]
    names = {ours: theirs for theirs, ours in RAW.items()}
    theirs: StateDict = {}
    for key, tensor in state_dict.items():
        if key in names:
            for index, walk in enumerate(walks):
                theirs[f"diffuse{walk - 1}.{names[key]}"] = tensor[index : index + 1].clone()
        elif key.startswith("walk.psi."):
            at, _, rest = key.removeprefix("walk.psi.").partition(".")
            rest = _rename(rest, [("norm.", "bn."), ("", "conv.")])
            theirs[f"diffuse{walks[int(at)] - 1}.{rest}"] = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        else:
            theirs[_rename(key, inverse)] = tensor
    return theirs


def _rename(key: str, prefixes: Sequence[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise ValueError(f"{key!r} has no place in the network; expected a key starting with {[p[0] for p in prefixes]}.")


def _without_module(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    return {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
