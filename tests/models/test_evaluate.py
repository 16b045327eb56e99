"""Evaluation against a slow recomputation: protocols, scales, flips, CRF, processes, files."""

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from torch import nn

from models import build_model, checkpoints
from models.data import CONTEXT, build_dataset, build_transform
from models.data.synthetic import generate
from models.evaluate import evaluate, main
from models.evaluation.crf import DenseCRF
from models.evaluation.metrics import ConfusionMatrix


class Pixelwise(nn.Module):
    """A network whose answer depends on position and surroundings: a 3×3 convolution to class scores at stride 2."""

    def __init__(self, classes, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, classes, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.9)  # so that forgetting eval() shows

    def forward(self, image):
        return F.interpolate(self.drop(self.conv(image)), size=image.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eleven small scenes of two sizes, so that batches have to be split."""
    folder = tmp_path_factory.mktemp("set")
    generate(folder / "a", "easy", 6, {"val": 6}, size=(49, 60))
    generate(folder / "b", "easy", 6, {"val": 5}, size=(64, 48))
    for path in sorted((folder / "b").rglob("val_*")):
        path.rename(folder / "a" / path.relative_to(folder / "b").parent / path.name.replace("val_", "other_"))
    names = [f"{kind}_{i:06d}" for i in range(5) for kind in ("val", "other")] + ["val_000005"]
    (folder / "a/ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    return folder / "a"


def dataset_of(root, recipe="default"):
    return build_dataset(root, "voc", "val", build_transform(recipe))


def counted(dataset, predict):
    matrix = ConfusionMatrix(dataset.num_classes)
    for i in range(len(dataset)):
        with torch.no_grad():
            matrix.update(predict(dataset[i]["image"][None])[0].argmax(0), dataset[i]["mask"])
    return matrix


def same_but_for_ties(metrics, matrix, pixels=3):
    """Batches may round differently by an ulp, which can turn a pixel whose two best classes tie."""
    difference = (torch.tensor(metrics.counts) - matrix.counts).abs().sum()
    assert difference <= 2 * pixels
    assert sum(map(sum, metrics.counts)) == matrix.counts.sum()


@pytest.mark.smoke
@pytest.mark.parametrize("batch_size", [1, 4])
def test_native_is_argmax_of_the_logits_per_image(root, batch_size):
    dataset, model = dataset_of(root), Pixelwise(6)
    metrics = evaluate(model, dataset, batch_size=batch_size)
    model.eval()
    matrix = counted(dataset, model)
    same_but_for_ties(metrics, matrix)
    assert metrics.images == 11
    own = ConfusionMatrix(6)
    own.counts += torch.tensor(metrics.counts)
    assert metrics.mean_iou == own.mean_iou() and metrics.pixel_accuracy == own.pixel_accuracy()
    np.testing.assert_array_equal(metrics.per_class_iou, own.per_class_iou())


def test_the_model_comes_back_as_it_was(root):
    model = Pixelwise(6).train()
    evaluate(model, dataset_of(root))
    assert model.training
    evaluate(model.eval(), dataset_of(root))
    assert not model.training


@pytest.mark.parametrize("recipe", ["default", "authors"])
def test_padded_505_equals_padding_image_and_mask(root, recipe):
    """The transform's centred padding, with void in the mask, is the definition."""
    model = Pixelwise(6).eval()
    metrics = evaluate(model, dataset_of(root, recipe), protocol="padded505")
    padded = build_dataset(root, "voc", "val", build_transform(recipe, crop=505))
    same_but_for_ties(metrics, counted(padded, model))


def test_scales_and_flip_average_probabilities(root):
    dataset, model = dataset_of(root), Pixelwise(6).eval()
    metrics = evaluate(model, dataset, scales=[0.75, 1.5], flip=True)

    def predict(image):
        total = 0
        for scale in (0.75, 1.5):
            size = [round(side * scale) for side in image.shape[2:]]
            for mirrored in (False, True):
                view = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
                logits = model(view.flip(3)).flip(3) if mirrored else model(view)
                total += F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False).softmax(1)
        return total

    same_but_for_ties(metrics, counted(dataset, predict))
    assert metrics.counts != evaluate(model, dataset).counts


def test_crf_sees_the_picture_and_probabilities(root):
    dataset, model = dataset_of(root), Pixelwise(6).eval()
    seen = []

    def crf(probabilities, picture):
        seen.append(picture)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
        return probabilities.roll(1, 0)

    metrics = evaluate(model, dataset, crf=crf)
    assert metrics.crf
    for i, picture in enumerate(seen):
        assert np.array_equal(picture, dataset.load(i)[0])
    same_but_for_ties(metrics, counted(dataset, lambda image: model(image).softmax(1).roll(1, 1)))
    evaluate(model, dataset, crf=DenseCRF(iterations=1), flip=True)


