"""Runs that go on: without files they do not need, longer than planned, with copies beside; what cannot count is refused."""

import json

import pytest
import torch

from models import build_model, checkpoints, train
from models.data import build_dataset
from models.data.synthetic import generate
from models.training.run_folder import RunFolder
from tests.models.test_training import config_of, trainer_of

LOCAL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", 4, {"train": 8, "val": 2}, size=48)


def command(data, out, *more):
    return ["--data", str(data), "--model", "difnet_tiny", "--options", '{"width": 4}', "--recipe", "scratch",
            "--crop", "48", "--batch-size", "4", "--epochs", "2", "--out", str(out), *LOCAL, *map(str, more)]  # fmt: skip


def resume(out, *more):
    return train.main(["--resume", str(out), *LOCAL, *map(str, more)])


@pytest.mark.parametrize("kind", ["--init", "--backbone"])
def test_resuming_needs_no_other_file(data, tmp_path, kind):
    """The weights that a run began with are in the run."""
    torch.manual_seed(0)
    donor, path = build_model("difnet_tiny", 4, width=4), tmp_path / "start.pth"
    torch.save(donor.state_dict() if kind == "--init" else donor.similarity_branch.state_dict(), path)
    more = (kind, path, *(("--preprocessing", "default") if kind == "--init" else ()))
    assert train.main(command(data, tmp_path / "whole", *more)) == 0
    assert train.main(command(data, tmp_path / "run", *more, "--stop-after", 1)) == 0
    path.unlink()
    assert resume(tmp_path / "run") == 0
    one, other = (checkpoints.load(tmp_path / name).state_dict for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_epochs_extend_a_finished_run(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main(command(data, out)) == 0
    assert resume(out) == 0
    assert "already finished: 2 of 2 epochs" in capsys.readouterr().out
    assert resume(out, "--epochs", 3) == 0
    folder = RunFolder(out)
    rows = folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3] and folder.read_config().recipe.epochs == 3
    assert rows[2]["lr"] == pytest.approx(0.05 * (1 - 5 / 6) ** 0.9)  # the schedule of the longer run
    assert resume(out, "--epochs", 2) == 1
    assert "--epochs must be at least the 3 of the run; got 2" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "words"), [
    (["--lr", "0.1"], "--lr 0.1 (the run has 0.05)"),
    (["--seed", "3", "--batch-size", "8"], "--batch-size 8 (the run has 4)"),
    (["--recipe", "authors"], "--recipe authors (the run has scratch)"),
    (["--options", '{"width": 8}'], "--options {'width': 8} (the run has {'width': 4})"),
    (["--model", "difnet18"], "--model difnet18"),
    (["--init", "x.pth"], "x.pth (the run has None)"),
    (["--out", "elsewhere"], "--out elsewhere"),
    (["--class-weights", "balanced"], "--class-weights balanced"),
])  # fmt: skip
def test_flags_that_cannot_count_are_refused(data, tmp_path, capsys, flags, words, run):
    before = run.read_bytes()
    assert resume(run.parent, *flags) == 1
    told = capsys.readouterr().err
    assert words in told and "cannot count" in told and run.read_bytes() == before


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    assert train.main(command(data, out, "--stop-after", 1)) == 0
    return out / "last.safetensors"


def test_flags_that_say_what_the_run_has_are_fine(data, run, tmp_path):
    """A cluster starts the same command line again, with --resume."""
    out = tmp_path / "copy"
    out.mkdir()
    for file in run.parent.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    assert train.main([*command(data, out), "--resume", str(out)]) == 0
    assert len(RunFolder(out).read_metrics()) == 2


def test_checkpoints_every_n_updates_and_the_last_k(tmp_path):
    """Three updates an epoch, one checkpoint every two: after updates 2, 4, 8, 10, and at the end of each epoch."""
    config = config_of(epochs=4, save_every=2, keep=2)
    trainer = trainer_of(tmp_path / "run", config)
    seen = []
    save = trainer.save_last

    def counting(*arguments, **options):
        save(*arguments, **options)
        seen.append(trainer.iteration)

    trainer.save_last = counting
    trainer.fit()
    assert {2, 4, 8, 10} <= set(seen)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] <= "00000012.safetensors"
    middle = checkpoints.load(tmp_path / "run/checkpoints" / kept[0])
    assert middle.training_tensors and middle.training["epoch"] >= 2


