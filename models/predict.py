"""Segment photographs with any checkpoint: masks, overlays and, on request, probabilities.

python -m models.predict --checkpoint runs/x photo.jpg folder --out predicted

OUT/masks/NAME.png      class indices with VOC's palette; a folder's structure is kept
OUT/overlays/NAME.png   the photograph under the colours of the classes
OUT/probabilities/NAME.npz   with --probabilities: "probabilities" float16 (K, H, W), "classes"
OUT/colours.txt         colour and name of every class, a line each

A photograph is read upright, as people see it (EXIF). Large ones are cut into overlapping windows (--window).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from models.commands import guarded
from models.data import DataError, Recipe, colour, palette
from models.data.files import IMAGE_SUFFIXES, read_image
from models.data.masks import write_mask
from models.evaluate import Refine, add_view_arguments, window_of
from models.evaluation.crf import DenseCRF
from models.evaluation.inference import Views, check_amp, class_scores, probabilities, require_finite
from models.writing import write_atomically, write_text, writing

AHEAD = 4  # photographs that are read, and results that are written, while the network works


@dataclass(frozen=True)
class Prediction:
    """What a network says about one photograph: class indices uint8 (H, W), and probabilities fp32 (K, H, W) if asked."""

    labels: np.ndarray
    probabilities: np.ndarray | None


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    picture: np.ndarray,
    preprocessing: Recipe,
    *,
    views: Views | None = None,
    crf: Refine | None = None,
    amp: str = "none",
    with_probabilities: bool = False,
    name: str = "the picture",
) -> Prediction:
    """Segment `picture`, RGB uint8 (H, W, 3), as `models.evaluate` does, on the device of `model`.

    preprocessing: what belongs to the weights: `restored(options).preprocessing`, or `models.data.RECIPES[...]`.
    views: scales, mirrored images, window; by default one view, in windows if the picture is large.
    The model is left in the mode it came in. ValueError, with `name`, for scores that are not finite.
    Memory: four bytes per class and pixel, besides the network.

    >>> model, checkpoint = checkpoints.restore("runs/x")
    >>> predict(model, read_image(Path("photo.jpg")), RECIPES[checkpoint.preprocessing]).labels
    """
    check_amp(amp)
    views = views or Views(window="auto")
    was_training = model.training
    model.eval()
    try:
        image = preprocessing.normalise(picture)[None].to(next(model.parameters()).device)
        scores = class_scores(model, image, views, amp)[0]
    finally:
        model.train(was_training)
    require_finite(scores, name)
    if crf is not None or with_probabilities:
        scores = probabilities(scores, views)
    if crf is not None:
        scores = crf(scores, picture)
    labels = scores.argmax(0).to(torch.uint8).cpu().numpy()
    return Prediction(labels, scores.cpu().numpy() if with_probabilities else None)


def overlay(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The picture under the colours of its classes; class 0 stays as it is, contours are white. uint8 (H, W, 3)."""
    shown = picture.copy()
    inside = labels > 0
    shown[inside] = (picture[inside] * 0.45 + colour(labels)[inside] * 0.55).astype(np.uint8)
    contour = np.zeros(labels.shape, dtype=bool)
    contour[1:] |= labels[1:] != labels[:-1]
    contour[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    shown[contour] = 255
    return shown


def photographs(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """(file, its name below OUT without suffix) of every input; folders with all below them, but OUT and hidden files.

    DataError for an input that is missing, a folder without images, and two inputs that would be written to one place.
    """
    found: list[tuple[Path, Path]] = []
    for given in inputs:
        if not given.is_dir():
            found.append((given, Path(given.stem)))  # a missing file is said when it is read
            continue
        below = [
            path
            for path in sorted(given.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(given).parts)
            and not path.resolve().is_relative_to(out.resolve())
            and path.is_file()
        ]
        if not below:
            raise DataError(f"{given}: holds no JPEG or PNG image.")
        found += [(path, path.relative_to(given).with_suffix("")) for path in below]
    by_name: dict[Path, Path] = {}
    for path, name in found:
        if name in by_name:
            raise DataError(f"{by_name[name]} and {path} would both be written to {name}.png. Give them an --out each.")
        by_name[name] = path
    return found


def predict_files(
    inputs: Sequence[str | Path],
    out: str | Path,
    one: Callable[[np.ndarray, str], Prediction],
    classes: Sequence[str],
    *,
    overlays: bool = True,
    progress: bool = False,
) -> tuple[int, list[str]]:
    """Write masks, overlays and, if `one` gives them, probabilities of all inputs; returns how many, and a line per
    photograph that could not be segmented. one: (picture, name) -> its prediction."""  # fmt: skip
    out = Path(out)
    files = photographs([Path(given) for given in inputs], out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    legend = zip(palette().tolist(), classes, strict=False)
    write_text(out / "colours.txt", "".join(f"{r} {g} {b} {name}\n" for (r, g, b), name in legend))
    problems = []
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:  # Pillow, zlib and torch release the interpreter
        writes: deque[Future[None]] = deque()
        for (path, name), read in tqdm(_ahead(pool, files), total=len(files), desc="predict", disable=not progress):
            try:
                picture = read.result()
                found = one(picture, str(path))
            except (DataError, ValueError) as error:
                problems.append(str(error))
                continue
            writes.append(pool.submit(_write, out, name, picture, found, classes, overlays))
            if len(writes) > AHEAD:
                writes.popleft().result()
        for write in writes:
            write.result()
    return len(files) - len(problems), problems


Reading = tuple[tuple[Path, Path], "Future[np.ndarray]"]


def _ahead(pool: ThreadPoolExecutor, files: Sequence[tuple[Path, Path]]) -> Iterator[Reading]:
    """Every file with the promise of its pixels; the next few are being read meanwhile."""
    reading: deque[Reading] = deque()
    for file in files:
        reading.append((file, pool.submit(read_image, file[0])))
        if len(reading) > AHEAD:
            yield reading.popleft()
    yield from reading


def _write(
    out: Path, name: Path, picture: np.ndarray, found: Prediction, classes: Sequence[str], overlays: bool
) -> None:
    def place(folder: str, suffix: str) -> Path:
        path = out / folder / f"{name}{suffix}"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    write_mask(place("masks", ".png"), found.labels)
    if overlays:
        image = Image.fromarray(overlay(picture, found.labels))
        write_atomically(place("overlays", ".png"), lambda temporary: image.save(temporary, "PNG", compress_level=1))
    if found.probabilities is not None:
        content = {"probabilities": found.probabilities.astype(np.float16), "classes": np.array(classes)}
        path = place("probabilities", ".npz")

        def save(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **content)  # type: ignore[arg-type]

        write_atomically(path, save)


def _parser() -> argparse.ArgumentParser:
    from models.weights.arguments import add_weight_arguments

    parser = argparse.ArgumentParser(prog="python -m models.predict", description="Segment photographs.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="JPEG or PNG files, or folders of them")
    add_weight_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for masks/, overlays/, colours.txt")
    parser.add_argument("--overlays", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--probabilities", action="store_true", help="also probabilities/*.npz")
    add_view_arguments(parser, window="auto")
    parser.add_argument("--crf", action="store_true", help="refine by a fully connected CRF, 10 iterations")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; a GPU if there is one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """The command."""
    from models.training.processes import choose_device
    from models.weights.arguments import restored

    views = Views(options.scales, options.flip, window_of(options.window))
    device = choose_device(options.device)
    weights = restored(options)
    model = weights.model.to(device).eval()
    crf = DenseCRF(progress=sys.stderr.isatty()) if options.crf else None

    def one(picture: np.ndarray, name: str) -> Prediction:
        return predict(
            model, picture, weights.preprocessing, views=views, crf=crf, amp=options.amp,
            with_probabilities=options.probabilities, name=name,
        )  # fmt: skip

    started = time.perf_counter()
    done, problems = predict_files(
        options.inputs, options.out, one, weights.classes, overlays=options.overlays, progress=sys.stderr.isatty()
    )
    print(f"{done} images in {time.perf_counter() - started:.1f} s -> {options.out}")
    if problems:
        raise DataError(f"{len(problems)} images could not be segmented:\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    sys.exit(main())
