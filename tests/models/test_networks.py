"""Networks by name: published counts, shapes, details that add up, options, layouts, mixed precision."""

import copy

import pytest
import torch

from difnet_kernels import cascaded_random_walk, transition_rows
from models import build_model, model_names
from models.checkpoints import load_into

COUNTS = {
    "sim_deeplab18": 11_563_668,
    "sim_deeplab34": 21_671_828,
    "sim_deeplab50": 25_056_404,
    "sim_deeplab101": 44_048_532,
    "difnet18": 22_807_948,
    "difnet34": 43_024_268,
    "difnet50": 48_816_524,
    "difnet101": 86_800_780,
}
TINY = ["difnet_tiny", "sim_deeplab_tiny", "walk_deeplab_tiny"]


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def tiny(name="difnet_tiny", num_classes=5, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, num_classes, **options)


@pytest.mark.smoke
@pytest.mark.parametrize("name", COUNTS)
def test_parameters_equal_the_published_count(name):
    with torch.device("meta"):
        assert count(build_model(name).parameters()) == COUNTS[name]


@pytest.mark.parametrize("depth, walk_heads", [(18, 62_602), (34, 62_602), (50, 246_922), (101, 246_922)])
def test_parameters_of_the_diffusion(depth, walk_heads):
    with torch.device("meta"):
        model = build_model(f"difnet{depth}")
    assert count(model.walk.parameters()) == walk_heads
    assert count(model.importance.parameters()) == 5_166


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("num_classes", [2, 60])
def test_every_name_builds_for_any_class_count(name, num_classes):
    with torch.device("meta"):
        model = build_model(name, num_classes)
    assert (model.model_name, model.num_classes, model.options) == (name, num_classes, {})
    assert model.seed_branch.head.branches[0].bias.numel() == num_classes


def test_noaspp_is_difnet50_with_one_convolution_as_head():
    with torch.device("meta"):
        with_aspp, without = build_model("difnet50"), build_model("difnet50_noaspp")
        by_option = build_model("difnet50", head="large_fov")
    assert count(with_aspp.parameters()) - count(without.parameters()) == 3 * (9 * 2048 * 21 + 21)
    assert without.seed_branch.head.branches[0].dilation == (12, 12)
    assert [(k, v.shape) for k, v in without.state_dict().items()] == [
        (k, v.shape) for k, v in by_option.state_dict().items()
    ]
    with pytest.raises(ValueError, match="head must be one of aspp, large_fov"):
        build_model("difnet_tiny", head="pyramid")


@pytest.mark.parametrize(
    "size", [(321, 321), (505, 505), (512, 512), (375, 500), (161, 97), (97, 97), (64, 65), (33, 1), (1, 1)]
)
@pytest.mark.parametrize("name", TINY)
def test_logits_have_the_size_of_the_input(name, size):
    with torch.no_grad():
        logits = tiny(name).eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()


def test_details_add_up():
    """s = M x; the steps are the library's cascade of ψ; the logits are the upsampled last step."""
    model, image = tiny().eval(), torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        details = model(image, return_details=True)
        logits = model(image)
    assert torch.equal(details.logits, logits)
    assert torch.equal(details.seed, details.importance * details.scores)
    assert details.scores.shape == (2, 5, 9, 7) and details.importance.shape == (2, 1, 9, 7)
    assert details.importance.min() >= 0 and details.importance.max() <= 1
    assert [tuple(psi.shape) for psi in details.psi] == [(2, 32, 9, 7)] * 5
    mu, beta = model.walk.mu.detach(), model.walk.beta.detach()
    steps = cascaded_random_walk(details.seed, details.psi, mu, beta, return_steps=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(details.steps, steps, strict=True))
    upsampled = torch.nn.functional.interpolate(details.steps[-1], (65, 49), mode="bilinear", align_corners=False)
    assert torch.equal(details.logits, upsampled)
    rows = transition_rows(details.psi[0], torch.zeros(2, 1, dtype=torch.long))
    torch.testing.assert_close(rows.sum((2, 3)), torch.ones(2, 1))


