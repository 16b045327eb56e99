"""Tables say what the runs say: means over seeds, learned gates, hops, and timings of every part."""

import json

import pytest
import torch

from models import build_model, checkpoints, tables
from models.experiments import timings
from models.training import TrainConfig
from models.training.config import resolve_recipe
from models.training.run_folder import RunFolder

PAPER_MU = [0.4159, 0.4193, 0.4077, 0.6520, 0.8956]
PAPER_BETA = [0.4159, 0.4825, 0.5104, 0.6570, 0.8451]


def finished_run(path, scores, model="difnet_tiny", seed=0, **options) -> RunFolder:
    folder = RunFolder.create(path, TrainConfig(model, resolve_recipe("scratch"), options, seed=seed))
    for epoch, score in enumerate(scores, start=1):
        folder.append_metrics({"epoch": epoch, "mean_iou": score, "per_class_iou": [score] * 4})
    return folder


@pytest.mark.smoke
def test_hop_shares_of_the_paper():
    """Table 3 unrolled by hand: 15.8 / 39.9 / 30.3 / 11.2 / 2.5 / 0.24 %."""
    shares = [100 * share for share in tables.hop_shares(PAPER_MU, PAPER_BETA)]
    assert shares == pytest.approx([15.8, 39.9, 30.3, 11.2, 2.5, 0.24], abs=0.05)
    assert sum(shares) == pytest.approx(100)


def test_hop_shares_are_what_a_walk_does():
    """On a line where P moves everything one node to the right, hops are positions. Independent of the library's walk."""
    state = seed = torch.nn.functional.one_hot(torch.tensor(0), 6).double()
    for mu, beta in zip(PAPER_MU, PAPER_BETA, strict=True):
        state = beta * (mu * state.roll(1) + (1 - mu) * seed) + (1 - beta) * state
    assert tables.hop_shares(PAPER_MU, PAPER_BETA) == pytest.approx(state.tolist())


def test_compare_averages_seeds_and_separates_networks(tmp_path):
    finished_run(tmp_path / "a", [0.1, 0.6, 0.5], seed=0)
    finished_run(tmp_path / "b", [0.1, 0.2, 0.7], seed=1)
    finished_run(tmp_path / "c", [0.3, 0.3, 0.25], walks=[1, 3, 5])
    table = tables.compare([tmp_path / name for name in "abc"])
    full, ablated = table.splitlines()[2:]
    count = sum(p.numel() for p in build_model("difnet_tiny", 4).parameters())
    assert full == f"| difnet_tiny | {count:,} | 2 | 3 | 60.00 ± 14.14 | 65.00 ± 7.07 |"
    assert ablated.startswith("| difnet_tiny walks=1,3,5 | ") and ablated.endswith("| 1 | 3 | 25.00 | 30.00 |")


def test_compare_needs_a_validated_epoch(tmp_path, capsys):
    finished_run(tmp_path / "a", [])
    assert tables.main(["compare", str(tmp_path / "a")]) == 1
    assert "no validated epoch" in capsys.readouterr().err


def test_gates_reads_runs_and_checkpoints(tmp_path, capsys):
    model = build_model("difnet_tiny", 4, walks=(1, 3, 5))
    mu, beta = torch.tensor(PAPER_MU[::2]), torch.tensor(PAPER_BETA[::2])
    model.walk.mu_raw.data.copy_(-torch.logit(mu))
    model.walk.beta_raw.data.copy_(-torch.logit(beta))
    checkpoints.save(tmp_path / "last.safetensors", model)
    for path in (tmp_path, tmp_path / "last.safetensors"):
        assert tables.main(["gates", str(path)]) == 0
        out = capsys.readouterr().out
        assert "| ⊕1 | 0.4159 | 0.4159 |\n| ⊕3 | 0.4077 | 0.5104 |\n| ⊕5 | 0.8956 | 0.8451 |" in out


def test_gates_of_a_network_without_walks_is_an_error(tmp_path, capsys):
    checkpoints.save(tmp_path / "a.safetensors", build_model("sim_deeplab_tiny", 4))
    assert tables.main(["gates", str(tmp_path / "a.safetensors")]) == 1
    assert "sim_deeplab_tiny, which has no cascade" in capsys.readouterr().err


