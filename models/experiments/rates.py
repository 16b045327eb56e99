"""The learning rates of the experiments: each family of networks with each of RATES, on a seed that does not count.

python -m models.rates --budget cpu --out runs/rates

Results: rates.json (every run) in --out. A variant has the rate of its family.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.commands import guarded
from models.experiments.report import rates_table
from models.experiments.study import budget_of, build_parser, measure, parallel_of
from models.writing import write_text

RATES = (0.05, 0.1, 0.2, 0.4)
SEED = 100


def search(budget_name: str, out: str | Path, device: str, parallel: int) -> dict[str, Any]:
    """Train DifNet, Sim-Deeplab and the deeper one with every rate; finished runs in `out` are kept."""
    out, families = Path(out), budget_of(budget_name).variants()[:3]
    tried = [replace(family, name=f"{family.name} at {rate}", lr=rate) for family in families for rate in RATES]
    result = measure(budget_name, tried, [SEED], out, device, parallel)
    for run, family in zip(result["runs"], [family.name for family in families for _ in RATES], strict=True):
        run["family"] = family
    write_text(out / "rates.json", json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    options = build_parser("python -m models.rates", __doc__.splitlines()[0], "runs/rates").parse_args(arguments)
    return guarded(
        lambda: print(rates_table(search(options.budget, options.out, options.device, parallel_of(options))))
    )


if __name__ == "__main__":
    sys.exit(main())
