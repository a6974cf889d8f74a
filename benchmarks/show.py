"""Show the figures of an earlier run again: `python benchmarks/show.py FILE.json [--markdown]`.

`--markdown` prints what docs/benchmarks.md holds, so that no figure is ever typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: the package is found from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import markdown, print_report
from benchmarks.stats import Cell, Sample, summarize


def sample_from(row: Mapping[str, Any]) -> Sample:
    """Return the sample that a measurement's JSON row holds; other members are left aside."""
    fields = {name: row[name] for name in Sample.__dataclass_fields__ if name != "cell"}
    return Sample(cell=Cell(**row["cell"]), **fields)


def main() -> int:
    """Read a results file and print its tables. Returns 0."""
    parser = argparse.ArgumentParser(prog="benchmarks/show.py")
    parser.add_argument("file", type=Path)
    parser.add_argument("--markdown", action="store_true", help="for docs/benchmarks.md")
    given = parser.parse_args()
    raw = json.loads(given.file.read_text())
    summaries = summarize([sample_from(row) for row in raw["measurements"]])
    if given.markdown:
        print(markdown(raw, summaries))
    else:
        print_report(raw, summaries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