def test_details_of_the_baseline_have_no_diffusion():
    model, image = tiny("sim_deeplab_tiny").eval(), torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        details = model(image, return_details=True)
    assert torch.equal(details.logits, model(image)) and details.scores.shape == (1, 5, 9, 9)
    assert details[2:] == (None,) * 4


def test_details_in_training_update_running_statistics_once():
    model = tiny().train()
    model(torch.randn(2, 3, 65, 65), return_details=True)
    counters = [count for key, count in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert all(count == 1 for count in counters)


def test_first_output_depends_on_the_product_of_the_first_gates_only():
    """y⁰ = s, so y¹ = s + μ₁β₁ (P s - s): the reason why Table 3 has μ₁ = β₁. Fp32 rounding of other factors."""
    model, image = tiny().eval(), torch.randn(1, 3, 65, 65)
    outputs = []
    for mu, beta in ((0.8, 0.3), (0.3, 0.8), (0.6, 0.4)):
        with torch.no_grad():
            model.walk.mu_raw[0] = -torch.logit(torch.tensor(mu))
            model.walk.beta_raw[0] = -torch.logit(torch.tensor(beta))
            outputs.append(model(image, return_details=True).steps[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5 * outputs[0].abs().max().item())
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-5, atol=1e-5 * outputs[0].abs().max().item())


@pytest.mark.parametrize("walks", [(1, 3, 5), (5,), (1,), (2, 4)], ids=str)
def test_walks_choose_their_levels(walks):
    full, part = tiny(), tiny(walks=walks).eval()
    image = torch.randn(1, 3, 65, 65)
    channels = [3, *full.similarity_branch.out_channels]
    assert [psi.weight.shape[1] for psi in part.walk.psi] == [channels[walk - 1] for walk in walks]
    with torch.no_grad():
        details = part(image, return_details=True)
    assert len(details.steps) == len(walks) == part.walk.mu.numel()


@pytest.mark.parametrize("walks", [(), (0, 1), (1, 6), (3, 1), (2, 2)], ids=str)
def test_wrong_walks_are_refused(walks):
    with pytest.raises(ValueError, match="distinct, increasing and among"):
        build_model("difnet_tiny", walks=walks)


def test_without_importance_map_the_seed_is_the_score():
    model = tiny(importance=False).eval()
    with torch.no_grad():
        details = model(torch.randn(1, 3, 65, 65), return_details=True)
    assert details.importance is None and torch.equal(details.seed, details.scores)
    assert not any(key.startswith("importance") for key in model.state_dict())


def test_dense_walks_are_the_same_network():
    """The counterpart that timings compare with: equal steps and gradients of the same weights. At a fp32 rounding of logits
    of about 60, and sums of it; 1e-4 of the largest entry covers both."""
    fused, dense = tiny(), tiny(diffusion="dense")
    assert fused.state_dict().keys() == dense.state_dict().keys()
    image = torch.randn(2, 3, 65, 49)
    found = [model(image, return_details=True) for model in (fused, dense)]
    for ours, theirs in zip(found[0].steps, found[1].steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    for details in found:
        details.logits.square().mean().backward()
    largest = max(p.grad.abs().max().item() for p in dense.parameters())
    for ours, theirs in zip(fused.parameters(), dense.parameters(), strict=True):
        # a bias before a batch norm has no gradient but rounding, hence the second term
        atol = 1e-3 * theirs.grad.abs().max().item() + 1e-7 * largest
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=atol)


def test_closed_form_solves_equation_2():
    """(I - μP) y = (1 - μ) s, checked by putting y back in; fp32 solve of a system with condition number below 3."""
    model = tiny(diffusion="closed_form").eval()
    with torch.no_grad():
        details = model(torch.randn(2, 3, 65, 65), return_details=True)
    psi, y, s = (x.flatten(2).double() for x in (details.psi[0], details.steps[0], details.seed))
    p, mu = torch.softmax(psi.transpose(1, 2) @ psi, -1), model.walk.mu.detach().double()
    torch.testing.assert_close(y - mu * y @ p.transpose(1, 2), (1 - mu) * s, rtol=1e-4, atol=1e-5 * s.abs().max())


def test_bn_init_option_reaches_psi_and_importance_only():
    model = tiny(bn_init="uniform")
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            is_one = torch.equal(module.weight, torch.ones_like(module.weight))
            assert is_one != name.startswith(("walk.", "importance."))
            assert module.weight.min() >= 0 and module.weight.max() <= 1


def test_unknown_names_and_options_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"Unknown model 'difnet51'.*difnet18.*sim_deeplab152"):
        build_model("difnet51")
    with pytest.raises(ValueError, match=r"no option walks.*stride_in"):
        build_model("sim_deeplab_tiny", walks=(1,))
    with pytest.raises(ValueError, match="at least 2"):
        build_model("difnet_tiny", 1)


