"""Many seeds on all cores: ``python -m tests.simulation.soak --minutes 60``, or ``make soak``.

Stops at the first failure with the command that repeats it. At the end: what was injected and what
happened, summed over all seeds, so that a fault that never strikes cannot hide.
"""

from __future__ import annotations

import argparse
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
from typing import NamedTuple

from tests.simulation.cluster import run_seed


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

    def add(self, report: Report) -> None:
        """Count one more seed."""
        self.seeds += 1
        self.simulated_s += report.simulated_s
        self.counts.update(report.counts)

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
    options = parser.parse_args(arguments)
    first = random.SystemRandom().randrange(10**6, 10**9) if options.seed is None else options.seed
    print(f"seeds from {first} on", flush=True)
    deadline = time.monotonic() + 60 * options.minutes
    coverage = Coverage()
    failed = False
    reports = run_many(count(first))
    for report in reports:
        if report.failure:
            print(f"seed {report.seed} FAILED\n{report.failure}", file=sys.stderr)
            failed = True
            break
        coverage.add(report)
        if time.monotonic() >= deadline:
            break
    reports.close()
    print(coverage.as_json())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
