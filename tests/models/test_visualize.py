"""The figures show what they say: values are read back from the panels and compared with the definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from PIL import Image

from models import build_model, checkpoints
from models.data import build_dataset
from models.data.synthetic import class_names, generate
from models.figures.panels import BACKGROUND, OTHER, VOID, Labels
from models.visualize import draw, figure2, figure3, figure4, from_dataset, interesting_nodes, look, main

CLASSES = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("set") / "s", "easy", CLASSES, {"val": 3}, size=(65, 97))


@pytest.fixture(scope="module")
def dataset(root):
    return build_dataset(root, "voc", "val")


def network(name="difnet_tiny", **options):
    torch.manual_seed(0)
    return build_model(name, CLASSES, **options)


@pytest.fixture(scope="module")
def examples(dataset):
    return from_dataset(network(), dataset, [0, 2])


def panel(figure, row, column, columns):
    """The array shown in a panel; colour bars come after all panels."""
    return np.asarray(figure.axes[row * columns + column].get_images()[0].get_array())


def class_map(scores, size):
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def test_examples_hold_what_the_network_computed(dataset, examples):
    model = network().eval()
    with torch.no_grad():
        details = model(dataset[2]["image"][None], return_details=True)
    assert examples[1].name == "val_000002" and np.array_equal(examples[1].truth, dataset[2]["mask"])
    assert torch.equal(examples[1].details.logits, details.logits)
    for ours, theirs in zip(examples[1].details.steps, details.steps, strict=True):
        assert torch.equal(ours, theirs)
    model.train()
    look(model, dataset.transform.recipe, "x", examples[0].picture, None)
    assert model.training


def test_figure_2(dataset, examples):
    figure = figure2(examples, dataset.classes)
    labels = Labels(dataset.classes, [e.truth for e in examples], [e.labels(e.details.scores) for e in examples])
    for column, example in enumerate(examples):
        assert np.array_equal(panel(figure, 0, column, 2), example.picture)
        assert np.array_equal(panel(figure, 1, column, 2), labels.table[example.truth])
        assert np.array_equal(panel(figure, 2, column, 2), labels.table[class_map(example.details.scores, (65, 97))])
        influence = np.abs(example.details.scores[0].numpy()).sum(0)
        np.testing.assert_allclose(panel(figure, 3, column, 2), influence / influence.max(), rtol=1e-6)
        assert np.array_equal(panel(figure, 4, column, 2), example.details.importance[0, 0].numpy())
    assert [axes.get_ylabel() for axes in figure.axes[:10:2]] == [
        "image", "ground truth", "score map $x$", "influence $E$", "importance $M$",
    ]  # fmt: skip


@pytest.mark.smoke
def test_figure_3_shows_rows_of_p(examples):
    example, nodes = examples[0], [(3, 5), (60, 90)]
    figure = figure3(example, nodes)
    for t, psi in enumerate(example.details.psi):
        height, width = psi.shape[2:]
        flat = psi[0].flatten(1).double()
        for row, (y, x) in enumerate(nodes):
            node = (y * height // 65) * width + x * width // 97
            share = (flat[:, node] @ flat).softmax(0).reshape(height, width)
            expected = (share / share.max()).log10().clamp_min(-4)
            np.testing.assert_allclose(panel(figure, row, t + 1, 6), expected, atol=1e-3)
            assert figure.axes[row * 6 + t + 1].get_xlabel() == f"itself {float(share.flatten()[node]):.2g}"
    # the mark in the image is the chosen pixel
    assert figure.axes[6].lines[0].get_xdata() == [90] and figure.axes[6].lines[0].get_ydata() == [60]


def test_figure_4_shows_seed_and_every_walk(dataset, examples):
    figure = figure4(examples, dataset.classes)
    outputs = [[e.details.seed, *e.details.steps] for e in examples]
    maps = [[class_map(m, (65, 97)) for m in row] for row in outputs]
    labels = Labels(dataset.classes, [e.truth for e in examples], [m for row in maps for m in row])
    for row in range(2):
        for column in range(6):
            assert np.array_equal(panel(figure, row, column + 2, 8), labels.table[maps[row][column]])
    assert class_map(examples[0].details.steps[-1], (65, 97)).tolist() == (
        examples[0].details.logits[0].argmax(0).tolist()
    )


def test_panels_without_content_are_left_out(dataset, examples):
    unknown = look(network(importance=False), dataset.transform.recipe, "photo", examples[0].picture, None)
    names = [axes.get_ylabel() for axes in figure2([unknown], dataset.classes).axes[:3]]
    assert names == ["image", "score map $x$", "influence $E$"]
    titles = [axes.get_title() for axes in figure4([unknown], dataset.classes).axes]
    assert titles == ["image", "seed", *(f"$RW_{t}$" for t in range(1, 6))]
    mixed = figure4([unknown, examples[0]], dataset.classes)
    assert [text.get_text() for text in mixed.axes[1].texts] == ["not known"]
    assert len(figure3(unknown).axes) >= 7  # nodes come from the result


def test_nodes_lie_deep_in_different_classes(examples):
    nodes = interesting_nodes(examples[0])
    values = [examples[0].truth[y, x] for y, x in nodes]
    assert len(set(values)) == len(values) and 255 not in values
    for (y, x), value in zip(nodes, values, strict=True):
        assert (examples[0].truth[y - 1 : y + 2, x - 1 : x + 2] == value).all()


def test_a_pixel_belongs_to_the_node_whose_cell_holds_it(examples):
    height, width = examples[0].details.scores.shape[2:]
    for y in range(65):
        for x in range(97):
            row, column = examples[0].node(y, x)
            assert row <= y * height / 65 < row + 1 and column <= x * width / 97 < column + 1
    for y, x in [(65, 0), (0, 97), (-1, 0)]:
        with pytest.raises(ValueError, match="65 rows × 97 columns"):
            examples[0].node(y, x)


def test_labels_give_distinct_colours_and_fold_the_rest_into_other():
    truth = np.array([[0, 3, 3, 1, 255]])
    labels = Labels([f"c{i}" for i in range(30)], [truth, None], [np.arange(30)[None]])
    assert labels.shown[:2] == [3, 1] and len(labels.shown) == 14 and labels.has_other
    colours = {tuple(labels.table[c]) for c in labels.shown} | {to_rgb(c) for c in (BACKGROUND, VOID, OTHER)}
    assert len(colours) == 17
    assert tuple(labels.table[29]) == to_rgb(OTHER)
    assert [handle.get_label() for handle in labels.legend()][-2:] == ["other", "void"]
    few = Labels(["background", "a"], [None], [np.array([[0, 1]])])
    assert [handle.get_label() for handle in few.legend()] == ["background", "a"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("difnet_tiny", {}, ["fig2.png", "fig3.png", "fig4.png"]),
        ("difnet_tiny", {"walks": (1, 3, 5), "importance": False}, ["fig2.png", "fig3.png", "fig4.png"]),
        ("sim_deeplab_tiny", {}, ["fig2.png"]),
    ],
)
def test_every_kind_of_network_is_drawn(dataset, tmp_path, name, options, expected):
    model = network(name, **options)
    examples = from_dataset(model, dataset, [1])
    paths = draw(model, examples, dataset.classes, tmp_path / "out")
    assert [path.name for path in paths] == expected
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 150
            assert np.asarray(image.convert("L")).mean() > 100  # light
    if options.get("walks"):
        titles = [axes.get_title() for axes in figure3(examples[0], [(1, 1)], model.walks).axes[:4]]
        assert titles == ["image", "$P_1$", "$P_3$", "$P_5$"]
    if name.startswith("sim"):
        with pytest.raises(ValueError, match="must have walks"):
            figure3(examples[0])


def test_command_line(root, tmp_path, capsys):
    checkpoint, out = tmp_path / "c.safetensors", tmp_path / "figures"
    checkpoints.save(checkpoint, network(), classes=class_names(CLASSES), recipe={"transform": "authors"})
    common = ["--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*common, "--data", str(root), "--names", "val_000001"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["fig2.png", "fig3.png", "fig4.png"]
    photograph = str(root / "JPEGImages/val_000000.jpg")
    assert main([*common, "--images", photograph, "--nodes", "10,20", "40,60"]) == 0
    for arguments, words in [
        (["--data", str(root), "--names", "val_7"], "val_7 is not in the split"),
        (["--images", photograph, "--nodes", "65,0"], "65 rows"),
        (["--images", str(tmp_path / "none.jpg")], "none.jpg: file is missing"),
        (["--images", photograph, "--recipe", "x"], "default, authors"),
    ]:
        assert main([*common, *arguments]) == 1
        assert words in capsys.readouterr().err
