"""Broken and hostile data sets: every message names the file, the rule and what to do."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from models.data import DataError, build_dataset, colour
from models.data.check import require_sound, scan
from tests.models.voc_trees import H, W, some_mask, write_list, write_mask, write_sbd


def refuses(action, *words):
    with pytest.raises(DataError) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", ".", "/etc/passwd", "a/b", "a\\b", ".hidden", "x\0y", "x\ty", "x\u202ey", "x\x7fy"],
)
def test_hostile_names_are_refused(voc, name):
    write_list(voc / "ImageSets/Segmentation/train.txt", ["2007_000032", name])
    refuses(lambda: build_dataset(voc, "voc", "train"), "train.txt", "printable")


@pytest.mark.parametrize(
    "line", ["/../secret.jpg /SegmentationClassAug/a.png", "/JPEGImages//a.jpg /b.png", "/a /b /c", "../x.jpg ../y.png"]
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
    refuses(lambda: build_dataset(voc, "coco"), "voc_aug", "cityscapes", "coco")
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


@pytest.mark.parametrize("lines", [["background"], ["a", "a"], [f"c{i}" for i in range(256)], ["a", "b/c"]])
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
