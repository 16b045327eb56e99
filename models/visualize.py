"""The paper's Figs. 2, 3 and 4 for any image and checkpoint.

python -m models.visualize --checkpoint runs/x/best.safetensors --data DIR --names 2007_000033 --out figures
python -m models.visualize --checkpoint runs/x/best.safetensors --images photo.jpg --nodes 120,80 40,200 --out figures

Fig. 2: image, ground truth, score map x, influence map E = Σ_k |x_k|, importance map M.
Fig. 3: rows of P_t for chosen nodes, one column per walk: where each node looks.
Fig. 4: the seed and the output of every walk.
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt

from difnet_kernels import transition_rows
from models.commands import guarded
from models.data import IGNORE, DataError, Recipe, SegmentationDataset, build_transform
from models.data.arguments import add_data_arguments, dataset_of
from models.data.files import read_image
from models.evaluation.inference import require_finite
from models.figures.panels import Labels, Sheet
from models.networks.deeplab import Details
from models.writing import write_atomically, writing

DECADES = 4  # of the logarithmic colours of Fig. 3
WHY_NORMS = "A logit ψᵢ·ψⱼ grows with the length of ψⱼ, so rows of P prefer nodes with a long ψ, wherever they are."


@dataclass(frozen=True)
class Example:
    """One picture with everything the network computed for it."""

    name: str
    picture: np.ndarray  # uint8 (H, W, 3)
    truth: np.ndarray | None  # (H, W) class indices, None if unknown
    details: Details  # of a batch of one, fp32, on the CPU

    def labels(self, scores: torch.Tensor) -> np.ndarray:
        """Class map (H, W) of node-grid scores (1, K, H', W'): upsampled as the network upsamples, then argmax."""
        size = self.picture.shape[:2]
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()

    def node(self, y: int, x: int) -> tuple[int, int]:
        """The node whose cell holds pixel (y, x)."""
        (height, width), grid = self.picture.shape[:2], self.details.scores.shape[2:]
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"{self.name}: a node must lie in {height} rows × {width} columns; got {y},{x}.")
        return y * grid[0] // height, x * grid[1] // width


@torch.no_grad()
def look(model: torch.nn.Module, recipe: Recipe, name: str, picture: np.ndarray, truth: np.ndarray | None) -> Example:
    """Run `model` on one picture and keep what it computed. The model is left in the mode it came in."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        details = model(recipe.normalise(picture)[None].to(device), return_details=True)
    finally:
        model.train(was_training)
    require_finite(details.logits, name)
    return Example(name, picture, truth, Details(*(_to_cpu(part) for part in details)))


def figure2(examples: Sequence[Example], classes: Sequence[str]) -> Figure:
    """Image, ground truth, score map, influence E and importance M: one column per example.

    Rows without content are left out: the ground truth if no example has one, M if the network has none.
    """
    maps = [example.labels(example.details.scores) for example in examples]
    labels = Labels(classes, [e.truth for e in examples], maps)
    shown = {
        "image": True,
        "ground truth": any(e.truth is not None for e in examples),
        "score map $x$": True,
        "influence $E$": True,
        "importance $M$": examples[0].details.importance is not None,
    }
    rows = {name: row for row, name in enumerate(name for name, is_shown in shown.items() if is_shown)}
    sheet = Sheet(list(rows), [e.name for e in examples], examples[0].picture.shape)
    for column, (example, predicted) in enumerate(zip(examples, maps, strict=True)):
        sheet.picture(rows["image"], column, example.picture)
        if "ground truth" in rows:
            sheet.labels(rows["ground truth"], column, example.truth, labels)
        sheet.labels(rows["score map $x$"], column, predicted, labels)
        influence = example.details.scores[0].abs().sum(0).numpy()
        sheet.heat(rows["influence $E$"], column, influence / max(influence.max(), 1e-30), 0, 1, example.picture.shape)
        if example.details.importance is not None:
            importance = example.details.importance[0, 0].numpy()
            sheet.heat(rows["importance $M$"], column, importance, 0, 1, example.picture.shape)
    sheet.colourbar(rows["influence $E$"], "$E$ / max $E$")
    if "importance $M$" in rows:
        sheet.colourbar(rows["importance $M$"], "$M$")
    return sheet.finish(labels)


