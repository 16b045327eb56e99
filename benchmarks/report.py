"""Write the measured tables and figures into README and docs: `python -m benchmarks.report` (--check: only compare).

A document marks where a table goes,

    <!-- table:begin NAME -->
    <!-- table:end -->

and everything in between is replaced by the table of that name (`benchmarks.tables`). No number is typed by hand.
--archive FILE takes what a run of `benchmarks.gpu_suite` brought back, and keeps it as a results file before.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.gpu_suite import kept
from benchmarks.results import FOLDER, Results, load
from benchmarks.tables import all_tables

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"
_MARKED = re.compile(r"(<!-- table:begin (?P<name>[\w-]+) -->\n).*?(<!-- table:end -->)", re.DOTALL)


def documents() -> list[Path]:
    """The documents that may hold tables."""
    folders = (ROOT / "docs", ROOT / "docs" / "examples")
    found = [ROOT / "README.md", *(path for folder in folders for path in sorted(folder.glob("*.md")))]
    return [path for path in found if path.exists()]


def filled(text: str, found: Sequence[Results]) -> str:
    """`text` with every marked table replaced. Raises ValueError for an unknown name or a marker without its end."""
    tables = all_tables(found)
    opened, matched = text.count("<!-- table:begin"), len(_MARKED.findall(text))
    if opened != matched:
        told = f"{opened} tables begin but {matched} are well formed: each needs <!-- table:end --> on its own line."
        raise ValueError(told)

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise ValueError(f"there is no table {name!r}; the names are {', '.join(sorted(tables))}.")
        return f"{match[1]}\n{tables[name]()}\n\n{match[3]}"

    return _MARKED.sub(replace, text)


def stale() -> list[str]:
    """What in README and docs differs from the results files."""
    found = load()
    wrong = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if filled(text, found) != text:
            wrong.append(f"{path.relative_to(ROOT)}: a table is not that of the results")
    for results in found:
        for name in plots.files(results):
            path = FIGURES / name
            if not path.exists() or plots.stamp(results) not in path.read_text(encoding="utf-8"):
                wrong.append(f"{path.relative_to(ROOT)}: not drawn from the results")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    parser.add_argument("--archive", type=Path, help="the archive of a run on a GPU, to be kept first")
    options = parser.parse_args(arguments)
    if options.archive:
        print(f"kept as {kept(options.archive, FOLDER)}")
    if options.check:
        wrong = stale()
        print("\n".join(wrong) or "README and docs agree with the results", file=sys.stderr if wrong else sys.stdout)
        return 1 if wrong else 0
    found = load()
    for path in documents():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, found), encoding="utf-8")
    plots.write(FIGURES, found)
    names = ", ".join(str(path.relative_to(ROOT)) for path in documents())
    print(f"tables of {names}; figures in {FIGURES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
