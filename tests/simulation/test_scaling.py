"""The StatefulSet changes its size while everything else goes wrong: nothing acknowledged is lost, and
whoever is wanted at the end is a voter.

Not among the faults that every seed draws from, since most seeds' machines belong to no StatefulSet.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.cluster import run_seed
from tests.simulation.swarm import Swarm, draw

SEEDS = (18, 25, 40, *range(8))
"""The first three each found a node that waited for ever: one that was let in and removed again before it
had heard of anybody, or of either."""
pytestmark = [pytest.mark.simulation, pytest.mark.timeout(240)]


def swarm(seed: int) -> Swarm:
    """As the seed draws it, with a StatefulSet of up to five that is scaled every few seconds."""
    drawn = draw(seed)
    faults = {kind: weight for kind, weight in drawn.faults.items() if kind not in ("grow", "wipe")}
    total = sum(faults.values())
    return replace(
        drawn, machines=5, size=(1, 3, 5)[seed % 3], faults=faults | {"scale": max(3.0, total)},
        seconds=min(drawn.seconds, 30.0), pace_s=max(drawn.pace_s, 1.0), heal_all=True,
    )  # fmt: skip


def test_scaling_loses_nothing() -> None:
    notes: dict[str, int] = {}
    for seed in SEEDS:
        for name, count in run_seed(seed, None, swarm(seed)).notes.items():
            notes[name] = notes.get(name, 0) + count
    # The ways out were all taken, or this shows nothing.
    for name in (
        "left_cluster",
        "scaled_away_member_removed",
        "removal_not_reached",
        "scale_unknown",
    ):
        assert notes.get(f"event {name}", 0) > 0, (name, notes)