def test_a_run_that_was_killed_between_epochs_goes_on_from_the_last_save(tmp_path):
    """Killed without a signal to hear: nothing of the updates before the last checkpoint is computed again."""
    config = config_of(epochs=2, save_every=2)
    whole = trainer_of(tmp_path / "whole", config)
    whole.fit()
    killed = trainer_of(tmp_path / "killed", config)
    update = killed._update

    def dying(batch):
        if killed.iteration == 5:
            raise MemoryError
        return update(batch)

    killed._update = dying
    with pytest.raises(MemoryError):
        killed.fit()
    resumed = trainer_of(tmp_path / "killed", config, resume=True)
    assert (resumed.epoch, resumed.step) == (1, 1)
    resumed.fit()
    one, other = (checkpoints.load(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in one.state_dict)


def test_another_machine_is_a_line_in_the_log(data, run, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    out.mkdir()
    for file in run.parent.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    from models.training import trainer

    elsewhere = {**checkpoints.load(run).environment, "instruction_set": "sve"}
    monkeypatch.setattr(trainer, "made_on", lambda device: elsewhere)
    assert resume(out) == 0
    assert "is sve: the last bits may differ" in (out / "log.txt").read_text()


def test_the_first_lines_say_what_is_trained_where(data, run):
    log = run.with_name("log.txt").read_text().splitlines()
    lines = [line.split(" ", 2)[2] for line in log]
    assert lines[0] == f"data {data}, voc, split train: 8 images"
    assert lines[1] == "classes 4: background, class01, class02, class03"
    assert lines[2] == "iterations 4: 2 epochs of 2 updates of 4 images"
    environment = checkpoints.load(run).environment
    assert lines[3].startswith("device cpu, 1 process, ") and f"backend {environment['backend']}" in lines[3]
    assert str(environment["instruction_set"] or "torch") in lines[3]
    assert lines[4] == "validation on val: 2 images"


# --------------------------------------------------------------------------------------- weights, colours, backbones


def test_class_weights_weigh_errors(tmp_path):
    """The weighted mean over pixels, from its definition; equal weights change nothing."""
    from tests.models.test_training import Blobs

    samples = [Blobs()[i] for i in range(4)]
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("image", "mask")}
    weights = [0.5, 3.0, 1.0]
    losses = {}
    for name, given in (("plain", None), ("equal", [2.0, 2.0, 2.0]), ("weighted", weights)):
        trainer = trainer_of(tmp_path / name, config_of(class_weights=given))
        with torch.no_grad():
            errors = torch.nn.functional.cross_entropy(
                trainer.network.train()(batch["image"]), batch["mask"], ignore_index=255, reduction="none"
            )
        losses[name] = trainer._update({**batch, "name": []})[0]
    valid = batch["mask"] != 255
    pixel = torch.tensor(weights)[batch["mask"].clamp(max=2)][valid]
    assert losses["weighted"] == pytest.approx(float((errors[valid] * pixel).sum() / pixel.sum()), rel=1e-4)
    assert losses["equal"] == pytest.approx(losses["plain"], rel=1e-6) != losses["weighted"]


def test_balanced_weights_are_the_medians_over_the_shares(data, tmp_path):
    assert train.main(command(data, tmp_path / "run", "--epochs", 1, "--class-weights", "balanced")) == 0
    weights = RunFolder(tmp_path / "run").read_config().class_weights
    masks = torch.stack([build_dataset(data, "voc", "train")[i]["mask"] for i in range(8)])
    counts = torch.stack([(masks == c).sum() for c in range(4)]).double()
    expected = counts.quantile(0.5, interpolation="midpoint") / counts
    assert weights == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "words"), [("1,2", "one number for each of 4"), ("a,b", "balanced"), ("1,1,1,-1", "from 0 on")]
)
def test_wrong_class_weights_are_refused(data, tmp_path, capsys, text, words):
    assert train.main(command(data, tmp_path / "run", "--class-weights", text)) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "state_dict.module.encoder."])
@pytest.mark.parametrize("nested", [False, True])
def test_backbones_under_any_prefix(tmp_path, prefix, nested):
    torch.manual_seed(0)
    donor = build_model("difnet_tiny", 4, width=4).similarity_branch.state_dict()
    content = {f"{prefix}{key}": tensor for key, tensor in donor.items()}
    content[f"{prefix}fc.weight"] = torch.zeros(10, 32)
    torch.save({"state_dict": content, "epoch": 3} if nested else content, tmp_path / "resnet.pth")
    model = build_model("difnet_tiny", 4, width=4)
    checkpoints.load_backbone(model, tmp_path / "resnet.pth")
    for trunk in model.trunks():
        assert all(torch.equal(trunk.state_dict()[key], donor[key]) for key in donor)


def test_torchvision_weights_get_the_stride_they_want(data, tmp_path):
    from models.train import build_parser, config_of

    def config(model, *more):
        return config_of(build_parser().parse_args(["--data", "d", "--out", "o", "--model", model, *more]))

    assert config("difnet50", "--backbone", "r.pth").options == {"stride_in": "conv2"}
    assert config("difnet50", "--backbone", "r.pth", "--options", '{"stride_in": "conv1"}').options == {
        "stride_in": "conv1"
    }
    assert config("difnet18", "--backbone", "r.pth").options == config("difnet50").options == {}


def test_photometric_augmentation_trains(data, tmp_path):
    assert train.main(command(data, tmp_path / "run", "--epochs", 1, "--photometric", 0.5)) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["photometric"] == 0.5


def test_the_backend_in_the_log_is_one_that_trains(monkeypatch):
    """On a GPU, a backend without a backward is not the one; on a CPU the others never are."""
    from difnet_kernels.backends import Backend
    from models.training import machine

    def backend(name, backward=True):
        none = lambda *_: None  # noqa: E731
        return Backend(name, none, none, none, none, none if backward else None)

    offered = {name: backend(name, name != "cuda") for name in ("cpu", "cuda", "triton", "reference")}
    monkeypatch.setattr(machine, "BACKENDS", offered)
    assert machine.backend_in_use(torch.device("cuda")) == "triton"
    assert machine.backend_in_use(torch.device("cpu")) == "cpu"
