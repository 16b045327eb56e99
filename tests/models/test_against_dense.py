"""Fused walks and dense ones in the same network: the memory they need, and that only equal results are compared."""

import json
import subprocess
import types

import pytest

from models import tables
from models.experiments import against_dense
from models.experiments.against_dense import compare, growth_in_a_child
from models.networks.diffusion import Cascade


def test_training_memory_of_the_walks_is_linear_in_the_nodes():
    """Two images of 321²: a P of 1681² in fp32 is 10.8 MiB an image, and a dense backward keeps five of them, 108 MiB.

    Fused: 8 floats an entry of ψ and s, a walk (gradients, and what the backward reads again), is generous.
    """
    fused, dense = (growth_in_a_child(way, "training", "difnet_tiny", 321, 2) for way in ("cascade", "dense"))
    floats = 2 * 1681 * (32 + 21) * 5
    assert fused < 8 * 4 * floats / 2**20 + 8  # 8 MiB for what an allocator holds back
    assert dense > 2 * 5 * 10.8


def test_the_command_measures_and_writes(tmp_path, capsys, monkeypatch):
    said = iter(["7.5", "", "9.0", "11.0"])  # of four children, the second of which dies

    def run(command, **_):
        told = next(said)
        error = "" if told else "Traceback (most recent call last):\nRuntimeError: out of memory"
        return subprocess.CompletedProcess(command, int(not told), told, error)

    monkeypatch.setattr(against_dense, "subprocess", types.SimpleNamespace(run=run))
    small = ["--network", "difnet_tiny", "--size", "97", "--training-batch", "1", "--repeats", "1"]
    assert tables.main(["dense", *small, "--json", str(tmp_path / "dense.json")]) == 0
    out = capsys.readouterr().out
    assert "| 8 MiB | not measured: RuntimeError: out of memory |" in out and "| 9 MiB | 11 MiB |" in out
    stored = json.loads((tmp_path / "dense.json").read_text())
    assert stored["network"] == "difnet_tiny" and stored["machine"]["processor"]
    assert all(row["seconds"]["median"] > 0 for row in stored["rows"].values())


def test_no_number_without_agreement(monkeypatch):
    right = Cascade.diffuse
    monkeypatch.setattr(Cascade, "diffuse", lambda self, seed, psi: 1.01 * right(self, seed, psi))
    with pytest.raises(RuntimeError, match=r"must agree within .* differ by"):
        compare("difnet_tiny", 65, 1, 1, 1)
