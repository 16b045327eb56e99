"""What belongs to weights stays with them: preprocessing, class list, class count, options, data, machine."""

import json

import pytest
import torch

from models import build_model, checkpoints, evaluate, predict, tables, train, visualize
from models.data import build_dataset, build_transform
from models.data.synthetic import class_names, generate
from models.training.run_folder import RunFolder

CLASSES = 4
LOCAL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "voc", "easy", CLASSES, {"train": 8, "val": 3}, size=48)


def network(name="difnet_tiny", num_classes=CLASSES, **options):
    torch.manual_seed(0)
    model = build_model(name, num_classes, **options)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.fill_(2.0)
    return model


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory):
    """The authors' format, which carries no preprocessing, and has only one."""
    path = tmp_path_factory.mktemp("authors") / "theirs.pth.tar"
    state = checkpoints.to_authors(network().state_dict())
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    return path


def command(data, out, *more):
    return ["--data", str(data), "--model", "difnet_tiny", "--recipe", "scratch", "--crop", "48", "--batch-size", "4",
            "--epochs", "1", "--out", str(out), *LOCAL, *map(str, more)]  # fmt: skip


def evaluated(data, path, tmp_path, *more):
    result = tmp_path / "result.json"
    options = [
        "--data",
        str(data),
        "--checkpoint",
        str(path),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--json",
        str(result),
    ]
    assert evaluate.main([*options, *map(str, more)]) == 0
    return json.loads(result.read_text())["counts"]


def refused(main, arguments, capsys, *words):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told
    for word in words:
        assert word in told, told


# -------------------------------------------------------------------------------------------------- preprocessing


def test_converted_weights_evaluate_as_before(data, authors_file, tmp_path):
    """The preprocessing is written with the weights; the truth is the network on BGR minus the mean."""
    ours = tmp_path / "ours.safetensors"
    assert checkpoints.main(["convert", str(authors_file), str(ours), "--model", "difnet_tiny"]) == 0
    before = evaluated(data, authors_file, tmp_path, "--model", "difnet_tiny")
    assert evaluated(data, ours, tmp_path) == before
    dataset = build_dataset(data, "voc", "val", build_transform("authors"))
    assert evaluate.evaluate(network(), dataset).counts == before
    assert evaluate.evaluate(network(), build_dataset(data, "voc", "val")).counts != before


def test_a_file_that_does_not_say_its_preprocessing_is_asked_about(data, tmp_path, capsys):
    bare, silent = tmp_path / "bare.pth", tmp_path / "silent.safetensors"
    torch.save(network().state_dict(), bare)
    checkpoints.save(silent, network())
    photo = next((data / "JPEGImages").glob("*"))
    for path, name in ((bare, ["--model", "difnet_tiny"]), (silent, [])):
        asked = ["--checkpoint", path, *name]
        words = (path.name, "does not say", "--recipe default or --recipe authors")
        refused(evaluate.main, ["--data", data, *asked], capsys, *words)
        refused(visualize.main, ["--data", data, *asked, "--out", tmp_path / "f"], capsys, *words)
        refused(predict.main, [photo, *asked, "--out", tmp_path / "p"], capsys, *words)
        refused(checkpoints.main, ["convert", path, tmp_path / "c.safetensors", *name], capsys, *words)
        assert (
            checkpoints.main(["convert", str(path), str(tmp_path / "c.safetensors"), *name, "--recipe", "authors"]) == 0
        )
        assert checkpoints.load(tmp_path / "c.safetensors").preprocessing == "authors"
    refused(
        train.main, command(data, tmp_path / "run", "--init", bare), capsys, "does not say", "--preprocessing default"
    )
    assert train.main(command(data, tmp_path / "run", "--init", bare, "--preprocessing", "default")) == 0


