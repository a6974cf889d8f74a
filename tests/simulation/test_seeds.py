"""Whole clusters under faults: a fixed list of seeds, the regressions, and fresh ones.

``KVNODE_SIM_SEEDS`` (default 200) says how many seeds, ``KVNODE_SIM_BASE`` where they begin (default:
half of them from a fixed place, half from one drawn anew, which a failure prints). A failure prints
the seed and the command that repeats it byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.cluster import run_seed
from tests.simulation.regressions import REGRESSIONS

ROOT = Path(__file__).parents[2]
BATCHES = 20
COUNT = int(os.environ.get("KVNODE_SIM_SEEDS", "200"))
FIXED_BASE = 1_000


def _fresh_base() -> int:
    """Where this run's fresh seeds begin; the same in every worker process of the run."""
    drawn = os.environ.get("KVNODE_SIM_BASE") or os.environ.setdefault(
        "KVNODE_SIM_BASE", str(int.from_bytes(os.urandom(3), "big") * 1_000)
    )
    return int(drawn)


def _batch(number: int) -> list[int]:
    """The seeds of one batch."""
    half = COUNT // 2
    fixed = "KVNODE_SIM_BASE" not in os.environ
    base = _fresh_base()
    seeds = (
        [FIXED_BASE + i for i in range(half)] if fixed else [base + half + i for i in range(half)]
    )
    seeds += [base + i for i in range(COUNT - half)]
    return seeds[number::BATCHES]


def _hold(seeds: list[int]) -> None:
    for seed in seeds:
        run_seed(seed)


@pytest.mark.parametrize("seed", [*sorted(REGRESSIONS)[:2], 1, 2])
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    """A taste for the quick run."""
    run_seed(seed)


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", sorted(REGRESSIONS))
def test_what_was_found_once_stays_fixed(seed: int) -> None:
    run_seed(seed)


@pytest.mark.simulation
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(BATCHES))
def test_clusters_keep_their_promises(number: int) -> None:
    """RC section 11: safety under faults, then liveness, then a linearizable history."""
    _hold(_batch(number))


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
