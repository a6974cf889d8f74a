"""Each workload alone keeps its promises in a few seeds, and its draw disturbs nobody else's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.cluster import Simulation
from tests.simulation.swarm import draw
from tests.simulation.workloads.base import Workload
from tests.simulation.workloads.catalog import CATALOG


def test_every_workload_has_a_name_of_its_own() -> None:
    names = [kind.name for kind in CATALOG]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", CATALOG, ids=lambda kind: kind.name)
def test_a_workload_takes_part_in_some_seeds(kind: type[Workload]) -> None:
    if not any(kind.weights):
        pytest.skip("it never takes part beside others")
    drawn = [draw(seed).workloads.get(kind.name, 0.0) for seed in range(40)]
    assert any(drawn)


@pytest.mark.parametrize("kind", CATALOG, ids=lambda kind: kind.name)
def test_a_workload_alone_holds_without_faults(kind: type[Workload]) -> None:
    """Then whatever it reports is its own mistake."""
    swarm = replace(draw(3), workloads={kind.name: 5.0}, faults={}, seconds=5.0, machines=3, size=3)
    outcome = Simulation(3, swarm=swarm).run()
    assert outcome.operations > 20
