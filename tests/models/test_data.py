"""Data sets on disk: the layouts users have, broken files, hostile names, and samples that depend on (seed, index)."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from models.data import (
    CONTEXT,
    CONTEXT_DETAIL,
    VOC,
    DataError,
    EpochSampler,
    begin_epoch,
    build_dataset,
    build_loader,
    build_transform,
    colour,
    palette,
)
from models.data.check import main as check_main
from models.data.check import overlap, require_sound, scan

H, W = 12, 17
SPLITS = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}


def write_image(path, seed=0, size=(H, W)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def some_mask(seed=0, classes=21, size=(H, W)):
    mask = np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)
    mask[0] = 255
    return mask


def write_mask(path, mask, coloured=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if coloured:
        image.putpalette(palette().tobytes())
    image.save(path)


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def voc(tmp_path):
    """A VOC tree of three images below VOCdevkit, as the archive unpacks."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / f"JPEGImages/{name}.jpg", int(name[-3:]))
            write_mask(root / f"SegmentationClass/{name}.png", some_mask(int(name[-3:])))
        write_list(root / f"ImageSets/Segmentation/{split}.txt", names)
    return root


def write_sbd(root, splits):
    for split, names in splits.items():
        for name in names:
            write_image(root / f"img/{name}.jpg", int(name[-3:]))
            mask = np.where(some_mask(int(name[-3:])) == 255, 0, some_mask(int(name[-3:])))
            (root / "cls").mkdir(exist_ok=True)
            savemat(root / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask, "CategoriesPresent": [1]}})
        write_list(root / f"{split}.txt", names)


# Layouts


@pytest.mark.smoke
@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_is_found_from_its_folder_or_above(voc, above):
    root = [voc, voc.parent, voc.parent.parent][above]
    dataset = build_dataset(root, "voc", "train")
    assert [entry.name for entry in dataset.entries] == SPLITS["train"]
    assert dataset.classes == VOC and dataset.num_classes == 21
    sample = dataset[1]
    assert sample["name"] == "2007_000039"
    assert sample["image"].shape == (3, H, W) and sample["image"].dtype == torch.float32
    assert sample["mask"].dtype == torch.int64 and np.array_equal(sample["mask"], some_mask(39))


def test_the_test_split_has_no_ground_truth(voc, tmp_path):
    (voc / "SegmentationClass").rename(tmp_path / "elsewhere")
    write_list(voc / "ImageSets/Segmentation/test.txt", ["2007_000032"])
    assert (build_dataset(voc, "voc", "test")[0]["mask"] == 255).all()