@pytest.mark.parametrize("name", TINY)
def test_channels_last_gives_the_same_logits(name):
    """Another convolution algorithm, the same sums: agreement to fp32 rounding through ten layers."""
    model, image = tiny(name).eval(), torch.randn(2, 3, 65, 65)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(image)
        got = last(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", TINY)
def test_bf16_autocast_trains(name):
    """Mixed precision keeps parameters and gradients in fp32, and every parameter gets one."""
    model, image = tiny(name).train(), torch.randn(2, 3, 65, 65)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(image).float(), torch.randint(0, 5, (2, 65, 65)))
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key


def test_every_parameter_gets_a_gradient():
    model = tiny().train()
    torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 65, 65)), torch.randint(0, 5, (2, 65, 65))).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7]
    # batch norm takes the mean away again, so the biases before it get nothing but rounding
    assert silent == [f"walk.psi.{walk}.bias" for walk in range(5)]


def test_device_map_places_the_branches():
    """Ψ goes with the similarity branch. The meta device stands in for a second one: placement is all it can show."""
    model = build_model("difnet_tiny", 5, device_map={"seed": "cpu", "similarity": "meta"})
    away = {key for key, p in model.named_parameters() if p.device.type == "meta"}
    assert away == {k for k, _ in model.named_parameters() if k.startswith(("similarity_branch.", "walk.psi."))}
    assert model.options == {}
    with pytest.raises(ValueError, match="'seed' and 'similarity'"):
        build_model("difnet_tiny", device_map={"seed": "cpu"})


@pytest.mark.parametrize("options", [
    {}, {"walks": (1,)}, {"walks": (1, 3)}, {"walks": (2, 4)}, {"diffusion": "closed_form"},
    {"diffusion": "closed_form", "walks": (1, 2)}, {"importance": False, "walks": (3,)},
])  # fmt: skip
def test_every_parameter_has_a_reader(options):
    """Data parallel training waits for the gradient of every parameter: none may be left out of the computation."""
    torch.manual_seed(0)
    model = build_model("difnet_tiny", 4, width=4, **options)
    logits = model(torch.randn(2, 3, 33, 41))
    assert logits.shape == (2, 4, 33, 41)
    logits.square().sum().backward()
    unread = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unread
    assert model.similarity_branch.stages == max(options.get("walks", (5,))) - 1


def test_weights_of_all_stages_fit_a_network_that_reads_fewer():
    """A file from before stages were left out, or a whole ResNet."""
    torch.manual_seed(0)
    whole, part = build_model("difnet_tiny", 4, width=4), build_model("difnet_tiny", 4, width=4, walks=(1, 3))
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("walk.")}
    state |= {key: value for key, value in part.state_dict().items() if key.startswith("walk.")}
    report = load_into(part, state)
    assert report.unread and all(
        key.startswith(("similarity_branch.layer3", "similarity_branch.layer4")) for key in report.unread
    )
    assert torch.equal(part.similarity_branch.layer2[0].conv1.weight, whole.similarity_branch.layer2[0].conv1.weight)
    with pytest.raises(ValueError, match=r"unexpected: seed_branch\.trunk\.layer5"):
        load_into(part, {**state, "seed_branch.trunk.layer5.weight": torch.zeros(1)})
