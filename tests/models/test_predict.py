"""Photographs in, masks out: the same answer as evaluation gives, for files, folders, large images and phones."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from models import build_model, checkpoints
from models.data import RECIPES, build_dataset
from models.data.synthetic import class_names, generate
from models.evaluate import evaluate
from models.evaluation.inference import Views, class_scores, starts
from models.predict import main, overlay, photographs, predict
from tests.models.test_evaluate import Pixelwise

CLASSES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("set") / "s", "mixed", CLASSES, {"val": 6}, size=(48, 64))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "c.safetensors"
    names = ["background", *(f"große Klasse {c}" for c in range(1, CLASSES))]
    checkpoints.save(path, build_model("difnet_tiny", CLASSES, width=4), classes=names, recipe={"transform": "authors"})
    return path


def asked(inputs, checkpoint, out, *more):
    return [*map(str, inputs), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu", *map(str, more)]


def test_a_folder_of_any_files_gives_what_evaluation_gives(root, checkpoint, tmp_path, capsys):
    """Suffixes, umlauts and EXIF orientations included; evaluation's own predictions are the truth."""
    assert main(asked([root / "JPEGImages"], checkpoint, tmp_path / "out")) == 0
    assert "6 images in" in capsys.readouterr().out
    model, _ = checkpoints.restore(checkpoint)
    dataset = build_dataset(root, "voc", "val")
    dataset.transform = type(dataset.transform)(RECIPES["authors"], False, None)
    evaluate(model, dataset, predictions=tmp_path / "truth", batch_size=1)
    for entry in dataset.entries:
        with Image.open(tmp_path / "out/masks" / f"{entry.name}.png") as ours:
            assert ours.mode == "P"
            with Image.open(tmp_path / "truth" / f"{entry.name}.png") as theirs:
                assert np.array_equal(np.asarray(ours), np.asarray(theirs)), entry.name
    assert (tmp_path / "out/colours.txt").read_text().splitlines()[1] == "128 0 0 große Klasse 1"


def test_masks_lie_on_the_photograph_as_seen(checkpoint, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "phone.png")))
    assert main(asked([tmp_path / "phone.png"], checkpoint, tmp_path / "out")) == 0
    model, _ = checkpoints.restore(checkpoint)
    expected = predict(model, seen, RECIPES["authors"]).labels
    assert expected.shape == (48, 32)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/phone.png")), expected)
    shown = np.asarray(Image.open(tmp_path / "out/overlays/phone.png"))
    assert np.array_equal(shown, overlay(seen, expected))


def test_probabilities_on_request(checkpoint, tmp_path):
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / "a.png")
    assert main(asked([tmp_path / "a.png"], checkpoint, tmp_path / "out", "--probabilities", "--no-overlays")) == 0
    assert not (tmp_path / "out/overlays").exists()
    with np.load(tmp_path / "out/probabilities/a.npz") as content:
        probabilities = content["probabilities"].astype(np.float32)
        assert content["classes"][2] == "große Klasse 2"
    assert probabilities.shape == (CLASSES, 30, 40)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=5e-3)
    labels = np.asarray(Image.open(tmp_path / "out/masks/a.png"))
    assert (probabilities.argmax(0) == labels).mean() > 0.99  # fp16 may tie


def test_the_overlay_shows_colours_contours_and_the_picture():
    picture = np.full((6, 9, 3), 100, np.uint8)
    labels = np.zeros((6, 9), np.uint8)
    labels[2:5, 3:7] = 1
    shown = overlay(picture, labels)
    assert (shown[0, 0] == 100).all() and (shown[2, 4] == 255).all()  # background stays; a contour above
    assert shown[3, 5].tolist() == [int(100 * 0.45 + 128 * 0.55), 45, 45]


# ------------------------------------------------------------------------------------------- windows, scales, mirrors