def test_timings_cover_every_part_and_are_written(tmp_path, capsys):
    networks = ["--difnet", "difnet_tiny", "--baseline", "sim_deeplab_tiny"]
    arguments = ["timings", *networks, "--size", "33", "--repeats", "2", "--device", "cpu"]
    arguments += ["--json", str(tmp_path / "t.json")]
    assert tables.main(arguments) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "t.json").read_text())
    assert [part["part"].split(" (")[0] for part in result["parts"]] == [
        "Seed branch", "Similarity branch", "Diffusion", "whole network", "whole network",
    ]  # fmt: skip
    assert all(part["forward"]["median"] > 0 and part["both"]["median"] > 0 for part in result["parts"])
    assert result["machine"]["torch"] == torch.__version__ and result["size"] == 33
    assert out.count(" s |") == 10 and "sim_deeplab_tiny" in out


def test_the_parts_are_the_network():
    """Seed branch, similarity branch and diffusion, one after the other, give the network's own steps."""
    torch.manual_seed(0)
    model, image = build_model("difnet_tiny", 4).eval(), torch.randn(1, 3, 65, 65)
    parts = timings.parts_of(model, image)
    (seed_branch, _), (similarity, _), (diffusion, _), _ = parts.values()
    with torch.no_grad():
        state = diffusion(seed_branch(image), image, *similarity(image))
        assert torch.equal(state, model(image, return_details=True).steps[-1])


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_step_of_training_is_timed_as_it_is_trained(amp, monkeypatch):
    """With the statistics of the batch; autocast holds for the forward alone and is entered anew for each, so that
    weights are cast every time. Inference keeps nothing."""
    seen, clocked = [], []

    def state():
        return torch.is_autocast_enabled("cpu")

    def watched(name):
        model = build_model(name, 4)
        if name == "difnet_tiny":
            conv = model.seed_branch.trunk.conv1
            conv.register_forward_hook(lambda *_: seen.append((model.training, torch.is_grad_enabled(), state())))
            conv.weight.register_hook(lambda grad: seen.append(("backward", conv.weight.grad is None, state())))
        return model

    def clock(work, repeats, device):
        seen.clear()
        assert not state()
        for _ in range(repeats):
            work()
        clocked.append(list(seen))
        return {"median": 1.0, "deviation": 0.0}

    monkeypatch.setattr(timings, "build_model", watched)
    monkeypatch.setattr(timings, "clock", clock)
    timings.measure("difnet_tiny", "sim_deeplab_tiny", 33, 1, 2, "cpu", amp, True)
    forward, both = [(False, False, amp != "none")], [(True, True, amp != "none"), ("backward", True, False)]
    branch, other = [2 * forward, 2 * both], [[], []]
    assert clocked == [*branch, *other, *other, *branch, *other]


def test_training_gives_gradients_to_what_was_computed_and_not_to_the_image():
    model, image = build_model("difnet_tiny", 4), torch.randn(1, 3, 33, 33)
    asked = {name: [x.requires_grad for x in inputs] for name, (_, inputs) in timings.parts_of(model, image).items()}
    assert [flags for name, flags in asked.items() if name.startswith("Diffusion")] == [[True, False, *[True] * 4]]
    assert sum(len(flags) for flags in asked.values() if not any(flags)) == 3


def test_sizes_without_statistics_are_refused(capsys):
    """One node, one image: there is no variance to normalise by."""
    timings.measure("difnet_tiny", "sim_deeplab_tiny", 8, 1, 1, "cpu", "none", True)
    assert tables.main(["timings", "--size", "7"]) == 1
    assert "at least 8, the stride of the networks" in capsys.readouterr().err


def test_a_network_is_normalised_by_an_image():
    torch.manual_seed(0)
    model, image = build_model("difnet_tiny", 4), torch.randn(2, 3, 33, 33)
    timings.normalise(model, image)
    norm = model.similarity_branch.bn1
    seen = model.similarity_branch.conv1(image).detach()
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=0)
    assert not model.training and norm.momentum == 0.1
