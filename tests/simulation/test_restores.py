"""Restores under every fault: see ``workloads/restores.py``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.cluster import Outcome, run_seed
from tests.simulation.soak import source_base
from tests.simulation.swarm import draw

SEEDS = 40


def run(seed: int) -> Outcome:
    swarm = replace(draw(seed), workloads={"restores": 5.0})
    return run_seed(seed, swarm=swarm)


@pytest.mark.parametrize("seed", range(3))
def test_a_restore_is_whole(seed: int) -> None:
    run(seed)


@pytest.mark.simulation
@pytest.mark.timeout(600)
def test_restores_are_whole_whatever_strikes() -> None:
    first = source_base()
    restored = overtaken = unsound = 0
    for seed in range(first, first + SEEDS):
        notes = run(seed).notes
        restored += notes.get("restored", 0)
        overtaken += notes.get("restore overtaken", 0)
        unsound += notes.get("restore unsound", 0)
    print(f"\nrestored {restored}, overtaken {overtaken}, unsound {unsound}, from {first} on")
    assert min(restored, overtaken, unsound) > 0