class Local(nn.Module):
    """A network that sees one pixel: windows cannot change what it says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, CLASSES, 1)
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[2:]))
        return self.conv(image)


@pytest.mark.parametrize("size", [(100, 70), (33, 200), (90, 90), (40, 20)])
def test_windows_cover_everything_and_change_nothing_that_is_local(size):
    model, image = Local(), torch.randn(1, 3, *size)
    whole = class_scores(model, image, Views())
    model.seen.clear()
    torch.testing.assert_close(class_scores(model, image, Views(window=40)), whole)
    assert max(max(seen) for seen in model.seen) <= 40 and (len(model.seen) > 1) == (max(size) > 40)


@pytest.mark.parametrize(("side", "window"), [(41, 40), (100, 40), (513, 513), (514, 513), (4000, 513), (40, 100)])
def test_windows_overlap_by_a_third_and_end_flush(side, window):
    begin = starts(side, window)
    assert begin[0] == 0 and begin[-1] == max(0, side - window)
    assert all(0 < b - a <= -(-2 * window // 3) for a, b in pairwise(begin))


def test_windows_average_where_they_overlap():
    """The mean of the logits of all windows that hold a pixel, counted by hand."""
    model, image = Pixelwise(CLASSES).eval(), torch.randn(1, 3, 50, 36)
    total, counts = torch.zeros(1, CLASSES, 50, 36), torch.zeros(50, 36)
    with torch.no_grad():
        for top in starts(50, 36):
            total[:, :, top : top + 36] += model(image[:, :, top : top + 36])
            counts[top : top + 36] += 1
    torch.testing.assert_close(class_scores(model, image, Views(window=36)), total / counts)


def test_large_photographs_are_cut_by_themselves():
    model = Local()
    predict(model, np.zeros((1100, 300, 3), np.uint8), RECIPES["default"])
    assert set(model.seen) == {(513, 300)}
    model.seen.clear()
    predict(model, np.zeros((1000, 300, 3), np.uint8), RECIPES["default"])
    assert model.seen == [(1000, 300)]


def test_scales_and_mirrors_average_probabilities(root):
    picture = build_dataset(root, "voc", "val").load(0)[0]
    model = Pixelwise(CLASSES).eval()
    found = predict(model, picture, RECIPES["default"], views=Views([0.75, 1.5], flip=True), with_probabilities=True)
    image, total = RECIPES["default"].normalise(picture)[None], 0
    with torch.no_grad():
        for scale in (0.75, 1.5):
            view = nn.functional.interpolate(image, size=[round(s * scale) for s in image.shape[2:]], mode="bilinear")
            for logits in (model(view), model(view.flip(3)).flip(3)):
                total += nn.functional.interpolate(logits, size=image.shape[2:], mode="bilinear").softmax(1) / 4
    np.testing.assert_allclose(found.probabilities, total[0].numpy(), atol=1e-6)
    assert np.array_equal(found.labels, found.probabilities.argmax(0))


# ----------------------------------------------------------------------------------------------------- what goes wrong


def test_folders_keep_their_structure(tmp_path):
    for name in ("in/a/x.jpg", "in/b/x.JPG", "in/.hidden/y.jpg", "in/.z.png", "in/out/masks/x.png", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = photographs([tmp_path / "in"], tmp_path / "in/out")
    assert [str(name) for _, name in found] == ["a/x", "b/x"]


def test_mistakes_are_one_clear_line(checkpoint, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for inputs, more, words in [
        ([tmp_path / "empty"], (), "empty: holds no JPEG or PNG"),
        ([tmp_path / "a.png", tmp_path / "a.png"], (), "would both be written"),
        ([tmp_path / "a.png"], ("--window", "10"), "at least 33"),
        ([tmp_path / "a.png"], ("--window", "x"), "whole or auto"),
        ([tmp_path / "a.png"], ("--scales", "0"), "(0, 8]"),
        ([tmp_path / "a.png"], ("--device", "foo"), "--device must be"),
        ([tmp_path / "a.png"], ("--recipe", "default"), "preprocessing authors"),
    ]:
        assert main(asked(inputs, checkpoint, tmp_path / "out", *more)) == 1
        told = capsys.readouterr().err
        assert words in told and told.startswith("error: ")
    # one broken photograph does not stop the others, and is not forgotten
    assert main(asked([tmp_path / "b.jpg", tmp_path / "a.png", tmp_path / "no.jpg"], checkpoint, tmp_path / "out")) == 1
    told = capsys.readouterr()
    assert "1 images in" in told.out and "2 images could not be segmented" in told.err
    assert "b.jpg: cannot be read" in told.err and "no.jpg: file is missing" in told.err
    assert (tmp_path / "out/masks/a.png").exists()


@pytest.mark.parametrize("kind", ["run folder", "authors", "sim_deeplab"])
def test_any_checkpoint_predicts(tmp_path, kind):
    torch.manual_seed(0)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    name = "sim_deeplab_tiny" if kind == "sim_deeplab" else "difnet_tiny"
    model, path, more = build_model(name, CLASSES), tmp_path / "run/last.safetensors", ()
    path.parent.mkdir()
    if kind == "authors":
        path, more = tmp_path / "a.pth.tar", ("--model", "difnet_tiny")
        torch.save({"state_dict": checkpoints.to_authors(model.state_dict())}, path)
    else:
        checkpoints.save(path, model, classes=class_names(CLASSES), recipe={"transform": "default"})
    given = path.parent if kind == "run folder" else path
    assert main(asked([tmp_path / "a.png"], given, tmp_path / "out", *more)) == 0
    assert np.asarray(Image.open(tmp_path / "out/masks/a.png")).shape == (30, 40)


def test_photographs_are_read_side_by_side(checkpoint, tmp_path, monkeypatch):
    """Nobody is done with reading before somebody else has begun."""
    from models import predict as module

    for i in range(8):
        Image.new("RGB", (33, 33)).save(tmp_path / f"{i}.png")
    two, read = threading.Barrier(2, timeout=60), module.read_image

    def together(path):
        two.wait()
        return read(path)

    monkeypatch.setattr(module, "read_image", together)
    one = lambda picture, name: module.Prediction(np.zeros(picture.shape[:2], np.uint8), None)  # noqa: E731
    assert module.predict_files([tmp_path], tmp_path / "out", one, ["a", "b"]) == (8, [])
