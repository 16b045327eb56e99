"""The loop: what one update does, that stopping and resuming change nothing, and what happens in bad weather."""

import functools
import json
import os
import signal

import numpy as np
import pytest
import torch

from models import build_model, checkpoints
from models.training import Stopped, TrainConfig, Trainer, TrainingDiverged
from models.training.config import resolve_recipe
from models.training.processes import Processes
from models.training.run_folder import RunFolder

ALONE = Processes(0, 1, torch.device("cpu"))


class Blobs(torch.utils.data.Dataset):
    """Twelve small images whose class is their colour; augmented by noise that depends on (epoch, index)."""

    classes = ("background", "red", "green")

    def __init__(self, length: int = 12):
        self.length, self.epoch, self.asked = length, 0, []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        self.asked.append((self.epoch, index))
        noise = np.random.default_rng([self.epoch, index]).normal(size=(3, 33, 33)).astype(np.float32)
        mask = torch.zeros(33, 33, dtype=torch.int64)
        mask[8:24, 4 + index : 20 + index] = 1 + index % 2
        mask[0] = 255
        image = torch.nn.functional.one_hot(mask.clamp(max=2), 3).permute(2, 0, 1) * 2.0 + 0.1 * torch.from_numpy(noise)
        return {"image": image, "mask": mask, "name": f"blob{index}"}


def config_of(model="difnet_tiny", epochs=10, batch_size=4, **fields) -> TrainConfig:
    recipe = resolve_recipe("scratch", epochs=epochs, batch_size=batch_size, lr=fields.pop("lr", None))
    return TrainConfig(model, recipe, {"width": 4}, **fields)


def trainer_of(path, config, data=None, resume=False, **arguments) -> Trainer:
    folder = RunFolder(path) if resume else RunFolder.create(path, config)
    trainer = Trainer(config, data or Blobs(), folder, ALONE, **arguments)
    if resume:
        trainer.resume()
    return trainer


