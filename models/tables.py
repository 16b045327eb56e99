"""The paper's tables, from runs and checkpoints of one's own, as Markdown.

python -m models.tables compare runs/a runs/b …     mean IoU of networks (Table 1); runs that differ in the seed average
python -m models.tables gates runs/a                learned μ and β (Table 3), and how far information travels
python -m models.tables timings                     where the time goes at 505² (Table 4), on this machine
python -m models.tables dense                       a network with fused walks and with N×N matrices: time and memory (CPU)
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models import checkpoints
from models.commands import guarded
from models.experiments import against_dense, comparison
from models.experiments.timings import measure, timing_rows
from models.networks.builder import build_model
from models.training.machine import environment
from models.training.processes import choose_device
from models.writing import write_text


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is text, the others are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def label(model: str, options: dict[str, Any]) -> str:
    """A network's name with what makes it different: "difnet50 walks=1,3,5"."""
    parts = [f"{k}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for k, v in sorted(options.items())]
    return " ".join([model, *parts])


def parameter_count(model: str, num_classes: int, options: dict[str, Any]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model, num_classes, **options).parameters())


def mean_and_deviation(values: Sequence[float], factor: float = 100.0) -> str:
    """ "61.23" for one value, "61.23 ± 0.45" (sample deviation) for several; a dash for none."""
    if not values:
        return "–"
    mean = f"{factor * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.2f}"


def compare(folders: Sequence[str | Path]) -> str:
    """Table 1: validation mean IoU in percent, of the last epoch and of the best one, a row per network.

    Runs that differ in the seed alone are one row; what rows differ in besides the network is said below. The best epoch
    is chosen on the validation set itself, so the last one is the fairer figure.
    """
    groups = comparison.grouped([comparison.read_run(folder) for folder in folders])
    table = markdown(
        ["network", "parameters", "runs", "epochs", "mIoU, last", "mIoU, best"],
        [
            [
                label(group[0].model, group[0].options),
                f"{parameter_count(group[0].model, group[0].num_classes, group[0].options):,}",
                len(group),
                ", ".join(map(str, sorted({run.epochs for run in group}))),
                mean_and_deviation([run.scores[-1] for run in group]),
                mean_and_deviation([max(run.scores) for run in group]),
            ]
            for group in groups
        ],
    )
    return "\n\n".join([table, *comparison.remarks(groups)])


def hop_shares(mu: Sequence[float], beta: Sequence[float]) -> list[float]:
    """Which share of the final y has travelled 0, 1, … T hops, for y⁰ = s (Eqs. 4-5 unrolled).

    Each Pₜ moves information by one hop and keeps its sum, so the coefficients of y as a polynomial in "a hop" add up
    to one.
    """
    shares = [1.0]
    for m, b in zip(mu, beta, strict=True):
        kept = [(1 - b) * share for share in shares] + [0.0]
        walked = [0.0] + [b * m * share for share in shares]
        shares = [k + w for k, w in zip(kept, walked, strict=True)]
        shares[0] += b * (1 - m)
    return shares


def gates(path: str | Path) -> str:
    """Table 3 of a checkpoint or run folder: μ and β of every walk, then the shares of 0 … T hops."""
    checkpoint = checkpoints.load(path)
    if "walk.mu_raw" not in checkpoint.state_dict or "walk.beta_raw" not in checkpoint.state_dict:
        raise ValueError(f"{path} holds {checkpoint.model_name}, which has no cascade of walks: no μ, β to show.")
    mu, beta = (torch.sigmoid(-checkpoint.state_dict[f"walk.{name}_raw"].double()).tolist() for name in ("mu", "beta"))
    walks = checkpoint.options.get("walks") or range(1, len(mu) + 1)
    table = markdown(
        ["walk", "μ", "β"],
        [[f"⊕{walk}", f"{m:.4f}", f"{b:.4f}"] for walk, m, b in zip(walks, mu, beta, strict=True)],
    )
    shares = " / ".join(f"{100 * share:.2f}" for share in hop_shares(mu, beta))
    return f"{table}\n\nShare of y that travelled 0, 1, … {len(mu)} hops: {shares} %"


def timings(
    difnet: str, baseline: str, size: int, batch: int, repeats: int, device: str, amp: str, backward: bool
) -> dict[str, Any]:
    """Table 4: seconds of the parts of `difnet` and of `baseline`, with the machine they were taken on."""
    parts = measure(difnet, baseline, size, batch, repeats, device, amp, backward)
    return {"size": size, "batch": batch, "amp": amp, "device": device, "machine": environment(), "parts": parts}


def show_dense(options: argparse.Namespace) -> str:
    """The table of `models.experiments.against_dense` under a line that names the machine; the numbers go to --json, too."""
    settings = {key: getattr(options, key) for key in ("network", "size", "batch", "training_batch", "repeats")}
    rows, machine = against_dense.compare(**settings), environment()
    write_json(options.json, {**settings, "machine": machine, "rows": rows})
    title = f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} threads: {options.network} at "
    title += f"{options.size}², {options.batch} image(s) of inference; walks forward and backward at batch "
    header = ["walks", "inference", "extra memory", "extra memory, walks both ways"]
    return f"{title}{options.training_batch}\n\n{markdown(header, against_dense.table_rows(rows))}"


def write_json(path: Path | None, content: Any) -> None:
    if path:
        text = json.dumps(content, indent=2) + "\n"
        write_text(path, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.tables", description="The paper's tables, from your runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    table1 = commands.add_parser("compare", help="mean IoU of networks (Table 1)")
    table1.add_argument("runs", nargs="+", help="run folders")
    table3 = commands.add_parser("gates", help="learned μ and β (Table 3)")
    table3.add_argument("runs", nargs="+", help="run folders or checkpoints")
    table4 = commands.add_parser("timings", help="where the time goes (Table 4)")
    table4.add_argument("--difnet", default="difnet50")
    table4.add_argument("--baseline", default="sim_deeplab101")
    table4.add_argument("--size", type=int, default=505)
    table4.add_argument("--batch", type=int, default=1)
    table4.add_argument("--repeats", type=int, default=10)
    table4.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    table4.add_argument("--amp", default="none", choices=["none", "bf16", "fp16"])
    table4.add_argument("--backward", default=True, action=argparse.BooleanOptionalAction)
    dense = commands.add_parser("dense", help="what fused walks save against N×N matrices, on the CPU")
    dense.add_argument("--network", default="difnet18")
    dense.add_argument("--size", type=int, default=321)
    dense.add_argument("--batch", type=int, default=1, help="images of an inference")
    dense.add_argument("--training-batch", type=int, default=16, help="images of a training step of the walks")
    dense.add_argument("--repeats", type=int, default=5)
    for command in (table4, dense):
        command.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """The command."""
    if options.command == "compare":
        print(compare(options.runs))
    elif options.command == "gates":
        print("\n\n".join(f"{run}\n\n{gates(run)}" for run in options.runs))
    elif options.command == "dense":
        print(show_dense(options))
    else:
        options.device = str(choose_device(options.device))
        chosen = ("difnet", "baseline", "size", "batch", "repeats", "device", "amp", "backward")
        result = timings(**{name: getattr(options, name) for name in chosen})
        machine = result["machine"]
        name = machine["gpu"][0] if options.device.startswith("cuda") else machine["processor"]
        print(f"{name}, torch {machine['torch']}, {options.batch} × {options.size}², amp {options.amp}\n")
        print(markdown(["part", "inference", "training, without loss and update"], timing_rows(result["parts"])))
        write_json(options.json, result)


if __name__ == "__main__":
    sys.exit(main())