def test_preprocessing_that_contradicts_the_file_is_refused(data, authors_file, tmp_path, capsys):
    refused(
        evaluate.main, ["--data", data, "--checkpoint", authors_file, "--model", "difnet_tiny", "--recipe", "default"],
        capsys, "preprocessing authors", "--recipe default",
    )  # fmt: skip
    init = ("--init", authors_file)
    refused(train.main, command(data, tmp_path / "run", *init), capsys, "preprocessing authors, here default")
    assert train.main(command(data, tmp_path / "run", *init, "--preprocessing", "authors")) == 0
    checkpoint = checkpoints.load(tmp_path / "run")
    assert checkpoint.preprocessing == "authors" and checkpoint.recipe["name"] == "scratch"


# ------------------------------------------------------------------------------------------ classes, options, data


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of one of two epochs."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train.main(command(data, out, "--epochs", "2", "--stop-after", "1", "--options", '{"width": 4}')) == 0
    return out


def test_everything_that_belongs_to_weights_is_written(data, run):
    checkpoint = checkpoints.load(run)
    assert checkpoint.preprocessing == "default" and checkpoint.classes == list(class_names(CLASSES))
    assert checkpoint.options == {"width": 4} and checkpoint.num_classes == CLASSES
    assert checkpoint.data == {"images": 8, "kind": "voc", "reduce_zero_label": False}
    assert checkpoint.environment["backend"] in ("cpu", "reference")
    assert (checkpoint.environment["instruction_set"] is None) == (checkpoint.environment["backend"] == "reference")
    assert checkpoints.load_header(run).classes == checkpoint.classes


def with_classes(data, tmp_path, lines, name="other"):
    """The same images under other class names."""
    other = tmp_path / name
    other.mkdir()
    for part in ("JPEGImages", "SegmentationClass", "ImageSets"):
        (other / part).symlink_to(data / part)
    (other / "classes.txt").write_text("".join(f"{line}\n" for line in lines))
    return other


@pytest.mark.parametrize(("names", "words"), [
    (["background", "class01", "class03", "class02"], ("class 2 'class02', here 'class03'", "in its order")),
    (["background", "class01", "class02", "tree"], ("class 3 'class03', here 'tree'",)),
    ([*class_names(CLASSES), "more"], (f"{CLASSES} classes, here {CLASSES + 1}",)),
])  # fmt: skip
def test_other_classes_are_refused_everywhere(data, run, tmp_path, capsys, names, words):
    other = with_classes(data, tmp_path, names)
    linked = ["--data", other, "--follow-links"]
    before = {path: path.read_bytes() for path in run.iterdir() if path.suffix in (".json", ".safetensors")}
    refused(evaluate.main, [*linked, "--checkpoint", run, "--workers", "0"], capsys, *words)
    refused(visualize.main, [*linked, "--checkpoint", run, "--out", tmp_path / "f"], capsys, *words)
    refused(train.main, ["--resume", run, *linked, *LOCAL], capsys, *words)
    options = ("--options", '{"width": 4}', "--follow-links", "--init", run)
    told = words if len(names) == CLASSES else ("another number of classes",)
    refused(train.main, command(other, tmp_path / "n", *options), capsys, *told, "--reset-head")
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_does_not_continue_on_other_images(run, tmp_path, capsys):
    more = generate(tmp_path / "more", "easy", CLASSES, {"train": 16, "val": 3}, size=48)
    refused(train.main, ["--resume", run, "--data", more, *LOCAL], capsys, "images 8, here 16", "--init")


def test_options_that_differ_are_named(data, run, tmp_path, capsys):
    refused(
        train.main, command(data, tmp_path / "n", "--init", run, "--options", '{"width": 4, "importance": false}'),
        capsys, "option importance at its default, here False",
    )  # fmt: skip
    refused(
        evaluate.main, ["--data", data, "--checkpoint", run, "--options", '{"width": 8}'],
        capsys, "option width 4, here 8", "Leave --model and --options to the file",
    )  # fmt: skip
    refused(evaluate.main, ["--data", data, "--checkpoint", run, "--model", "difnet18"], capsys, "here difnet18")


