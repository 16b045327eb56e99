"""The networks' stage of the GPU suite, run small on the CPU: it notices what it is there to notice."""

import json

import pytest

from benchmarks.gpu import networks
from models.networks.difnet import DifNet

SMALL = {"size": 65, "batch": 2, "steps": 4, "device": "cpu"}


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_two_streams_are_compared_with_one(amp):
    facts = networks.streams("difnet_tiny", amp, **SMALL)
    assert facts["passed"] and facts["losses_apart"] == facts["logits_apart"] == 0 and len(facts["losses"]) == 4
    assert facts["losses"][-1] < facts["losses"][0]  # the updates are updates
    assert facts["ms_one_stream"] > 0 and facts["ms_two_streams"] > 0


def test_another_result_on_two_streams_fails(monkeypatch):
    """What a race would do: with the branches side by side, embeddings are sometimes those of another image."""
    branches = DifNet.branches

    def racing(self, image):
        scores, psi = branches(self, image)
        return (scores, psi) if "_side_by_side" in vars(self) else (scores.roll(1, 0), psi)

    monkeypatch.setattr(DifNet, "branches", racing)
    assert not networks.streams("difnet_tiny", "bf16", **SMALL)["passed"]


def test_the_share_of_the_diffusion_is_a_share():
    for what in ("inference", "training"):
        assert 0 < networks.share("difnet_tiny", 65, 1, what, "cpu", repeats=2)["diffusion"] < 1


def test_a_failure_is_an_entry_and_the_next_question_is_asked(tmp_path, monkeypatch):
    def failing(*_):
        raise RuntimeError("out of memory\nlong story")

    monkeypatch.setattr(
        networks, "streams", lambda name, amp: {"network": name, "amp": amp, "passed": name != "difnet18"}
    )
    monkeypatch.setattr(networks, "share", lambda *asked: {"diffusion": 0.1} if asked[3] == "inference" else failing())
    monkeypatch.setattr("benchmarks.gpu.stage.machine.describe", lambda device: {"device": device})
    monkeypatch.setattr("sys.argv", ["networks", "--out", str(tmp_path / "networks.json")])
    assert networks.main() == 1
    told = json.loads((tmp_path / "networks.json").read_text())
    found = {(entry.get("amp"), entry.get("share_of"), entry["network"]): entry for entry in told["entries"]}
    assert told["complete"] and len(found) == 6
    assert [found[amp, None, name]["passed"] for amp in networks.AMP for name in networks.NETWORKS] == [False, True] * 2
    assert found[None, "training", "difnet50"]["reason"] == "RuntimeError: out of memory"
    assert found[None, "inference", "difnet50"]["diffusion"] == 0.1


def test_experiments_leave_their_results_where_the_suite_looks(tmp_path, monkeypatch):
    from models.experiments import study

    monkeypatch.setattr(study, "run_job", lambda job: {
        "variant": job.variant.name, "seed": job.seed, "lr": 0.1, "parameters": 1, "mean_iou": 0.5, "twins_iou": None,
        "seconds": 0.0, "mu": [[0.5]], "beta": [[0.5]], "stages": {"1": 0.5},
    })  # fmt: skip
    monkeypatch.setattr(study.os, "cpu_count", lambda: 1)
    assert networks.experiments(tmp_path / "experiments.json", "smoke", "cpu") == 0
    assert json.loads((tmp_path / "experiments.json").read_text())["budget"] == "smoke"
