"""Old copies of volumes are noticed and stopped, and honest restarts are not (RC-52, RC-54)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvnode.errors import VolumeRolledBack
from kvnode.replica.facade import Consistency
from tests.replica.harness import Cluster, Machine

_KEPT = ("record", "hard_state", "base", "entries", "engines", "snapshots")


def image(machine: Machine) -> dict[str, Any]:
    """What a copy of the volume holds."""
    return {name: copy.deepcopy(getattr(machine, name)) for name in _KEPT}


def bring_back(machine: Machine, old: dict[str, Any]) -> None:
    machine.kill()
    for name, value in copy.deepcopy(old).items():
        setattr(machine, name, value)
    machine.start()


def restart(cluster: Cluster, machine: Machine) -> None:
    machine.kill()
    machine.start()
    cluster.run(3.0)


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(3).found()
    found.led_by(0)
    found.run(1.0)
    return found


def assert_stopped(cluster: Cluster, machine: Machine) -> None:
    cluster.until(lambda: machine.fatal)
    assert isinstance(machine.fatal, VolumeRolledBack)
    assert "old copy" in machine.fenced


def test_a_volume_from_before_a_restart_is_stopped(cluster: Cluster) -> None:
    machine = cluster.machines[2]
    old = image(machine)
    restart(cluster, machine)
    bring_back(machine, old)
    assert_stopped(cluster, machine)


def test_also_after_everybody_else_has_restarted(cluster: Cluster) -> None:
    machine = cluster.machines[2]
    old = image(machine)
    restart(cluster, machine)
    for other in cluster.machines[:2]:
        other.kill()
    machine.kill()
    for other in cluster.machines[:2]:
        other.start()
    bring_back(machine, old)
    assert_stopped(cluster, machine)


def test_starting_it_often_does_not_wash_it_clean(cluster: Cluster) -> None:
    """Its boot number then exceeds the one that is known; the run of that one it still lacks."""
    machine = cluster.machines[2]
    old = image(machine)
    restart(cluster, machine)
    old["record"] = old["record"]._replace(boot=9, runs=(*range(900, 908), *old["record"].runs))
    bring_back(machine, old)
    assert_stopped(cluster, machine)


def test_a_volume_of_the_same_life_is_noticed_by_the_leader(cluster: Cluster) -> None:
    machine = cluster.machines[2]
    old = image(machine)
    answers = cluster.machines[0].write(b"k")
    cluster.until(lambda: answers.calls)
    cluster.run(1.0)
    bring_back(machine, old)
    assert_stopped(cluster, machine)


def test_honest_restarts_are_welcome(cluster: Cluster) -> None:
    for machine in (*cluster.machines, *cluster.machines):
        answers = machine.write(b"k")
        cluster.until(lambda: answers.calls)  # noqa: B023  # called at once
        restart(cluster, machine)
    assert all(machine.fatal is None for machine in cluster.machines)
    answers = cluster.machines[1].write(b"last")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    known = {peer.node_id: peer.boot for peer in cluster.machines[0].record.peers}
    assert known == {"n1": 3, "n2": 3}


def test_a_removed_member_is_not_remembered(cluster: Cluster) -> None:
    leader = cluster.leader()
    assert leader is not None
    done: list[Any] = []
    leader.replica.remove_member(cluster.machines[2].record.node_id, lambda *a: done.append(a))
    cluster.until(lambda: done)
    cluster.run(1.0)
    assert [peer.node_id for peer in leader.record.peers] == ["n1"]


def test_nothing_is_answered_by_a_node_that_was_told(cluster: Cluster) -> None:
    machine = cluster.machines[2]
    old = image(machine)
    restart(cluster, machine)
    bring_back(machine, old)
    assert_stopped(cluster, machine)
    answers: list[Any] = []
    machine.replica.read(Consistency.STALE, lambda *found: answers.append(found))
    assert machine.replica.stopped