@pytest.mark.parametrize("coloured", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_preconverted_augmentation(voc, coloured, pairs):
    """Grey or palette masks; lists of ids, or of 'image label' pairs with a leading slash."""
    names = ["2007_000032", "2007_000033"]
    for name in names:
        write_mask(voc / f"SegmentationClassAug/{name}.png", some_mask(7), coloured)
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" if pairs else n for n in names]
    write_list(voc / "ImageSets/SegmentationAug/train.txt", lines)
    dataset = build_dataset(voc, "voc_aug", "train")
    assert [entry.name for entry in dataset.entries] == names
    assert np.array_equal(dataset[0]["mask"], some_mask(7))


@pytest.mark.parametrize("where", ["Segmentation/trainaug.txt", "Segmentation/train_aug.txt"])
def test_other_names_of_the_augmented_list(voc, where):
    write_mask(voc / "SegmentationClassAug/2007_000039.png", some_mask())
    write_list(voc / "ImageSets" / where, ["2007_000039"])
    assert len(build_dataset(voc, "voc_aug", "train")) == 1


def test_augmentation_from_mat_is_the_union_without_validation(voc, tmp_path):
    """(VOC train ∪ SBD train ∪ SBD val) − VOC val, VOC's masks preferred, SBD's without void."""
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    write_sbd(sbd, {"train": ["2007_000032", "2008_000001"], "val": ["2007_000033", "2008_000002"]})
    dataset = build_dataset(voc, "voc_aug", "train", sbd_root=tmp_path)
    assert [e.name for e in dataset.entries] == [*SPLITS["train"], "2008_000001", "2008_000002"]
    assert np.array_equal(dataset[0]["mask"], some_mask(32))  # VOC's, with its void row
    assert (dataset[2]["mask"] != 255).all() and np.array_equal(dataset[2]["mask"][1:], some_mask(1)[1:])
    assert len(build_dataset(voc, "voc_aug", "train")) == 4  # found beside VOCdevkit without being told
    validation = build_dataset(voc, "voc_aug", "val")
    assert [e.name for e in validation.entries] == SPLITS["val"]
    assert require_sound(dataset).images == 4


def test_sbd_alone(tmp_path):
    write_sbd(tmp_path / "dataset", {"train": ["2008_000001"], "val": ["2008_000002"]})
    dataset = build_dataset(tmp_path, "sbd", "val")
    assert len(dataset) == 1 and np.array_equal(dataset[0]["mask"][1:], some_mask(2)[1:])


def test_context_classes():
    assert len(CONTEXT) == len(CONTEXT_DETAIL) == 60 and set(CONTEXT) == set(CONTEXT_DETAIL)
    assert [("table" if name == "diningtable" else name) for name in VOC] == list(CONTEXT[:21])
    assert CONTEXT_DETAIL[1:4] == ("aeroplane", "bag", "bed") and CONTEXT_DETAIL[-1] == "wood"


@pytest.mark.parametrize(("kind", "classes"), [("context", CONTEXT), ("context_detail", CONTEXT_DETAIL)])
def test_context_from_png(tmp_path, kind, classes):
    root = tmp_path / "VOC2010"
    write_image(root / "JPEGImages/2008_000002.jpg")
    write_mask(root / "SegmentationClassContext/2008_000002.png", some_mask(3, 60))
    write_list(root / "ImageSets/SegmentationContext/val.txt", ["2008_000002"])
    dataset = build_dataset(tmp_path, kind, "val")
    assert dataset.classes == classes and np.array_equal(dataset[0]["mask"], some_mask(3, 60))


@pytest.mark.parametrize(("kind", "classes"), [("context", CONTEXT), ("context_detail", CONTEXT_DETAIL)])
def test_context_from_mat_reduces_459_labels(tmp_path, kind, classes):
    root = tmp_path / "VOC2010"
    names = [f"thing{i}" for i in range(400)] + [("diningtable" if n == "table" else n) for n in CONTEXT[1:]]
    np.random.default_rng(0).shuffle(names)
    write_list(root / "labels.txt", [f"{i}: {name}" for i, name in enumerate(names, start=1)])
    write_image(root / "JPEGImages/2008_000002.jpg")
    labels = np.random.default_rng(1).integers(0, 460, (H, W))
    (root / "trainval").mkdir()
    savemat(root / "trainval/2008_000002.mat", {"LabelMap": labels.astype(np.uint16)})
    write_list(root / "ImageSets/Main/val.txt", ["2008_000002 -1"])
    mask = build_dataset(root, kind, "val")[0]["mask"]
    for y in range(H):
        for x in range(W):
            name = names[labels[y, x] - 1].replace("diningtable", "table") if labels[y, x] else "none"
            assert classes[mask[y, x]] == (name if name in classes else "background")
    write_list(root / "labels.txt", ["1: aeroplane"])
    with pytest.raises(DataError, match=r"labels\.txt: lacks"):
        build_dataset(root, kind, "val")


def test_the_colour_map_is_voc_s():
    assert palette()[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette()[20].tolist() == [0, 64, 128] and palette()[255].tolist() == [224, 224, 192]
    assert len({tuple(row) for row in palette()}) == 256
    assert colour(np.array([[1, 255]], np.uint8)).tolist() == [[[128, 0, 0], [224, 224, 192]]]


# Broken and hostile input: every message names the file


def refuses(action, *words):
    with pytest.raises(DataError) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", ".", "/etc/passwd", "a/b", "a\\b", "x y", "x\0y", "naïve", "$(id)", "a;b", "%2e%2e"],
)
def test_hostile_names_are_refused(voc, name):
    write_list(voc / "ImageSets/Segmentation/train.txt", ["2007_000032", name])
    refuses(lambda: build_dataset(voc, "voc", "train"), "train.txt", "letters, digits")


@pytest.mark.parametrize(
    "line", ["/../secret.jpg /SegmentationClassAug/a.png", "/JPEGImages//a.jpg /b.png", "a b c", "../x.jpg ../y.png"]
)
def test_hostile_pairs_are_refused(voc, line):
    write_mask(voc / "SegmentationClassAug/a.png", some_mask())
    write_list(voc / "ImageSets/SegmentationAug/train.txt", [line])
    refuses(lambda: build_dataset(voc, "voc_aug", "train"), "train.txt")


def test_a_hostile_split_is_refused(voc):
    refuses(lambda: build_dataset(voc, "voc", "../../../secret"), "split")


@pytest.mark.parametrize("folder", [False, True])
def test_links_that_lead_out_are_refused_unless_allowed(voc, tmp_path, folder):
    outside = tmp_path / "outside"
    link = voc / "JPEGImages" if folder else voc / "JPEGImages/2007_000032.jpg"
    link.rename(outside)
    link.symlink_to(outside)
    dataset = build_dataset(voc, "voc", "train")
    refuses(lambda: dataset[0], "2007_000032.jpg", "follow_links")
    assert build_dataset(voc, "voc", "train", follow_links=True)[0]["name"] == "2007_000032"


def test_links_inside_the_root_are_fine(voc):
    image = voc / "JPEGImages/2007_000032.jpg"
    image.rename(voc / "kept.jpg")
    image.symlink_to(voc / "kept.jpg")
    assert build_dataset(voc, "voc", "train")[0]["name"] == "2007_000032"


def png_claiming(width, height):
    """A valid PNG header of a huge picture with next to nothing behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


IMAGE, MASK = "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"


def spoil_bytes(content):
    return lambda path: path.write_bytes(content)


def spoil_mask(mask, mode=None):
    return lambda path: (Image.fromarray(mask) if mode is None else Image.fromarray(mask).convert(mode)).save(path)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        (IMAGE, spoil_bytes(b""), "cannot be read as JPEG or PNG"),
        (IMAGE, spoil_bytes(b"GIF89a" + bytes(60)), "cannot be read as JPEG or PNG"),
        (IMAGE, lambda p: p.write_bytes(p.read_bytes()[:300]), "cannot be read"),
        (IMAGE, spoil_bytes(png_claiming(8000, 8000)), "33554432 pixels"),
        (IMAGE, spoil_bytes(png_claiming(60000, 60000)), "33554432 pixels"),
        (IMAGE, lambda p: Image.fromarray(np.zeros((H, W), np.uint16)).save(p, "PNG"), "mode I;16"),
        (MASK, spoil_bytes(b"not a picture"), "cannot be read as PNG"),
        (MASK, lambda p: Image.fromarray(some_mask()).save(p, "JPEG"), "cannot be read as PNG"),
        (MASK, spoil_mask(colour(some_mask())), "mode RGB"),
        (MASK, spoil_mask(some_mask(), "1"), "mode 1"),
        (MASK, spoil_mask(some_mask().astype(np.uint16)), "mode I;16"),
        (MASK, spoil_mask(np.full((H, W), 21, np.uint8)), "[21]"),
        (MASK, spoil_mask(np.full((H, W), 254, np.uint8)), "[254]"),
        (MASK, spoil_mask(some_mask(size=(W, H))), "12×17"),
        (MASK, spoil_mask(some_mask(size=(H, W - 1))), "16×12"),
    ],
)
def test_broken_files_are_named(voc, file, spoil, words):
    spoil(voc / file)
    dataset = build_dataset(voc, "voc", "train")
    refuses(lambda: dataset[0], file.rsplit("/", 1)[1], words)
    assert dataset[1]["name"] == "2007_000039"
    report = scan(dataset)
    assert len(report.problems) == 1 and words in report.problems[0]
    refuses(lambda: require_sound(dataset), "1 of 2 samples", words)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0" + bytes(300), b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_broken_mat_files_are_named(tmp_path, content):
    write_sbd(tmp_path / "dataset", {"train": ["2008_000001"]})
    (tmp_path / "dataset/cls/2008_000001.mat").write_bytes(content)
    refuses(lambda: build_dataset(tmp_path, "sbd")[0], "2008_000001.mat", "MATLAB 5")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"LabelMap": np.zeros((H, W))}, "GTcls"),
        ({"GTcls": 3}, "Segmentation"),
        ({"GTcls": {"Boundaries": 1}}, "Segmentation"),
        ({"GTcls": {"Segmentation": np.zeros((H, W, 3), np.uint8)}}, "matrix"),
        ({"GTcls": {"Segmentation": np.full((H, W), 21, np.uint8)}}, "[21]"),
        ({"GTcls": {"Segmentation": np.full((H, W), 300, np.uint16)}}, "small integers"),
        ({"GTcls": {"Segmentation": np.zeros((W, H), np.uint8)}}, "size"),
    ],
)
def test_mat_files_with_other_content_are_named(tmp_path, content, words):
    write_sbd(tmp_path / "dataset", {"train": ["2008_000001"]})
    savemat(tmp_path / "dataset/cls/2008_000001.mat", content)
    refuses(lambda: build_dataset(tmp_path, "sbd")[0], "2008_000001.mat", words)


def test_missing_things_are_named_at_once(voc, tmp_path):
    refuses(lambda: build_dataset(tmp_path / "nowhere"), "nowhere", "--data", "models.data.synthetic")
    refuses(lambda: build_dataset(voc, "voc", "minival"), "minival.txt", "train, val")
    refuses(lambda: build_dataset(voc, "cityscapes"), "voc_aug", "cityscapes")
    refuses(lambda: build_dataset(voc, "voc_aug"), "sbd_root")
    (voc / MASK).unlink()
    refuses(lambda: build_dataset(voc), "2007_000032.png", "1 of 4 listed files")


@pytest.mark.parametrize(("lines", "words"), [(["a", "a"], "twice"), ([], "empty"), (["", " "], "empty")])
def test_bad_lists_are_named(voc, lines, words):
    write_list(voc / "ImageSets/Segmentation/train.txt", lines)
    refuses(lambda: build_dataset(voc), "train.txt", words)


def test_a_list_in_another_encoding_is_named(voc):
    (voc / "ImageSets/Segmentation/train.txt").write_bytes(b"\xff\xfe2\x000\x00")
    refuses(lambda: build_dataset(voc), "train.txt", "UTF-8")


@pytest.mark.parametrize("lines", [["background"], ["a", "a"], [f"c{i}" for i in range(256)], ["a", "b c"]])
def test_bad_class_lists_are_named(voc, lines):
    write_list(voc / "classes.txt", lines)
    refuses(lambda: build_dataset(voc), "classes.txt")


def test_a_class_list_sets_the_allowed_values(voc):
    write_list(voc / "classes.txt", ["background", "thing"])
    dataset = build_dataset(voc)
    assert dataset.classes == ("background", "thing")
    refuses(lambda: dataset[0], "0…1")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_picture_modes_become_rgb(voc, mode):
    suffix = "JPEG" if mode in ("L", "CMYK") else "PNG"
    Image.fromarray(np.full((H, W), 102, np.uint8)).convert("RGB").convert(mode).save(voc / IMAGE, suffix)
    image, _ = build_dataset(voc).load(0)
    assert image.shape == (H, W, 3) and np.abs(image.astype(int) - 102).max() <= 2


# The scan


def test_the_scan_counts_pixels_and_finds_everything_at_once(voc, capsys):
    report = scan(build_dataset(voc), "train")
    expected = np.bincount(np.stack([some_mask(32), some_mask(39)]).ravel(), minlength=256)
    assert np.array_equal(report.pixels, expected) and report.sizes == [(H, W)] * 2
    assert check_main(["--data", str(voc)]) == 0
    assert "sound" in capsys.readouterr().out
    (voc / IMAGE).write_bytes(b"")
    (voc / "SegmentationClass/2007_000033.png").write_bytes(b"")
    write_list(voc / "ImageSets/Segmentation/test.txt", ["2007_000032"])
    assert check_main(["--data", str(voc), "--split", "train", "val", "test", "missing"]) == 1
    problems = capsys.readouterr().err
    for words in ("2007_000032.jpg", "2007_000033.png", "missing.txt", "in both train and test"):
        assert words in problems


def test_overlap_concerns_held_out_splits_only(voc):
    write_list(voc / "ImageSets/Segmentation/trainval.txt", SPLITS["train"] + SPLITS["val"])
    sets = {split: build_dataset(voc, "voc", split) for split in ("train", "val", "trainval")}
    assert overlap(sets) == []
    assert len(overlap({"train": sets["trainval"], "val": sets["val"]})) == 1


# Samples and loaders


@pytest.fixture
def many(tmp_path):
    names = [f"n{i:02d}" for i in range(11)]
    for i, name in enumerate(names):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", i, (40, 50))
        write_mask(tmp_path / f"SegmentationClass/{name}.png", some_mask(i, size=(40, 50)))
    write_list(tmp_path / "ImageSets/Segmentation/train.txt", names)
    return tmp_path


def epoch_of(root, workers, epoch, batch=2, seed=3):
    dataset = build_dataset(root, transform=build_transform("default", True, 33), seed=seed)
    loader = build_loader(dataset, batch, workers=workers, drop_last=False)
    begin_epoch(loader, epoch)
    return {name: image for b in loader for name, image in zip(b["name"], b["image"], strict=True)}, loader


def test_samples_do_not_depend_on_workers_or_batches(many):
    alone, loader = epoch_of(many, workers=0, epoch=1)
    several, worker_loader = epoch_of(many, workers=2, epoch=1, batch=3)
    assert list(alone) == list(several)
    assert all(torch.equal(alone[name], several[name]) for name in alone)
    for each in (loader, worker_loader):  # workers outlive the epoch and must see the next begin
        begin_epoch(each, 2)
    second = {n: i for b in loader for n, i in zip(b["name"], b["image"], strict=True)}
    second_workers = {n: i for b in worker_loader for n, i in zip(b["name"], b["image"], strict=True)}
    assert list(second) == list(second_workers) != list(alone)
    assert all(torch.equal(second[name], second_workers[name]) for name in second)
    assert not any(torch.equal(second[name], alone[name]) for name in second)


def test_a_resumed_epoch_equals_the_uninterrupted_one(many):
    fresh, _ = epoch_of(many, 0, epoch=4)
    _, loader = epoch_of(many, 0, epoch=3)
    begin_epoch(loader, 4)
    assert all(torch.equal(i, fresh[n]) for b in loader for n, i in zip(b["name"], b["image"], strict=True))
    other_seed, _ = epoch_of(many, 0, epoch=4, seed=4)
    assert list(other_seed) != list(fresh)


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_sampler_deals_every_index_once(length, world):
    for even in (False, True):
        samplers = [EpochSampler(length, True, 0, rank, world, even) for rank in range(world)]
        dealt = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(indices) for indices in dealt]
        together = sorted(i for indices in dealt for i in indices)
        assert len(set(together)) == len(together)
        if even:
            assert {len(indices) for indices in dealt} == {length // world}
        else:
            assert together == list(range(length))
