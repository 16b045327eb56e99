"""The authors' checkpoints: every key has its place, both ways, and the network computes what they published."""

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.checkpoints import convert_authors, load, load_into, to_authors

BLOCKS = {"18": ("basic", (2, 2, 2, 2)), "50": ("bottleneck", (3, 4, 6, 3))}


def published_state(depth: str, num_classes: int) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, written down from the description of their files."""
    generator = torch.Generator().manual_seed(int(depth))
    state = {}

    def conv(key, out, into, size, bias=False):
        std = (2 / (into * size * size)) ** 0.5
        state[f"{key}.weight"] = torch.randn(out, into, size, size, generator=generator) * std
        if bias:
            state[f"{key}.bias"] = torch.randn(out, generator=generator)

    def norm(key, width):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{name}"] = torch.rand(width, generator=generator) * 0.5 + (name != "bias") * 0.5
        state[f"{key}.running_mean"] -= 0.75

    kind, blocks = BLOCKS[depth]
    expansion = 1 if kind == "basic" else 4
    for branch in ("model_sed", "model_dif"):
        conv(f"{branch}.conv1", 64, 3, 7)
        norm(f"{branch}.bn1", 64)
        width = 64
        for stage, count in enumerate(blocks):
            inner = 64 * 2**stage
            for block in range(count):
                at = f"{branch}.layer{stage + 1}.{block}"
                shapes = [(inner, width, 3), (inner, inner, 3)]
                if kind == "bottleneck":
                    shapes = [(inner, width, 1), (inner, inner, 3), (4 * inner, inner, 1)]
                for i, shape in enumerate(shapes, start=1):
                    conv(f"{at}.conv{i}", *shape)
                    norm(f"{at}.bn{i}", shape[0])
                if block == 0 and (stage > 0 or expansion == 4):
                    conv(f"{at}.downsample.0", inner * expansion, width, 1)
                    norm(f"{at}.downsample.1", inner * expansion)
                width = inner * expansion
    for i in range(4):
        conv(f"model_sed.layer5.conv2d_list.{i}", num_classes, width, 3, bias=True)
    for t, channels in enumerate((3, *(64 * 2**stage * expansion for stage in range(4)))):
        state[f"diffuse{t}.alpha"] = torch.randn(1, generator=generator)
        state[f"diffuse{t}.beta"] = torch.randn(1, generator=generator)
        conv(f"diffuse{t}.conv", 64, channels, 1, bias=True)
        norm(f"diffuse{t}.bn", 64)
        state[f"diffuse{t}.bn.weight"] *= 0.2  # moderate logits: neighbours share weight instead of P = I
    for i, (out, into) in enumerate(((8, num_classes), (4, 8), (1, 4))):
        norm(f"mask_layer.bn{i}", into)
        conv(f"mask_layer.conv{i + 1}", out, into, 5)
    return state


def published_network(state: dict[str, torch.Tensor], depth: str, image: torch.Tensor) -> torch.Tensor:
    """The architecture from its description, in plain functions on the authors' names; dense transition matrices.

    A truth of its own: it shares no line with the library, the formula of a walk included.
    """

    def norm(x, key):
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        scale = state[f"{key}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{key}.bias"][:, None, None]

    def conv(x, key, stride=1, padding=0, dilation=1):
        return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride, padding, dilation)

    kind, blocks = BLOCKS[depth]

    def trunk(branch):
        x = norm(conv(image, f"{branch}.conv1", 2, 3), f"{branch}.bn1").relu()
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        levels = []
        for stage, count in enumerate(blocks):
            dilation = (1, 1, 2, 4)[stage]
            for block in range(count):
                at = f"{branch}.layer{stage + 1}.{block}"
                stride = 2 if (stage, block) == (1, 0) else 1
                shortcut = x
                if f"{at}.downsample.0.weight" in state:
                    shortcut = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
                if kind == "basic":
                    x = norm(conv(x, f"{at}.conv1", stride, 1), f"{at}.bn1").relu()
                    x = norm(conv(x, f"{at}.conv2", 1, dilation, dilation), f"{at}.bn2")
                else:
                    x = norm(conv(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
                    x = norm(conv(x, f"{at}.conv2", 1, dilation, dilation), f"{at}.bn2").relu()
                    x = norm(conv(x, f"{at}.conv3"), f"{at}.bn3")
                x = (x + shortcut).relu()
            levels.append(x)
        return levels

    features = trunk("model_sed")[-1]
    scores = sum(
        conv(features, f"model_sed.layer5.conv2d_list.{i}", 1, rate, rate) for i, rate in enumerate((6, 12, 18, 24))
    )
    mask = scores
    for i in range(3):
        mask = conv(norm(mask, f"mask_layer.bn{i}").relu(), f"mask_layer.conv{i + 1}", 1, 2)
    seed = torch.sigmoid(mask) * scores

    s = seed.flatten(2).transpose(1, 2)  # [B, N, K]
    y = s
    for t, level in enumerate([image, *trunk("model_dif")]):
        psi = norm(conv(level, f"diffuse{t}.conv"), f"diffuse{t}.bn")
        psi = F.adaptive_max_pool2d(psi, seed.shape[2:]).flatten(2).transpose(1, 2)  # [B, N, 64]
        p = torch.softmax(psi @ psi.transpose(1, 2), dim=2)
        mu, beta = gate(state[f"diffuse{t}.alpha"]), gate(state[f"diffuse{t}.beta"])
        y = beta * (mu * (p @ y) + (1 - mu) * s) + (1 - beta) * y
    y = y.transpose(1, 2).reshape(seed.shape)
    return F.interpolate(y, image.shape[2:], mode="bilinear", align_corners=False)


def gate(raw: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(raw))


@pytest.mark.parametrize("depth", BLOCKS)
def test_network_equals_the_published_architecture(depth):
    """In fp64, where rounding (1e-16 through 50 layers) cannot hide a wrong stride, dilation, order or epsilon."""
    state = {key: tensor.double() for key, tensor in published_state(depth, 21).items()}
    for key in state:
        if key.endswith((".alpha", ".beta")):  # gates are fp32 in every network: take raw values that are exact there
            state[key] = torch.full_like(state[key], -88.0 if state[key] < 0 else 0.0)
    model = build_model(f"difnet{depth}").double().eval()
    load_into(model, convert_authors(state))
    image = torch.randn(1, 3, 81, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = published_network(state, depth, image), model(image)
    assert expected.std() > 1e-3  # a dead network would equal anything
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_fp32_network_equals_the_published_architecture_to_rounding():
    """fp32 against fp64: 2⁻²⁴ per operation, amplified by logits up to ~100 in the softmax and by 18 layers."""
    state = published_state("18", 21)
    model = build_model("difnet18").eval()
    load_into(model, convert_authors(state))
    image = torch.randn(1, 3, 81, 65, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = published_network({key: tensor.double() for key, tensor in state.items()}, "18", image.double())
        error = (model(image) - exact).abs().max() / exact.abs().max()
    assert error < 2e-5


@pytest.mark.parametrize("depth", BLOCKS)
def test_every_published_key_has_its_place_and_back(depth):
    theirs = published_state(depth, 21)
    ours = convert_authors(theirs)
    with torch.device("meta"):
        expected = build_model(f"difnet{depth}").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in expected.items() if not k.endswith("num_batches_tracked")
    }
    back = to_authors(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) and back[key].shape == theirs[key].shape for key in theirs)


@pytest.mark.parametrize("name, walks", [("difnet_tiny", (1, 2, 3, 4, 5)), ("difnet_tiny", (1, 3, 5)),
                                         ("sim_deeplab_tiny", ())])  # fmt: skip
def test_our_state_survives_their_names(name, walks):
    state = build_model(name, 5, **({"walks": walks} if walks else {})).state_dict()
    theirs = to_authors(state, walks or (1, 2, 3, 4, 5))
    assert name != "difnet_tiny" or {k.split(".")[0] for k in theirs if k.startswith("diffuse")} == {
        f"diffuse{walk - 1}" for walk in walks
    }
    back = convert_authors(theirs, walks or (1, 2, 3, 4, 5))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_a_whole_checkpoint_file_of_theirs_loads(tmp_path):
    state = to_authors(build_model("difnet_tiny", 5).state_dict())
    torch.save({
        "epoch": 12, "best_pred": 0.72, "alpha": [torch.zeros(1)] * 5, "beta": [torch.zeros(1)] * 5,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "state_dict": {f"module.{key}": tensor for key, tensor in state.items()},
    }, tmp_path / "model_best.pth.tar")  # fmt: skip
    model = build_model("difnet_tiny", 5)
    load_into(model, load(tmp_path / "model_best.pth.tar"))
    assert all(torch.equal(to_authors(model.state_dict())[key], state[key]) for key in state)


def test_keys_without_a_place_are_named():
    theirs = to_authors(build_model("difnet_tiny", 5).state_dict())
    with pytest.raises(ValueError, match=r"'decoder\.weight' has no place"):
        convert_authors({**theirs, "decoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'diffuse5\.alpha' belongs to no walk"):
        convert_authors({**theirs, "diffuse5.alpha": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"4 of the 5 values of walk\.mu_raw"):
        convert_authors({key: value for key, value in theirs.items() if key != "diffuse2.alpha"})
