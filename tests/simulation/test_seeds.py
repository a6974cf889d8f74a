"""Whole clusters under faults: the regressions, and seeds that this very source has never run before.

Where the seeds begin is derived from the source (``soak.source_base``), so each change meets new ones, and
the same commit gives the same result everywhere. ``KVNODE_SIM_SEEDS`` (default 1200) says how many,
``KVNODE_SIM_BASE`` where they begin instead. ``make soak`` draws its own. A failure prints the seed and the
command that repeats it byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.simulation.cluster import run_seed
from tests.simulation.regressions import CASES, REGRESSIONS, Case, run_case
from tests.simulation.soak import ROOT, Coverage, run_many, source_base

COUNT = int(os.environ.get("KVNODE_SIM_SEEDS", "1200"))
HOURS_MIN = 12.0
"""Simulated cluster-hours that the seeds must amount to; where they fall short, some more are run."""


@pytest.mark.parametrize("seed", [11, 156, 1, 2])
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    """A taste for the quick run."""
    run_seed(seed)


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", sorted(REGRESSIONS))
def test_what_was_found_once_stays_fixed(seed: int) -> None:
    run_seed(seed)


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.seed))
def test_cases_with_a_mix_of_their_own_stay_fixed(case: Case) -> None:
    run_case(case)


@pytest.mark.simulation
@pytest.mark.timeout(1800)
def test_clusters_keep_their_promises(
    record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """RC section 11: safety under faults, then liveness, then a linearizable history."""
    first = int(os.environ.get("KVNODE_SIM_BASE", "0")) or source_base()
    coverage = Coverage()
    hours_min = HOURS_MIN if COUNT >= 1000 else 0.0
    batches = [range(first, first + COUNT)]
    batches += [range(at, at + 100) for at in range(first + COUNT, first + 2 * COUNT, 100)]
    for seeds in batches:  # whole ones, so that the same commit runs the same seeds
        reports = run_many(seeds)
        for report in reports:
            coverage.add(report)
            if coverage.has_enough():
                break
        reports.close()
        if coverage.has_enough() or coverage.simulated_s >= hours_min * 3600:
            break
    record_property("coverage", coverage.as_json())
    with capsys.disabled():
        print(f"\nsimulation: seeds from {first} on: {coverage.summary()}")
    failures = [f"seed {report.seed}: {report.failure}" for report in coverage.failures]
    assert not failures, "\n\n".join(failures)
    if COUNT >= 1000:
        assert coverage.simulated_s >= hours_min * 3600
        assert len([kind for kind in coverage.counts if kind.startswith("fault ")]) >= 24


def _trace_hash(seed: int, hash_seed: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", "--seed", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.stdout.split("trace_hash='")[1].split("'")[0]


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 5, 68])
def test_a_seed_tells_the_same_story_byte_for_byte(seed: int) -> None:
    """Otherwise a failure could not be repeated; sets of strings differ from process to process."""
    assert _trace_hash(seed, "1") == _trace_hash(seed, "2")
