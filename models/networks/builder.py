"""Networks by name: the one place that knows depths, widths and how the parts of Fig. 1 are put together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from difnet_kernels import ImportanceMap
from models.networks.context import ImagePooling, NonLocal
from models.networks.deeplab import Network, SeedBranch, SimDeeplab
from models.networks.diffusion import Cascade, ClosedForm, DenseCascade
from models.networks.difnet import WALKS, DifNet, check_walks
from models.networks.heads import ASPP, ASPP_RATES, LargeFOV
from models.networks.resnet import ResNetTrunk
from models.networks.walk_deeplab import WalkDeeplab


@dataclass(frozen=True)
class Size:
    """How large a network is: both branches of a DifNet share it."""

    block: str
    blocks: tuple[int, ...]
    width: int = 64
    embed_dim: int = 64
    rates: tuple[int, ...] = ASPP_RATES


SIZES = {
    "18": Size("basic", (2, 2, 2, 2)),
    "34": Size("basic", (3, 4, 6, 3)),
    "50": Size("bottleneck", (3, 4, 6, 3)),
    "101": Size("bottleneck", (3, 4, 23, 3)),
    "152": Size("bottleneck", (3, 8, 36, 3)),
    # for a CPU: trains in a minute on 97² images, whose 13×13 nodes would never see rates of 12 and more
    "tiny": Size("basic", (1, 1, 1, 1), width=16, embed_dim=32, rates=(1, 2, 4, 6)),
}

NAMES = {
    **{f"difnet{depth}": ("difnet", depth, "aspp") for depth in ("18", "34", "50", "101", "152")},
    "difnet50_noaspp": ("difnet", "50", "large_fov"),
    "difnet_tiny": ("difnet", "tiny", "aspp"),
    **{f"sim_deeplab{depth}": ("sim_deeplab", depth, "aspp") for depth in ("18", "34", "50", "101", "152")},
    "sim_deeplab_tiny": ("sim_deeplab", "tiny", "aspp"),
    **{f"walk_deeplab{depth}": ("walk_deeplab", depth, "aspp") for depth in ("18", "34", "50", "101", "152")},
    "walk_deeplab_tiny": ("walk_deeplab", "tiny", "aspp"),
}


def model_names() -> list[str]:
    """Every name `build_model` knows."""
    return list(NAMES)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """ValueError for a name or an option that no network has, or a value of the wrong type or range."""
    if name not in NAMES:
        raise ValueError(f"Unknown model {name!r}. Valid names: {', '.join(NAMES)}.")
    known = OPTIONS[NAMES[name][0]]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}. Valid options: {', '.join(known)}.")
    for option, value in options.items():
        if not VALUES[option].fits(value):
            raise ValueError(f"{option} must be {VALUES[option].rule}; got {value!r}.")


def has_bottlenecks(name: str) -> bool:
    """Whether a network is made of bottlenecks, whose stride can be in either of two places."""
    return name in NAMES and SIZES[NAMES[name][1]].block == "bottleneck"


def build_model(name: str, num_classes: int = 21, **options: Any) -> Network:
    """A network with fresh weights, by name; the name and the options are kept as `model_name`, `options`.

    Options of all networks: stride_in ("conv1", or "conv2" as torchvision), head ("aspp", or "large_fov", one
    convolution), aspp_init ("normal", "authors"), blocks and width (another size than the name's). Of Sim-Deeplabs also:
    context (None; "image_pooling", "non_local": what other networks have in place of walks). Of walk_deeplabs also:
    embed_dim. Of DifNets also:
    walks (which of 1 … 5), importance (False leaves M out), bn_init ("one", "uniform": γ of Ψ and H), embed_dim,
    diffusion ("cascade"; "dense", the same with N×N matrices; "closed_form", Eq. 2 for small images), device_map
    ({"seed": device, "similarity": device}).
    Raises ValueError for an unknown name or option, listing the valid ones, and for a value that no network can have.
    """
    check_options(name, options)
    family, depth, head = NAMES[name]
    builders: dict[str, Callable[..., Network]] = {
        "difnet": _build_difnet,
        "sim_deeplab": _build_sim_deeplab,
        "walk_deeplab": _build_walk_deeplab,
    }
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 (background and one class); got {num_classes}.")
    model = builders[family](SIZES[depth], num_classes=num_classes, **{"head": head, **options})
    model.model_name = name
    model.num_classes = num_classes
    # devices belong to a machine, not to the network: they do not go into checkpoints
    model.options = {key: value for key, value in options.items() if key != "device_map"}
    return model


def _build_trunk(
    size: Size,
    blocks: Sequence[int] | None = None,
    width: int | None = None,
    stride_in: str = "conv1",
    stages: int = 4,
) -> ResNetTrunk:
    return ResNetTrunk(size.block, blocks or size.blocks, width or size.width, stride_in, stages)


def _build_seed_branch(
    size: Size, head: str, num_classes: int, *, aspp_init: str = "normal", **trunk_options: Any
) -> SeedBranch:
    trunk = _build_trunk(size, **trunk_options)
    if head == "large_fov":
        rate = size.rates[1]  # 12 at the paper's sizes
        return SeedBranch(trunk, LargeFOV(trunk.out_channels[-1], num_classes, rate, aspp_init))
    return SeedBranch(trunk, ASPP(trunk.out_channels[-1], num_classes, size.rates, aspp_init))


def _build_sim_deeplab(
    size: Size, head: str, num_classes: int, *, context: str | None = None, **options: Any
) -> SimDeeplab:
    branch = _build_seed_branch(size, head, num_classes, **options)
    deepest = branch.trunk.out_channels[-1]
    if context == "image_pooling":
        width = options.get("width") or size.width
        branch.head = ImagePooling(
            branch.head, deepest, num_classes, hidden=4 * width
        )  # 256 at width 64, as DeepLab v3
    elif context == "non_local":
        branch.head = NonLocal(branch.head, deepest)
    return SimDeeplab(branch)


def _build_walk_deeplab(
    size: Size, head: str, num_classes: int, *, embed_dim: int | None = None, **options: Any
) -> WalkDeeplab:
    branch = _build_seed_branch(size, head, num_classes, **options)
    channels = [3, *branch.trunk.out_channels]
    return WalkDeeplab(branch, Cascade(channels, embed_dim or size.embed_dim, residual=True, scale="sqrt"))


def _build_difnet(
    size: Size,
    head: str,
    num_classes: int,
    *,
    walks: Sequence[int] = WALKS,
    importance: bool = True,
    bn_init: str = "one",
    embed_dim: int | None = None,
    diffusion: str = "cascade",
    device_map: Mapping[str, str | torch.device] | None = None,
    **branch: Any,
) -> DifNet:
    walks = check_walks(walks)
    seed_branch = _build_seed_branch(size, head, num_classes, **branch)
    trunk_options = {key: value for key, value in branch.items() if key != "aspp_init"}
    similarity_branch = _build_trunk(size, **trunk_options, stages=walks[-1] - 1)  # none that no walk reads
    channels = [3, *similarity_branch.out_channels]
    walk = DIFFUSIONS[diffusion]([channels[t - 1] for t in walks], embed_dim=embed_dim or size.embed_dim)
    model = DifNet(seed_branch, similarity_branch, ImportanceMap(num_classes) if importance else None, walk, walks)
    if bn_init == "uniform":
        for part in (model.importance, model.walk):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.init.uniform_(module.weight)
    return model if device_map is None else model.place(device_map)


DIFFUSIONS = {"cascade": Cascade, "closed_form": ClosedForm, "dense": DenseCascade}
CONTEXTS = ("image_pooling", "non_local")
BRANCH_OPTIONS = ("blocks", "width", "stride_in", "head", "aspp_init")
OPTIONS = {
    "sim_deeplab": (*BRANCH_OPTIONS, "context"),
    "walk_deeplab": (*BRANCH_OPTIONS, "embed_dim"),
    "difnet": (*BRANCH_OPTIONS, "walks", "importance", "bn_init", "embed_dim", "diffusion", "device_map"),
}
FRESH_ONLY = (
    "aspp_init",
    "bn_init",
    "device_map",
)  # they decide how weights begin or where they lie, not what they mean


@dataclass(frozen=True)
class Values:
    """What an option may be, in words and as a test."""

    rule: str
    fits: Callable[[Any], bool]


def _whole(low: int, high: int) -> Values:
    return Values(
        f"a whole number in {low}…{high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def _one_of(*names: str) -> Values:
    return Values(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def _row(low: int, high: int, rule: str, fits: Callable[[Sequence[int]], bool]) -> Values:
    return Values(rule, lambda v: isinstance(v, list | tuple) and all(map(_whole(low, high).fits, v)) and fits(v))


VALUES = {
    "blocks": _row(1, 200, "the numbers of blocks of four stages, e.g. [3, 4, 6, 3]", lambda v: len(v) == 4),
    "width": _whole(1, 1024),
    "embed_dim": _whole(1, 4096),
    "stride_in": _one_of("conv1", "conv2"),
    "head": _one_of("aspp", "large_fov"),
    "aspp_init": _one_of("normal", "authors"),
    "context": Values(
        f"None or one of {', '.join(CONTEXTS)}", lambda v: v is None or (isinstance(v, str) and v in CONTEXTS)
    ),
    "bn_init": _one_of("one", "uniform"),
    "diffusion": _one_of(*DIFFUSIONS),
    "importance": Values("true or false", lambda v: isinstance(v, bool)),
    "walks": _row(
        1,
        5,
        f"a list of numbers, distinct, increasing and among {WALKS}",
        lambda v: bool(v) and list(v) == sorted(set(v)),
    ),
    "device_map": Values(
        "devices for exactly the keys 'seed' and 'similarity'",
        lambda v: isinstance(v, Mapping) and set(v) == {"seed", "similarity"},
    ),
}