def test_the_zero_label_belongs_to_the_weights(data, tmp_path, capsys):
    model = network(num_classes=3)
    names = list(class_names(CLASSES))[1:]
    record = {"images": 8, "kind": "voc", "reduce_zero_label": False}
    checkpoints.save(tmp_path / "a.safetensors", model, classes=names, recipe={"transform": "default"}, data=record)
    other = with_classes(data, tmp_path, names)
    asked = ["--data", other, "--follow-links", "--reduce-zero-label", "--checkpoint", tmp_path / "a.safetensors"]
    refused(evaluate.main, [*asked, "--workers", "0"], capsys, "reduce zero label False, here True")


def test_a_class_list_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="must name 4 classes; got 3"):
        checkpoints.save(tmp_path / "a.safetensors", network(), classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="preprocessing must be one of"):
        checkpoints.save(tmp_path / "a.safetensors", network(), preprocessing="caffe")


def test_reset_head_resets_the_head_of_equal_class_counts(data, run, tmp_path):
    """Fresh means: the weights that the seed gives, before any update."""
    source = checkpoints.load(run)
    torch.manual_seed(1)
    model = build_model("difnet_tiny", CLASSES, width=4)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    report = checkpoints.load_into(model, source, reset_head=True)
    assert len(report.reset) == 4 * 2 + 4 + 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key in report.reset else source.state_dict)[key]), key
    assert not torch.equal(
        fresh["seed_branch.head.branches.0.weight"], source.state_dict["seed_branch.head.branches.0.weight"]
    )
    other = with_classes(data, tmp_path, ["background", "x", "y", "z"])
    more = ("--options", '{"width": 4}', "--follow-links", "--init", run, "--reset-head", "--epochs", "1")
    assert train.main(command(other, tmp_path / "n", *more)) == 0
    assert "fresh: importance" in (tmp_path / "n/log.txt").read_text()


# -------------------------------------------------------------------------------------------------------- compare


def finished(path, score, seed=0, **fields):
    from models.training import TrainConfig
    from models.training.config import resolve_recipe

    recipe = resolve_recipe("scratch", lr=fields.pop("lr", None))
    environment, images = fields.pop("environment", {}), fields.pop("images", 8)
    folder = RunFolder.create(path, TrainConfig("difnet_tiny", recipe, {"width": 4}, seed=seed, **fields))
    folder.append_metrics({"epoch": 1, "mean_iou": score, "per_class_iou": [score] * CLASSES})
    checkpoints.save(folder.last, network(width=4), data={"images": images}, environment=environment)
    return folder.path


@pytest.mark.parametrize(("change", "words"), [
    ({"data": "/other"}, "Rows differ in data: row 1 , row 2 /other."),
    ({"val_split": "test"}, "val split: row 1 val, row 2 test"),
    ({"init": "/w.pth"}, "init: row 1 null, row 2 /w.pth"),
    ({"lr": 0.5}, "recipe lr: row 1 0.05, row 2 0.5"),
    ({"images": 16}, "images: row 1 8, row 2 16"),
])  # fmt: skip
def test_compare_never_averages_what_differs(tmp_path, change, words):
    told = tables.compare([finished(tmp_path / "a", 0.5), finished(tmp_path / "b", 0.7, seed=1, **change)])
    assert told.count("| difnet_tiny width=4 |") == 2 and " ± " not in told
    assert words in told


def test_compare_refuses_one_run_twice(tmp_path, capsys):
    a, b = finished(tmp_path / "a", 0.5), finished(tmp_path / "b", 0.6)
    refused(tables.main, ["compare", a, a], capsys, "one run counted twice")
    refused(tables.main, ["compare", a, b], capsys, f"{a} and {b}", "one seed, 0")


def test_compare_names_different_machines(tmp_path):
    isa = [{"instruction_set": name} for name in ("avx2", "avx512")]
    runs = [finished(tmp_path / str(seed), 0.5, seed=seed, environment=isa[seed]) for seed in (0, 1)]
    told = tables.compare(runs)
    assert (
        "| 2 | 1 | 50.00 ± 0.00 |" in told and "Row 1 averages runs of different instruction set: avx2, avx512." in told
    )
