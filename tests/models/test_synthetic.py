"""Generated scenes: determined by (seed, index), sound as a VOC tree, and difficult in the ways they claim."""

import hashlib
import json

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from models.data import IGNORE, DataError, build_dataset
from models.data.check import scan
from models.data.scenes import PRESETS, class_looks, render
from models.data.shapes import TEXTURES
from models.data.synthetic import FIRST_INDEX, class_names, encode, generate, main

SIZE = (97, 97)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.smoke
@pytest.mark.parametrize("preset", PRESETS)
def test_a_scene_depends_on_seed_and_index_alone(preset):
    first = render(preset, 21, SIZE, seed=3, index=7)
    np.random.seed(0)
    render(preset, 21, SIZE, seed=3, index=8)
    again = render(preset, 21, SIZE, seed=3, index=7)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    for seed, index in [(3, 8), (4, 7)]:
        assert not np.array_equal(first.image, render(preset, 21, SIZE, seed, index).image)


def test_a_larger_set_contains_the_smaller_one(tmp_path):
    small = digest(generate(tmp_path / "small", "easy", 5, {"train": 3, "val": 2}))
    large = digest(generate(tmp_path / "large", "easy", 5, {"train": 6, "val": 4}))
    pictures = {name for name in small if name.endswith((".jpg", ".png"))}
    assert len(pictures) == 10
    assert all(large[name] == small[name] for name in pictures)


@pytest.mark.smoke
def test_the_tree_is_read_by_the_voc_loader(tmp_path):
    root = generate(tmp_path / "set", "paper", 7, {"train": 4, "val": 3}, size=(64, 80), seed=5)
    for split, count in [("train", 4), ("val", 3)]:
        dataset = build_dataset(root, "voc", split)
        assert len(dataset) == count and dataset.classes == class_names(7)
        assert scan(dataset).problems == []
        for i in range(count):
            image, mask = dataset.load(i)
            scene = render("paper", 7, (64, 80), 5, FIRST_INDEX[split] + i)
            assert np.array_equal(mask, scene.mask)  # PNG loses nothing
            assert 0.5 < np.abs(image.astype(float) - scene.image).mean() < 20  # JPEG loses something, not everything
    with Image.open(root / "SegmentationClass/train_000000.png") as mask:
        assert mask.mode == "P" and mask.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]  # VOC's first two colours


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("classes", [2, 3, 4, 21, 40])
def test_every_class_occurs_and_nothing_else(preset, classes):
    seen = np.zeros(256, dtype=int)
    for index in range(classes + 10):
        seen += np.bincount(render(preset, classes, SIZE, 0, index).labels.ravel(), minlength=256)
    assert (seen[:classes] > 0).all() and seen[classes:].sum() == 0


@pytest.mark.parametrize(("side", "width"), [(97, 1), (321, 2)])
def test_void_lies_along_borders_and_only_there(side, width):
    """No two classes touch; a pixel is void exactly if another label is within `width` steps."""
    scene = render("hard", 21, (side, side), 0, 1)
    clear = scene.mask != IGNORE
    assert np.array_equal(scene.mask[clear], scene.labels[clear])
    for a, b in [(np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])]:
        assert (scene.mask[a] == scene.mask[b])[clear[a] & clear[b]].all()
    near = np.zeros_like(clear)
    labels = np.pad(scene.labels, width, mode="edge")
    for dy in range(-width, width + 1):
        for dx in range(-width + abs(dy), width - abs(dy) + 1):
            window = labels[width + dy : width + dy + side, width + dx : width + dx + side]
            near |= window != scene.labels
    assert np.array_equal(near, ~clear)


def test_textures_have_the_same_mean():
    """The mean colour of a group is one colour, so only the pattern tells its classes apart."""
    y, x = np.mgrid[-150:150, -150:150].astype(np.float32)
    for texture in TEXTURES:
        means = [texture(x, y, 8.0, np.random.default_rng(seed)).mean() for seed in range(5)]
        assert abs(np.mean(means) - 0.5) < 0.03, texture.__name__
        assert texture(x, y, 8.0, np.random.default_rng(0)).std() > 0.35, texture.__name__


@pytest.mark.parametrize("preset", ["paper", "hard"])
def test_classes_of_a_group_collide_in_colour_and_differ_otherwise(preset):
    looks = class_looks(PRESETS[preset], 21)
    colours = {}
    for c, look in enumerate(looks, start=1):
        colours.setdefault(tuple(look.light), []).append(c)
        if look.twin:
            twin = looks[look.twin - 1]
            assert twin.twin == c and twin.texture == look.texture and np.array_equal(twin.dark, look.dark)
            assert {look.emblem, twin.emblem} == {1, 2}
    assert all(len(group) > 1 for group in colours.values())
    looks_alike = {(tuple(look.light), look.texture, look.emblem) for look in looks}
    assert len(looks_alike) == len(looks)  # every class can be told from every other