def figure3(
    example: Example, nodes: Sequence[tuple[int, int]] | None = None, walks: Sequence[int] | None = None
) -> Figure:
    """Rows of P_t: for every chosen pixel (y, x), where its node looks in each walk.

    Colours are logarithmic over four decades below the row's largest entry; the share a node keeps for itself stands
    under each panel. It need not be the largest, and the figure says why: `WHY_NORMS`.
    nodes: None takes the middles of the largest regions. walks: their numbers, for titles.
    """
    psi = _walk_maps(example, example.details.psi, "psi")
    nodes = list(nodes) if nodes else interesting_nodes(example)
    walks = list(walks) if walks else list(range(1, len(psi) + 1))
    on_grid = torch.tensor([[example.node(y, x) for y, x in nodes]])
    sheet = Sheet([f"node {i}" for i in range(1, len(nodes) + 1)], ["image", *(f"$P_{t}$" for t in walks)],
                  example.picture.shape)  # fmt: skip
    for row, (y, x) in enumerate(nodes):
        sheet.picture(row, 0, example.picture, mark=(y, x))
    for column, embedding in enumerate(psi, start=1):
        shares = transition_rows(embedding.float(), on_grid)[0]  # (M, H', W')
        for row, share in enumerate(shares):
            relative = (share / share.max()).clamp_min(10.0**-DECADES).log10()
            cell = (on_grid[0, row] + 0.5) / torch.tensor(share.shape) * torch.tensor(example.picture.shape[:2])
            own = float(share[tuple(on_grid[0, row])])
            sheet.heat(row, column, relative.numpy(), -DECADES, 0, example.picture.shape, cell.tolist())
            sheet.note(row, column, f"itself {own:.2g}")
    ticks = {d: f"$10^{{{d}}}$" if d else "1" for d in range(-DECADES, 1)}
    sheet.colourbar(None, "share of the row's largest entry", ticks)
    sheet.caption(WHY_NORMS)
    return sheet.finish()


def figure4(examples: Sequence[Example], classes: Sequence[str], walks: Sequence[int] | None = None) -> Figure:
    """The seed and the output of every walk: one row per example."""
    outputs = [
        [s for s in (e.details.seed,) if s is not None] + _walk_maps(e, e.details.steps, "steps") for e in examples
    ]
    walks = list(walks) if walks else list(range(1, len(outputs[0])))
    maps = [[e.labels(scores) for scores in row] for e, row in zip(examples, outputs, strict=True)]
    labels = Labels(classes, [e.truth for e in examples], [m for row in maps for m in row])
    known = any(e.truth is not None for e in examples)
    columns = ["image", *["ground truth"] * known, "seed", *(f"$RW_{t}$" for t in walks)]
    sheet = Sheet([e.name for e in examples], columns, examples[0].picture.shape)
    for row, (example, shown) in enumerate(zip(examples, maps, strict=True)):
        sheet.picture(row, 0, example.picture)
        if known:
            sheet.labels(row, 1, example.truth, labels)
        for column, output in enumerate(shown, start=1 + known):
            sheet.labels(row, column, output, labels)
    return sheet.finish(labels)


def interesting_nodes(example: Example, count: int = 4) -> list[tuple[int, int]]:
    """Pixels (y, x) deep inside the largest classes of the ground truth, or of the result where there is none."""
    regions = example.truth if example.truth is not None else example.details.logits[0].argmax(0).numpy()
    values, sizes = np.unique(regions[regions != IGNORE], return_counts=True)
    nodes = []
    for value in values[np.argsort(-sizes, kind="stable")][:count]:
        # padded, so that the image's border counts as an edge too
        depth = distance_transform_edt(np.pad(regions == value, 1))[1:-1, 1:-1]
        y, x = divmod(int(depth.argmax()), depth.shape[1])
        nodes.append((y, x))
    return nodes


