"""Many seeds on all cores: ``python -m tests.simulation.soak --minutes 60``, or ``make soak``.

Each failure is told with the command that repeats it; after a few the soak stops. At the end: what was
injected and what happened, summed over all seeds, so that a fault that never strikes cannot hide.

``make soak`` draws where its seeds begin. The tests derive it from the source instead (``source_base``):
whoever changes a line meets seeds that nobody has run before, and the same commit gives everybody the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from tests.simulation.cluster import run_seed

ROOT = Path(__file__).parents[2]
FAILURES_MAX = 3
"""After so many a run of seeds stops: what follows would mostly be the same."""


def source_base() -> int:
    """Where the seeds of this very source begin: a number of nine digits."""
    sha = hashlib.sha256()
    for folder in ("kvnode", "tests/simulation", "tests/history"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            sha.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
            sha.update(path.read_bytes() + b"\0")
    return 10**8 + int.from_bytes(sha.digest()[:8], "big") % (9 * 10**8)


class Report(NamedTuple):
    """What one seed amounted to."""

    seed: int
    failure: str
    """Empty: it held."""
    counts: dict[str, int]
    simulated_s: float


@dataclass
class Coverage:
    """Sums over seeds."""

    seeds: int = 0
    simulated_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one more seed."""
        if report.failure:
            self.failures.append(report)
            return
        self.seeds += 1
        self.simulated_s += report.simulated_s
        self.counts.update(report.counts)

    def has_enough(self) -> bool:
        """Whether there have been so many failures that going on is no use."""
        return len(self.failures) >= FAILURES_MAX

    def summary(self) -> str:
        """What was reached, in a few lines."""
        strikes = {
            kind.removeprefix("fault "): number
            for kind, number in sorted(self.counts.items())
            if kind.startswith("fault ")
        }
        return (
            f"{self.seeds} seeds held, {len(self.failures)} failed; "
            f"{self.simulated_s / 3600:.2f} simulated cluster-hours, "
            f"{self.counts['client operations']} operations, "
            f"{self.counts['entries committed']} entries, "
            f"{self.counts['elections won']} elections, {sum(strikes.values())} faults of "
            f"{len(strikes)} kinds:\n" + ", ".join(f"{k} {n}" for k, n in strikes.items())
        )

    def as_json(self) -> str:
        """One object, sorted."""
        body = {
            "seeds": self.seeds,
            "simulated_hours": round(self.simulated_s / 3600, 2),
            "counts": dict(sorted(self.counts.items())),
        }
        return json.dumps(body, indent=2)


def run_one(seed: int) -> Report:
    """Run one seed; failures come back as text, so that they cross processes."""
    try:
        outcome = run_seed(seed)
    except Exception as error:  # noqa: BLE001  # whatever it is, the seed repeats it
        notes = "\n".join(getattr(error, "__notes__", ()))
        return Report(seed, f"{type(error).__name__}: {error}\n{notes}", {}, 0.0)
    happened = {
        "elections won": outcome.leaders,
        "entries committed": outcome.committed,
        "client operations": outcome.operations,
        "raft frames": outcome.frames,
    }
    return Report(seed, "", {**outcome.notes, **happened}, outcome.seconds)


def run_many(seeds: Iterable[int], workers: int | None = None) -> Generator[Report, None, None]:
    """Run seeds on all cores; reports come as seeds end. Closing the iterator ends the workers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers or os.cpu_count() or 1) as pool:
        waiting = iter(seeds)
        while batch := list(islice(waiting, 100)):
            yield from pool.imap_unordered(run_one, batch)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when every seed held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--seed", type=int, help="the first seed (default: drawn)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    first = random.SystemRandom().randrange(10**9, 10**12) if options.seed is None else options.seed
    print(f"seeds from {first} on", flush=True)
    deadline = time.monotonic() + 60 * options.minutes
    coverage = Coverage()
    reports = run_many(count(first), options.workers)
    for report in reports:
        coverage.add(report)
        if report.failure:
            print(f"seed {report.seed} FAILED\n{report.failure}", file=sys.stderr, flush=True)
        if coverage.has_enough() or time.monotonic() >= deadline:
            break
    reports.close()
    print(coverage.as_json())
    print(coverage.summary())
    return int(bool(coverage.failures))


if __name__ == "__main__":
    sys.exit(main())
