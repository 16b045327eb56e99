"""The demo on a small grid and a short training: it writes what it promises, ψ is a Gaussian kernel, and disagreement is
never reported."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difnet_kernels import cascaded_random_walk, transition_rows
from models.demo import __main__ as command
from models.demo import measure, networks, scene
from models.demo.features import SCALES, equal_norms, psi_of
from models.demo.photo import agreement, enlarged, table
from models.demo.progress import Progress
from models.training import Stopped
from models.training.run_folder import RunFolder

GRID = 40  # 1600 nodes: strokes of neighbouring regions are still apart


@pytest.fixture(scope="module")
def problem():
    """The photograph's own problem on the small grid: labels, seed, psi, mu, beta."""
    photo = scene.photograph()
    grid = scene.grid_of(photo, GRID)
    labels = scene.scribbled(photo, grid)
    mu, beta = torch.tensor([s.mu for s in SCALES]), torch.tensor([s.beta for s in SCALES])
    return labels, scene.seed_of(labels, len(scene.REGIONS)), psi_of(photo, grid), mu, beta


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of one whole run, child processes included."""
    out = tmp_path_factory.mktemp("demo")
    assert command.main(["photo", "--out", str(out), "--grid", str(GRID)]) == 0
    return out


@pytest.fixture
def in_process(monkeypatch):
    """Children run in this process (a second instead of ten); `failing` maps a method to the result of its child."""
    failing: dict[str, subprocess.CompletedProcess] = {}

    def run(arguments, **_):
        method, folder = arguments[-2:]
        return failing.get(method) or subprocess.CompletedProcess(
            arguments, 0, json.dumps(measure.measure(method, Path(folder))), ""
        )

    monkeypatch.setattr(measure.subprocess, "run", run)
    return failing


def test_the_figure_is_written_and_every_part_of_it_is_drawn(written):
    path = written / "photo.png"
    assert path.stat().st_size < 700 * 1024
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)
    height, width = pixels.shape[:2]
    assert min(height, width) > 1000
    # a blank panel has no spread; 6 x 6 tiles cover the three large panels and the columns of the walks
    spread = [tile.std() for rows in np.array_split(pixels, 6) for tile in np.array_split(rows, 6, axis=1)]
    assert min(spread) > 5


def test_the_results_say_what_was_done_and_measured(written):
    results = json.loads((written / "photo.json").read_text())
    assert results["grid"] == [GRID, GRID] and results["nodes"] == GRID**2
    assert results["classes"] == [region.name for region in scene.REGIONS]
    assert results["seeds_kept"] > 0.97  # a 13-pixel cell on a boundary may belong to either side
    assert [scale["mu"] for scale in results["scales"]] == [scale.mu for scale in SCALES]
    assert list(results["measured"]) == ["ours", "dense", "sdpa"]
    for result in results["measured"].values():
        assert result["seconds"] > 0 and result["extra_mib"] >= 0
        assert result["difference"] < 1e-3
    assert results["measured"]["ours"]["difference"] == 0
    # dense holds at least the logits and P of one walk
    assert results["measured"]["dense"]["extra_mib"] > 2 * GRID**4 * 4 / 2**20


def test_it_agrees_with_the_random_walker_of_scikit_image(written):
    found = json.loads((written / "photo.json").read_text())["agreement"]
    # two different methods: most of the picture must be the same, and no region lost
    assert found["pixel_accuracy"] > 0.85 and found["mean_iou"] > 0.7


def test_the_walks_spread_the_seeds(problem):
    _, seed, psi, mu, beta = problem
    reached = [
        (state.sum(1) > 0.01).float().mean().item()
        for state in cascaded_random_walk(seed, psi, mu, beta, return_steps=True)
    ]
    assert reached == sorted(reached)
    assert reached[0] < 0.8 and reached[-1] > 0.95


@pytest.mark.smoke
def test_every_region_has_seeds_that_lie_under_its_strokes():
    photo = scene.photograph()
    height, width = photo.shape[:2]
    for longer in (GRID, 104):
        labels = scene.scribbled(photo, scene.grid_of(photo, longer))
        assert (np.bincount(labels[labels >= 0], minlength=len(scene.REGIONS)) >= 10).all()
        for k, region in enumerate(scene.REGIONS):
            for stroke in region.strokes:
                assert all(0 <= x < width and 0 <= y < height for x, y in stroke)
                assert all(labels[y * longer // height, x * longer // width] in (k, -1) for x, y in stroke)


def test_every_node_looks_first_at_itself(problem):
    """Without the equal norm the extreme colours and the corners would take every row."""
    psi = problem[2]
    nodes = torch.arange(0, GRID**2, 37)
    for p in psi:
        rows = transition_rows(p, nodes.unsqueeze(0))[0].flatten(1)
        own = rows.gather(1, nodes.unsqueeze(1))
        # two nodes with the same look may tie up to the rounding of logits of size |psi|² (a few hundred)
        assert (own >= rows.amax(1, keepdim=True) * (1 - 1e-3)).all()


def test_P_is_a_gaussian_of_the_distance_between_embeddings(problem):
    psi = problem[2][-1].double()
    nodes = torch.tensor([[5, 700, 1599]])
    rows = transition_rows(psi, nodes)[0].flatten(1)
    points = psi[0].flatten(1).T
    chosen = points[nodes[0]]
    kernel = (-0.5 * torch.cdist(chosen, points, compute_mode="donot_use_mm_for_euclid_dist") ** 2).exp()
    expected = kernel / kernel.sum(1, keepdim=True)
    # psi was rounded to fp32, so the norms differ by 2⁻²⁴ of themselves
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.smoke
def test_equal_norms_keeps_the_features_and_evens_the_norms():
    features = np.random.default_rng(0).normal(size=(50, 3)) * 4 + 7
    rows = equal_norms(features)
    np.testing.assert_allclose(rows[:, :3], features - features.mean(0))
    np.testing.assert_allclose((rows**2).sum(1), (rows**2).sum(1).max())


@pytest.mark.parametrize("method", ["dense", "sdpa"])
def test_the_peers_compute_the_same_cascade(method, problem):
    _, seed, psi, mu, beta = problem
    y, other = measure.ours(seed, psi, mu, beta), measure.METHODS[method](seed, psi, mu, beta)
    assert other.shape == y.shape
    assert (other - y).abs().max() <= measure.tolerance(psi) * y.abs().max()
    # the check can fail: one walk with another mu is far outside the tolerance
    wrong = measure.METHODS[method](seed, psi, mu * 0.99, beta)
    assert (wrong - y).abs().max() > measure.tolerance(psi) * y.abs().max()


def test_no_number_without_agreement(in_process, problem, monkeypatch):
    _, seed, psi, mu, beta = problem
    monkeypatch.setitem(measure.METHODS, "dense", lambda seed, psi, mu, beta: measure.ours(seed, psi, mu, 0.9 * beta))
    with pytest.raises(RuntimeError, match=r"dense and ours must agree within .* differ by"):
        measure.compare(seed, psi, mu, beta, Progress(3))


def test_a_peer_that_runs_out_of_memory_is_reported_and_ours_is_an_error(in_process, problem):
    _, seed, psi, mu, beta = problem
    in_process["dense"] = subprocess.CompletedProcess([], -9, "", "")
    in_process["sdpa"] = subprocess.CompletedProcess([], 1, "", "Traceback ...\nRuntimeError: no kernel")
    measured = measure.compare(seed, psi, mu, beta, Progress(3))
    assert measured["dense"] == {"not_measured": "ended by signal 9"}
    assert measured["sdpa"] == {"not_measured": "RuntimeError: no kernel"}
    assert "not measured: RuntimeError: no kernel" in table(measured)
    in_process["ours"] = subprocess.CompletedProcess([], 1, "", "why")
    with pytest.raises(RuntimeError, match=r"failed in a process of its own:\nwhy"):
        measure.compare(seed, psi, mu, beta, Progress(3))


def test_the_peak_sees_memory_that_was_given_back():
    code = (
        "import torch; from models.demo.measure import peak_bytes; before = peak_bytes();"
        "block = torch.ones(2**26); del block; print((peak_bytes() - before) / 2**20)"
    )
    # in a process of its own, as in the demo: the peak of this one may already be larger
    child = subprocess.run([sys.executable, "-c", code], cwd=measure.ROOT, capture_output=True, text=True, check=True)
    assert 250 < float(child.stdout) < 320  # 256 MiB were written and freed


@pytest.mark.smoke
def test_agreement_of_known_label_images():
    ours, other = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    assert agreement(ours, other, 3) == {"pixel_accuracy": 0.75, "mean_iou": pytest.approx((1 / 2 + 2 / 3) / 2)}
    assert agreement(ours, ours, 3) == {"pixel_accuracy": 1.0, "mean_iou": 1.0}


@pytest.mark.smoke
def test_a_strong_seed_does_not_win_its_neighbours_pixels():
    scores = torch.tensor([[100.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    assert enlarged(scores, np.zeros((1, 8, 3))).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.smoke
def test_missing_extras_are_named_with_the_command_that_installs_them(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else found(name))
    assert command.main(["photo"]) == 1
    assert capsys.readouterr().err == "the demo needs skimage; install it with: pip install .[demo]\n"


def test_an_unknown_part_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        command.main(["foto"])
    assert "must be one of photo, networks" in capsys.readouterr().err


@pytest.mark.parametrize("longer", [15, 513])
def test_a_grid_that_does_not_fit_the_photo_is_refused(longer):
    with pytest.raises(ValueError, match=f"16 to 512 nodes along the longer side; got {longer}"):
        scene.grid_of(scene.photograph(), longer)


# ---------------------------------------------------------------------------------------------------- networks


SHORT = ["networks", "--images", "16", "--epochs", "1"]  # two updates


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of a run with little training and little validation, and what it said."""
    out, said = tmp_path_factory.mktemp("networks"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(networks, "VALIDATION", 5)
        assert command.main([*SHORT, "--out", str(out)]) == 0
    return out, said.getvalue()


def test_figures_2_to_4_are_written(learned):
    for number, rows in ((2, 5), (3, 3), (4, 4)):
        pixels = np.asarray(Image.open(learned[0] / f"fig{number}.png").convert("RGB")).astype(float)
        assert min(pixels.shape[:2]) > 500
        spread = [tile.std() for tile in np.array_split(pixels, rows)]
        assert min(spread) > 5  # no row of panels is blank


def test_the_last_stage_is_the_network_and_everything_said_was_measured(learned):
    out, said = learned
    found = json.loads((out / "networks.json").read_text())
    # training keeps its weights in channels_last, where a pixel between two classes may flip
    assert found["stages"]["5"] == pytest.approx(found["networks"]["difnet_tiny"]["mean_iou"], abs=1e-3)
    assert sum(found["hop_shares"]) == pytest.approx(1)
    for gate in ("mu", "beta"):
        assert len(found[gate]) == 5 and all(0 < value < 1 and value != 0.5 for value in found[gate])
        assert all(f"{value:.3f}" in said for value in found[gate])
    for score in (*found["stages"].values(), found["networks"]["sim_deeplab_tiny"]["mean_iou"]):
        assert f"{score:.1%}" in said
    for name in ("difnet_tiny", "sim_deeplab_tiny"):
        assert len(RunFolder(out / "runs" / name).read_metrics()) == 1
    assert str(out / "fig4.png") in said and "prefer nodes with a long ψ" in said


def test_a_second_demo_trains_again_and_finds_the_same(learned, monkeypatch, capsys):
    out, _ = learned
    before = (out / "networks.json").read_text()
    (out / "networks.json").unlink()
    monkeypatch.setattr(networks, "VALIDATION", 5)
    assert command.main([*SHORT, "--out", str(out)]) == 0
    assert json.loads((out / "networks.json").read_text())["stages"] == json.loads(before)["stages"]


def test_ctrl_c_ends_the_demo_without_a_traceback(tmp_path, monkeypatch, capsys):
    def stopped(*args, **arguments):
        raise Stopped("saved")

    monkeypatch.setattr(networks, "VALIDATION", 1)
    monkeypatch.setattr(networks, "train", stopped)
    assert command.main([*SHORT, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\nstopped\n"