def draw(
    model: torch.nn.Module,
    examples: Sequence[Example],
    classes: Sequence[str],
    out: str | Path,
    nodes: Sequence[tuple[int, int]] | None = None,
) -> list[Path]:
    """Write fig2.png, fig3.png (of the first example) and fig4.png to the folder `out`; returns their paths.

    A network without walks (Sim-Deeplab) has Fig. 2 only.
    """
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    figures = {"fig2.png": figure2(examples, classes)}
    if examples[0].details.psi is not None:
        walks = getattr(model, "walks", None)
        figures["fig3.png"] = figure3(examples[0], nodes, walks)
        figures["fig4.png"] = figure4(examples, classes, walks)
    for name, figure in figures.items():
        write_atomically(out / name, partial(figure.savefig, dpi=150, format="png"))
    return [out / name for name in figures]


def from_dataset(model: torch.nn.Module, dataset: SegmentationDataset, indices: Sequence[int]) -> list[Example]:
    """Examples of a data set at native size, preprocessed as its transform says."""
    recipe = dataset.transform.recipe
    return [look(model, recipe, dataset.entries[i].name, *dataset.load(i)) for i in indices]


def _walk_maps(example: Example, maps: list[torch.Tensor] | None, what: str) -> list[torch.Tensor]:
    if maps is None:
        raise ValueError(f"{example.name}: the network must have walks to show {what}; got one without (Sim-Deeplab).")
    return maps


def _to_cpu(part: Any) -> Any:
    if isinstance(part, (list, tuple)):
        return [item.float().cpu() for item in part]
    return part if part is None else part.float().cpu()


def _pixel(text: str) -> tuple[int, int]:
    y, x = text.split(",")
    return int(y), int(x)


def _parser() -> argparse.ArgumentParser:
    from models.weights.arguments import add_weight_arguments

    parser = argparse.ArgumentParser(prog="python -m models.visualize", description="The paper's Figs. 2, 3 and 4.")
    add_weight_arguments(parser)
    parser.add_argument("--out", default="figures", help="folder for fig2.png, fig3.png, fig4.png")
    parser.add_argument("--images", nargs="+", help="JPEG or PNG files, without ground truth, instead of --data")
    add_data_arguments(parser, required=False)
    parser.add_argument("--split", default="val")
    parser.add_argument("--names", nargs="+", help="ids in the data set; by default the first four")
    parser.add_argument("--nodes", type=_pixel, nargs="+", metavar="Y,X", help="pixels for Fig. 3, in the first image")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.images) == bool(options.data):
        parser.error("say what to draw: --images FILE …, or --data DIR")
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """The command."""
    from models.training.processes import choose_device
    from models.weights.arguments import restored

    device = choose_device(options.device)
    dataset = dataset_of(options, options.split) if options.data else None
    weights = restored(options, dataset.classes if dataset else None)
    model, classes = weights.model.to(device), weights.classes
    if dataset is not None:
        dataset.transform = build_transform(weights.preprocessing.name)
        index = {entry.name: i for i, entry in enumerate(dataset.entries)}
        names = [unicodedata.normalize("NFC", name) for name in options.names or list(index)[:4]]
        if unknown := [name for name in names if name not in index]:
            raise DataError(f"{options.data}: {unknown[0]} is not in the split {options.split}.")
        examples = from_dataset(model, dataset, [index[name] for name in names])
        classes = list(dataset.classes)
    else:
        files = [Path(name) for name in options.images]
        examples = [look(model, weights.preprocessing, file.stem, read_image(file), None) for file in files]
    paths = draw(model, examples, classes, options.out, options.nodes)
    print("\n".join(str(path) for path in paths))
    if len(paths) == 1:
        print("This network has no walks, so there is no Fig. 3 and no Fig. 4.")


if __name__ == "__main__":
    sys.exit(main())
