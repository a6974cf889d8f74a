"""Whole clusters under faults: a fixed list of seeds, the regressions, and fresh ones.

``KVNODE_SIM_SEEDS`` (default 800) says how many seeds, ``KVNODE_SIM_BASE`` where they begin. By default all
but the last 50 begin at a fixed place, so that a change is judged by what it does to known runs; the
others are drawn anew. ``make soak`` runs nothing but new ones. A failure prints the seed and the command
that repeats it byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.cluster import run_seed
from tests.simulation.regressions import CASES, REGRESSIONS, Case, run_case
from tests.simulation.soak import Coverage, run_many

ROOT = Path(__file__).parents[2]
BATCHES = 20
COUNT = int(os.environ.get("KVNODE_SIM_SEEDS", "800"))
FIXED_BASE = 1_000
FRESH = 50


def _batch(number: int, run: str) -> list[int]:
    """The seeds of one batch; ``run`` is the same in every worker process of a test run."""
    chosen = os.environ.get("KVNODE_SIM_BASE")
    if chosen is not None:
        return [int(chosen) + i for i in range(COUNT)][number::BATCHES]
    fresh = zlib.crc32(run.encode()) * 1_000
    known = max(0, COUNT - FRESH)
    seeds = [FIXED_BASE + i for i in range(known)] + [fresh + i for i in range(COUNT - known)]
    return seeds[number::BATCHES]


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
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(BATCHES))
def test_clusters_keep_their_promises(
    number: int, testrun_uid: str, record_property: Callable[[str, object], None]
) -> None:
    """RC section 11: safety under faults, then liveness, then a linearizable history."""
    seeds = _batch(number, testrun_uid)
    print(f"seeds {seeds}")
    coverage = Coverage()
    for report in run_many(seeds):
        assert not report.failure, f"seed {report.seed}: {report.failure}"
        coverage.add(report)
    record_property("coverage", coverage.as_json())
    print(coverage.as_json())


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