def test_context_reports_59_classes_without_background(root):
    dataset = dataset_of(root)
    dataset.classes = CONTEXT
    model = Pixelwise(60).eval()
    with torch.no_grad():
        model.conv.bias[0] += 1.5  # background wins often, but not everywhere
    metrics = evaluate(model, dataset)
    assert 0.2 < sum(row[0] for row in metrics.counts) / sum(map(sum, metrics.counts)) < 0.95
    matrix = ConfusionMatrix(60)
    for i in range(len(dataset)):
        image, mask = dataset[i]["image"], dataset[i]["mask"].clone()
        logits = model(image[None])[0]
        logits[0] = -math.inf
        mask[mask == 0] = 255
        matrix.update(logits.argmax(0), mask)
    assert metrics.mean_iou_foreground == pytest.approx(matrix.mean_iou(), rel=5e-3)
    assert metrics.mean_iou_foreground != metrics.mean_iou
    assert "59 classes" in metrics.table()


def test_predictions_are_palette_images(root, tmp_path):
    dataset, model = dataset_of(root), Pixelwise(6).eval()
    evaluate(model, dataset, predictions=tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [f.stem for f in files] == sorted(entry.name for entry in dataset.entries)
    with Image.open(tmp_path / "out" / f"{dataset[2]['name']}.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == model(dataset[2]["image"][None])[0].argmax(0).numpy()).mean() > 0.999


def test_absent_classes_are_null_in_json_and_a_dash_in_the_table(root):
    dataset = dataset_of(root)
    dataset.classes = (*dataset.classes, "unicorn")
    model = Pixelwise(7).eval()
    with torch.no_grad():
        model.conv.bias[6] = -1e6
    metrics = evaluate(model, dataset)
    assert math.isnan(metrics.per_class_iou[6])
    content = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert content["per_class_iou"][6] is None and content["mean_iou"] == metrics.mean_iou
    assert "unicorn           –" in metrics.table()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "505"}, "native, padded505"),
        ({"scales": []}, "at least one"),
        ({"scales": [0.0]}, "in \\(0, 8\\]"),
        ({"amp": "int8"}, "bf16"),
    ],
)
def test_bad_options_are_refused(root, options, words):
    with pytest.raises(ValueError, match=words):
        evaluate(Pixelwise(6), dataset_of(root), **options)


def test_what_does_not_fit_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="must give 6 classes, as the data set has; got 7"):
        evaluate(Pixelwise(7), dataset_of(root))
    with pytest.raises(ValueError, match="training transform"):
        evaluate(Pixelwise(6), build_dataset(root, "voc", "val", build_transform(train=True)))
    large = generate(tmp_path / "large", "easy", 6, {"val": 1}, size=(48, 506))
    with pytest.raises(ValueError, match=r"val_000000.*native"):
        evaluate(Pixelwise(6), dataset_of(large), protocol="padded505")


def one_process(rank, root, out):
    group = (out / "group").as_uri()
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    metrics = evaluate(Pixelwise(6), dataset_of(root), batch_size=3)
    (out / f"{rank}.json").write_text(json.dumps(metrics.to_dict()))
    torch.distributed.destroy_process_group()


def test_two_processes_count_every_image_once(root, tmp_path):
    """Eleven images on two processes: an even split would repeat one or lose one."""
    mp.spawn(one_process, (root, tmp_path), nprocs=2)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["counts"] == results[1]["counts"]
    alone = evaluate(Pixelwise(6), dataset_of(root))
    matrix = ConfusionMatrix(6)
    matrix.counts += torch.tensor(results[0]["counts"])
    same_but_for_ties(alone, matrix)
    assert results[0]["images"] == 11


def test_command_line(root, tmp_path, capsys):
    torch.manual_seed(0)
    model = build_model("difnet_tiny", 6, walks=(1, 3, 5))
    dataset = dataset_of(root)
    checkpoints.save(tmp_path / "c.safetensors", model, classes=dataset.classes, recipe={"transform": "default"})
    arguments = ["--data", str(root), "--checkpoint", str(tmp_path / "c.safetensors"), "--workers", "0"]
    result, pictures = tmp_path / "result.json", tmp_path / "pictures"
    assert main([*arguments, "--json", str(result), "--predictions", str(pictures)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(result.read_text())
    assert content["images"] == 11 and f"{content['mean_iou']:7.2%}" in printed
    assert content["counts"] == evaluate(model, dataset).counts
    assert len(list(pictures.iterdir())) == 11
    assert main([*arguments, "--split", "test"]) == 1
    assert "test.txt: file is missing" in capsys.readouterr().err
    checkpoints.save(tmp_path / "c.safetensors", model, classes=list("abcdef"))
    assert main(arguments) == 1
    assert "in its order" in capsys.readouterr().err