def test_colour_alone_does_not_tell_a_group_apart():
    """The best colour rule learned on 150 scenes stays near chance between two classes of one group, on others."""
    histograms = np.zeros((2, 512)), np.zeros((2, 512))
    for index in range(300):
        scene = render("paper", 4, SIZE, 1, index)  # classes 1 and 2: one pair of colours, two textures
        for slot, c in enumerate((1, 2)):
            pixels = scene.image[(scene.mask == c) & ~scene.emblems].astype(int) >> 5
            histograms[index // 150][slot] += np.bincount(pixels @ [64, 8, 1], minlength=512)
    learned, tested = (h / h.sum(1, keepdims=True) for h in histograms)
    accuracy = np.where(learned[0] >= learned[1], tested[0], tested[1]).sum() / 2
    assert accuracy < 0.62


@pytest.mark.parametrize(("preset", "allowed"), [("paper", 0.002), ("hard", 0.03)])
def test_emblems_are_visible_and_twins_are_apart(preset, allowed):
    """What tells a twin from its twin is in the picture, and the two never meet in one image."""
    looks = class_looks(PRESETS[preset], 21)
    shown = hidden = 0
    for index in range(200):
        scene = render(preset, 21, SIZE, 2, index)
        present = set(np.unique(scene.labels).tolist()) - {0}
        for c in present:
            if looks[c - 1].emblem:
                assert looks[c - 1].twin not in present
                visible = (scene.emblems & (scene.labels == c)).sum() >= 12
                shown += bool(visible)
                hidden += not visible
    assert shown > 300 and hidden <= allowed * shown


def test_in_long_every_object_has_parts_that_only_a_distant_emblem_explains():
    """All classes are twins, and an object is in two or three pieces, of which one shows an emblem."""
    assert all(look.twin for look in class_looks(PRESETS["long"], 5))
    pieces, explained = [], []
    for index in range(60):
        scene = render("long", 5, SIZE, 0, index)
        present = [c for c in range(1, 5) if (scene.labels == c).any()]
        for c in present if len(present) == 1 else ():
            found, count = scipy.ndimage.label(scene.labels == c)
            sizes = np.bincount(found.ravel())[1:]
            pieces.append((sizes >= 20).sum())
            explained.append(sum(bool((scene.emblems & (found == i)).any()) for i in range(1, count + 1)))
    assert len(pieces) > 15 and np.mean(np.array(pieces) > 1) > 0.7  # parts may touch, or lie half outside
    assert np.mean(np.array(explained) == 1) > 0.5 and max(explained) <= 2


def test_harder_presets_compress_more():
    sizes = [np.mean([len(encode(p, 21, SIZE, 0, i)[0]) for i in range(12)]) for p in ("easy", "hard")]
    assert PRESETS["hard"].noise > PRESETS["paper"].noise > PRESETS["easy"].noise
    assert sizes[0] > 0 and sizes[1] > 0
    assert PRESETS["hard"].quality[1] < PRESETS["easy"].quality[0]


def test_a_finished_set_is_kept_and_another_is_refused(tmp_path):
    root = generate(tmp_path / "set", "easy", 3, {"train": 2})
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate(root, "easy", 3, {"train": 2})
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(DataError, match="Choose another folder"):
        generate(root, "easy", 4, {"train": 2})
    (root / "synthetic.json").unlink()  # as after an interruption
    with pytest.raises(DataError, match="no finished generated set"):
        generate(root, "easy", 3, {"train": 2})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preset": "harder"}, "easy, paper, hard, long, mixed"),
        ({"classes": 1}, "2…255"),
        ({"size": 20}, "48"),
        ({"counts": {"training": 3}}, "train, val, test"),
        ({"counts": {"train": 0}}, "train: 0"),
    ],
)
def test_senseless_descriptions_are_refused_before_writing(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        generate(tmp_path / "set", **change)
    assert not (tmp_path / "set").exists()


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "set")
    assert main(["--out", out, "--preset", "hard", "--classes", "6", "--train", "2", "--val", "1", "--size", "48"]) == 0
    assert json.loads((tmp_path / "set/synthetic.json").read_text())["classes"] == 6
    assert "2 + 1 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--out", out, "--preset", "easy"])
    assert "Choose another folder" in capsys.readouterr().err