def tensors(path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoints.load(path)
    return {**checkpoint.state_dict, **checkpoint.training_tensors}


def assert_equal_runs(one: RunFolder, other: RunFolder) -> None:
    ours, theirs = tensors(one.last), tensors(other.last)
    assert ours.keys() == theirs.keys() and any(key.startswith("momentum.") for key in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    timing = ("images_per_s", "memory_mb")
    histories = [[{k: v for k, v in row.items() if k not in timing} for row in f.read_metrics()] for f in (one, other)]
    assert histories[0] == histories[1]


def fake_validation(network):
    """A score that rises, peaks in epoch 7 and falls, read off a weight so that it belongs to the network's state."""
    assert not network.training
    count = int(network.seed_branch.trunk.bn1.num_batches_tracked) // 3
    return {"mean_iou": 1 - abs(count - 7) / 10}


# ---------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("model", ["difnet_tiny", "sim_deeplab_tiny"])
def test_ten_epochs_are_five_and_five(tmp_path, model):
    config = config_of(model)
    whole = trainer_of(tmp_path / "whole", config, validate=fake_validation)
    whole.fit()
    trainer_of(tmp_path / "halves", config, validate=fake_validation).fit(stop_after=5)
    assert len(RunFolder(tmp_path / "halves").read_metrics()) == 5
    resumed = trainer_of(tmp_path / "halves", config, resume=True, validate=fake_validation)
    resumed.fit()
    assert_equal_runs(whole.folder, resumed.folder)
    assert [row["epoch"] for row in resumed.folder.read_metrics()] == list(range(1, 11))
    for folder in (whole.folder, resumed.folder):
        assert checkpoints.load(folder.best).metrics["epoch"] == 7
        assert checkpoints.load(folder.best).training_tensors == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_bit_equal(tmp_path, number):
    """The signal arrives while image 5 of epoch 2 is loaded: in the middle of the epoch."""

    class Killer(Blobs):
        def __getitem__(self, index):
            if len(self.asked) == 12 + 5:
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    config = config_of(epochs=3)
    whole = trainer_of(tmp_path / "whole", config)
    whole.fit()
    handlers = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)]
    stopped = trainer_of(tmp_path / "stopped", config, Killer())
    with pytest.raises(Stopped, match="--resume"):
        stopped.fit()
    assert [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (stopped.epoch, stopped.step) == (1, 1)
    data = Blobs()
    resumed = trainer_of(tmp_path / "stopped", config, data, resume=True)
    resumed.fit()
    assert len(data.asked) == 2 * 4 + 12  # nothing of the finished steps is loaded again
    assert_equal_runs(whole.folder, resumed.folder)


def test_a_crash_after_the_checkpoint_leaves_no_double_metrics(tmp_path):
    config = config_of(epochs=2)
    trainer = trainer_of(tmp_path / "run", config)
    trainer.fit(stop_after=1)
    trainer.folder.append_metrics({"epoch": 2, "loss": -1.0})
    trainer_of(tmp_path / "run", config, resume=True).fit()
    assert [row["epoch"] for row in trainer.folder.read_metrics()] == [1, 2]
    assert trainer.folder.read_metrics()[1]["loss"] > 0


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    config = config_of(epochs=1)
    whole = trainer_of(tmp_path / "whole", config)
    whole.fit()
    RunFolder.create(tmp_path / "killed", config)
    resumed = trainer_of(tmp_path / "killed", config, resume=True)
    resumed.fit()
    assert_equal_runs(whole.folder, resumed.folder)


def test_resuming_restores_channels_last_momentum(tmp_path):
    trainer_of(tmp_path / "run", config_of(epochs=2)).fit(stop_after=1)
    trainer = trainer_of(tmp_path / "run", config_of(epochs=2), resume=True)
    for parameter, state in trainer.optimizer.state.items():
        assert state["momentum_buffer"].stride() == parameter.stride()


# ------------------------------------------------------------------------------------------------- one update


def test_an_update_is_sgd_with_momentum_decay_and_poly(tmp_path):
    """Two updates against the formulas, in fp64 from the loss's own gradients. Fp32 rounding of a few operations."""
    config = config_of("sim_deeplab_tiny", epochs=2, channels_last=False)
    data = Blobs()
    trainer = trainer_of(tmp_path / "run", config, data)
    torch.manual_seed(config.seed)
    twin = build_model("sim_deeplab_tiny", 3, width=4).train()
    momentum = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for update, names in enumerate(([0, 1, 2, 3], [4, 5, 6, 7])):
        samples = [data[index] for index in names]
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "mask")}
        loss, lr = trainer._update({**batch, "name": []})
        trainer.step += 1
        assert lr == pytest.approx(0.05 * (1 - update / 6) ** 0.9)
        expected = torch.nn.functional.cross_entropy(twin(batch["image"]), batch["mask"], ignore_index=255)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        twin.zero_grad()
        expected.backward()
        with torch.no_grad():
            for name, p in twin.named_parameters():
                momentum[name] = 0.9 * momentum[name] + p.grad + 1e-4 * p
                p -= lr * momentum[name]
    for (name, ours), theirs in zip(trainer.network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_batch_of_void_changes_nothing_through_its_loss(tmp_path):
    trainer = trainer_of(tmp_path / "run", config_of())
    sample = Blobs()[0]
    batch = {"image": sample["image"].expand(4, -1, -1, -1), "mask": torch.full((4, 33, 33), 255), "name": []}
    loss, _ = trainer._update(batch)
    assert loss == 0.0
    assert all(not p.grad.any() for p in trainer.network.parameters())


def test_clipping_bounds_the_gradient(tmp_path):
    trainer = trainer_of(tmp_path / "run", config_of(clip=1e-3))
    samples = [Blobs()[index] for index in range(4)]
    trainer._update({**{key: torch.stack([s[key] for s in samples]) for key in ("image", "mask")}, "name": []})
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_training_learns(tmp_path):
    """Colours are easy: the loss of ln 3 at the start falls below a third of it."""
    trainer = trainer_of(tmp_path / "run", config_of(epochs=12))
    trainer.fit()
    losses = [row["loss"] for row in trainer.folder.read_metrics()]
    assert losses[-1] < np.log(3) / 3 < losses[0]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_fp32_weights(tmp_path, amp):
    trainer = trainer_of(tmp_path / "run", config_of(epochs=4, amp=amp))
    trainer.fit()
    losses = [row["loss"] for row in trainer.folder.read_metrics()]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


def test_compiled_training_is_the_same_training(tmp_path, monkeypatch):
    """The graph is captured whole and run as it is: code generation takes a minute, and is torch's to test."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    plain, compiled = (trainer_of(tmp_path / str(c), config_of(epochs=1, compile=c)) for c in (False, True))
    for trainer in (plain, compiled):
        trainer.fit()
    for ours, theirs in zip(compiled.network.parameters(), plain.network.parameters(), strict=True):
        # three updates; the captured backward may add in another order
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_frozen_batch_norm_keeps_statistics_and_scales(tmp_path):
    trainer = trainer_of(tmp_path / "run", config_of(epochs=1, batch_norm="frozen"))
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.fit()
    after = trainer.network.state_dict()
    norms = {name for name, m in trainer.network.named_modules() if hasattr(m, "running_mean")}
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert not any(key.rpartition(".")[0] in norms for key in changed)
    assert "seed_branch.trunk.conv1.weight" in changed and "walk.mu_raw" in changed


def test_sync_batch_norm_says_that_it_needs_gpus(tmp_path):
    with pytest.raises(ValueError, match="needs GPUs"):
        trainer_of(tmp_path / "run", config_of(batch_norm="sync"))


# -------------------------------------------------------------------------------------------------- bad weather


def test_a_loss_that_is_not_a_number_stops_with_the_names(tmp_path):
    class Poisoned(Blobs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if self.epoch == 1 and index == 7:
                sample["image"][0, 3, 3] = float("nan")
            return sample

    trainer = trainer_of(tmp_path / "run", config_of(), Poisoned())
    with pytest.raises(TrainingDiverged, match="blob7"):
        trainer.fit()
    report = json.loads((tmp_path / "run/diverged.json").read_text())
    assert "blob7" in report["names"] and len(report["names"]) == 4 and report["epoch"] == 2
    assert (checkpoints.load(trainer.folder.last).training["epoch"]) == 1
    assert all(p.isfinite().all() for p in trainer.network.parameters())


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path / "run", config_of())
    trainer.fit(stop_after=1)
    before = trainer.folder.last.read_bytes()

    def full_disk(tensors, path, header):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(stop_after=2)
    assert trainer.folder.last.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".")]


def test_run_folder_holds_config_environment_log_and_metrics(tmp_path):
    config = config_of(epochs=1, init=None, amp="bf16")
    trainer_of(tmp_path / "run", config, validate=fake_validation).fit()
    folder = RunFolder(tmp_path / "run")
    assert folder.read_config() == config
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and environment["command"]
    (row,) = folder.read_metrics()
    assert row["iteration"] == 3 and len(row["mu"]) == len(row["beta"]) == 5 and 0 < row["mean_iou"] <= 1
    log = (folder.path / "log.txt").read_text()
    assert "weights: from scratch" in log and "mIoU" in log and "μ 0." in log and "β 0." in log
    with pytest.raises(FileExistsError, match="--resume"):
        RunFolder.create(tmp_path / "run", config)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFolder(tmp_path / "nothing").read_config()


def test_initial_weights_come_from_where_the_log_says(tmp_path):
    donor = build_model("difnet_tiny", 5, width=4)
    checkpoints.save(tmp_path / "donor.safetensors", donor, recipe={"transform": "default"})
    torch.save(donor.similarity_branch.state_dict(), tmp_path / "trunk.pth")
    config = config_of(init=str(tmp_path / "donor.safetensors"), reset_head=True)
    trainer = trainer_of(tmp_path / "a", config)
    assert torch.equal(trainer.network.similarity_branch.conv1.weight, donor.similarity_branch.conv1.weight)
    assert "donor.safetensors (fresh: importance" in (tmp_path / "a/log.txt").read_text()
    trainer = trainer_of(tmp_path / "b", config_of(backbone=str(tmp_path / "trunk.pth")))
    assert torch.equal(trainer.network.seed_branch.trunk.conv1.weight, donor.similarity_branch.conv1.weight)
    with pytest.raises(ValueError, match="--reset-head"):
        trainer_of(tmp_path / "c", config_of(init=str(tmp_path / "donor.safetensors")))
    with pytest.raises(ValueError, match="leave --backbone out"):
        trainer_of(tmp_path / "d", config_of(init="x", backbone="y"))


@pytest.mark.parametrize("fields, message", [
    ({"amp": "int8"}, "none, bf16, fp16"),
    ({"batch_norm": "group"}, "train, sync, frozen"),
    ({"clip": -1.0}, "must not be negative"),
    ({"epochs": 0}, "epochs must be at least 1"),
])  # fmt: skip
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_of(**fields)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 3 images, less than one batch of 4"):
        trainer_of(tmp_path / "run", config_of(), Blobs(3))
