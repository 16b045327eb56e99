"""Weights survive the disk bit by bit; what does not fit is named; no file is ever half written or half trusted."""

import os
import pickle
import resource
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import build_model, checkpoints
from models.checkpoints import load, load_backbone, load_into, restore, save


def tiny(name="difnet_tiny", num_classes=5, seed=0, **options):
    torch.manual_seed(seed)
    model = build_model(name, num_classes, **options)
    for key, buffer in model.named_buffers():  # statistics of a trained network, not of a fresh one
        buffer.copy_(torch.rand(buffer.shape) + 0.5 if "running" in key else torch.tensor(7))
    return model


def assert_same_state(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name, options", [
    ("difnet_tiny", {"walks": (1, 3, 5), "bn_init": "uniform"}),
    ("difnet_tiny", {"importance": False}),
    ("sim_deeplab_tiny", {"blocks": (2, 2, 2, 2)}),
])  # fmt: skip
def test_round_trip_is_bit_equal_and_rebuilds_the_network(tmp_path, name, options):
    model = tiny(name, **options).to(memory_format=torch.channels_last)
    recipe, metrics = {"name": "authors", "lr": 2.5e-4}, {"mean_iou": 0.7248}
    save(tmp_path / "a.safetensors", model, classes=["bg", "ä", "b", "c", "d"], recipe=recipe, metrics=metrics)
    rebuilt, checkpoint = restore(tmp_path / "a.safetensors")
    assert_same_state(model, rebuilt)
    assert checkpoint.model_name == name and checkpoint.classes[1] == "ä"
    assert checkpoint.recipe == recipe and checkpoint.metrics == metrics
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(image), tiny(name, **options).eval()(image))


def test_training_tensors_travel_apart_from_the_weights(tmp_path):
    save(tmp_path / "a.safetensors", tiny(), training={"epoch": 3}, training_tensors={"momentum.x": torch.arange(3.0)})
    checkpoint = load(tmp_path / "a.safetensors")
    assert checkpoint.training == {"epoch": 3}
    assert torch.equal(checkpoint.training_tensors["momentum.x"], torch.arange(3.0))
    assert checkpoint.state_dict.keys() == tiny().state_dict().keys()


def test_other_class_count_names_the_keys_and_offers_reset_head():
    state = tiny(num_classes=5).state_dict()
    with pytest.raises(ValueError, match=r"head\.branches\.0\.bias: file \(5,\), network \(7,\)[\s\S]*--reset-head"):
        load_into(tiny(num_classes=7), state)


def test_reset_head_keeps_fresh_heads_and_loads_the_rest():
    source, model = tiny(num_classes=5, seed=0), tiny(num_classes=7, seed=1)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_into(model, source.state_dict(), reset_head=True)
    ours, theirs = model.state_dict(), source.state_dict()
    of_classes = {key for key in ours if ours[key].shape != theirs[key].shape}
    assert set(report.reset) == of_classes and len(of_classes) == 4 * 2 + 4 + 1  # ASPP, and the first BN and conv of H
    assert all(torch.equal(ours[key], (fresh if key in of_classes else theirs)[key]) for key in ours)


def test_report_is_strict():
    model, state = tiny(), tiny().state_dict()
    del state["seed_branch.trunk.conv1.weight"]
    state["walk.gamma"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: seed_branch\.trunk\.conv1\.weight; unexpected: walk\.gamma"):
        load_into(model, state)
    with pytest.raises(ValueError, match=r"shapes: seed_branch\.trunk\.conv1\.weight \(3,\) for \(16, 3, 7, 7\)"):
        load_into(model, {**tiny().state_dict(), "seed_branch.trunk.conv1.weight": torch.zeros(3)}, reset_head=True)


def test_a_failed_load_leaves_the_network_alone():
    model, state = tiny(seed=0), tiny(seed=1).state_dict()
    state["walk.gamma"] = torch.zeros(1)
    with pytest.raises(ValueError):
        load_into(model, state)
    assert_same_state(model, tiny(seed=0))


def test_missing_batch_counters_start_at_zero():
    """Files older than torch 0.4.1 have none."""
    model = tiny()
    load_into(model, {k: v for k, v in tiny(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")})
    assert not any(v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["difnet_tiny", "sim_deeplab_tiny"])
def test_backbone_fills_every_branch_with_its_own_copy(tmp_path, name, suffix):
    donor = tiny(name, seed=3).seed_branch.trunk.state_dict()
    with_classifier = {**donor, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    path = tmp_path / f"resnet{suffix}"
    torch.save(with_classifier, path) if suffix == ".pth" else save_file(with_classifier, path)
    model = tiny(name, seed=4)
    load_backbone(model, path)
    trunks = [model.seed_branch.trunk, *([model.similarity_branch] if name == "difnet_tiny" else [])]
    for trunk in trunks:
        assert all(torch.equal(trunk.state_dict()[key], donor[key]) for key in donor)
    assert len({trunk.conv1.weight.data_ptr() for trunk in trunks}) == len(trunks)


def test_backbone_of_another_depth_is_refused(tmp_path):
    torch.save(tiny(blocks=(2, 1, 1, 1)).similarity_branch.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"unexpected: layer1\.1\.bn1\.bias"):
        load_backbone(tiny(), tmp_path / "resnet.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        load(tmp_path / "evil.pth.tar")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        load(tmp_path / "old.pth")
    assert not (tmp_path / "pwned").exists()


def test_numpy_numbers_in_a_pickle_are_read(tmp_path):
    """The authors' `best_pred` comes from numpy."""
    torch.save({"best_pred": np.float64(0.72), "epoch": np.int64(3)}, tmp_path / "a.pth.tar")
    assert checkpoints.read_pth(tmp_path / "a.pth.tar") == {"best_pred": 0.72, "epoch": 3}


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a checkpoint"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_broken_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken"):
        load(path)


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save(path, tiny())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        load(path)


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="load_backbone"):
        load(tmp_path / "x.safetensors")


def test_a_failed_write_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save(path, tiny(seed=0))
    before = path.read_bytes()

    def full_disk(tensors, temporary, header):
        with open(temporary, "wb") as file:
            file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, tiny(seed=1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_full_disk_is_an_os_error(tmp_path):
    """The process may write 64 KiB a file at most, so the safetensors library itself meets the error, as on a full
    disk."""
    save(tmp_path / "a.safetensors", tiny(seed=0))
    before = (tmp_path / "a.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
        with pytest.raises(OSError, match=r"a\.safetensors"):
            save(tmp_path / "a.safetensors", tiny(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "a.safetensors").read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_command_line_converts_and_inspects(tmp_path, capsys):
    model = tiny()
    torch.save({"state_dict": {f"module.{k}": v for k, v in checkpoints.to_authors(model.state_dict()).items()}},
               tmp_path / "a.pth.tar")  # fmt: skip
    arguments = ["convert", str(tmp_path / "a.pth.tar"), str(tmp_path / "b.safetensors"), "--model", "difnet_tiny"]
    assert checkpoints.main(arguments) == 0
    assert checkpoints.main(["inspect", str(tmp_path / "b.safetensors")]) == 0
    assert "μ         0.5000 0.5000 0.5000 0.5000 0.5000" in capsys.readouterr().out
    assert_same_state(restore(tmp_path / "b.safetensors")[0], model)
    assert checkpoints.main(["inspect", str(tmp_path / "absent.safetensors")]) == 1
    assert "absent.safetensors" in capsys.readouterr().err
