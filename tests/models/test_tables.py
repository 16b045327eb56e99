"""Tables say what the runs say: means over seeds, learned gates, hops, and timings of every part."""

import json

import pytest
import torch

from models import build_model, checkpoints, tables, timings
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
    """On a line where P moves everything one node to the right, hops are positions."""
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
