"""Stopping: who is scaled away is removed first; who will come back stays a member (RC-57, design §5)."""

from __future__ import annotations

import random

import pytest

from tests.replica.harness import Cluster, Machine
from tests.replica.test_scaling import StatefulSet, start, voters


def stop(*machines: Machine, leave: bool = False) -> list[str]:
    """Ask for the end of each; names are added as they end, and their processes with them."""
    ended: list[str] = []

    def done(machine: Machine) -> None:
        ended.append(machine.name)
        machine.kill()

    for machine in machines:
        machine.replica.stop(lambda machine=machine: done(machine), leave=leave)  # type: ignore[misc]
    return ended


def scaled(
    count: int, replicas: int, leader: int, **settings: float
) -> tuple[Cluster, StatefulSet]:
    cluster, statefulset, first = start(count, **settings)
    if leader:
        target = cluster.machines[leader]
        first.replica.transfer_leadership(target.record.node_id, lambda _value, _error: None)
        cluster.until(lambda: target.replica.raft.has_term_commit)
        cluster.run(0.5)
    statefulset.replicas = replicas
    return cluster, statefulset


@pytest.mark.parametrize("leader", range(5))
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_five_become_fewer_in_one_step(replicas: int, leader: int) -> None:
    """All get SIGTERM at once, the leader perhaps among them; who stays are the only voters, and lead."""
    cluster, _ = scaled(5, replicas, leader)
    staying, going = cluster.machines[:replicas], cluster.machines[replicas:]
    order = list(going)
    random.Random(leader).shuffle(order)
    ended = stop(*order)
    cluster.until(lambda: len(ended) == len(going), 20.0)
    wanted = [machine.record.node_id for machine in staying]
    cluster.until(lambda: all(voters(machine) == wanted for machine in staying))
    cluster.until(lambda: cluster.leader() in staying)
    answers = staying[-1].write(b"k")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    for machine in going:
        assert machine.identity.aside, "its next start must not begin with the old state"
        assert machine.fatal is None, "it left on purpose: no failure"
        assert machine.events("left_cluster")


def test_a_leader_hands_over_to_somebody_who_stays() -> None:
    """Whoever holds most may be about to stop as well."""
    cluster, _ = scaled(5, 1, 4)
    ended = stop(*cluster.machines[1:])
    cluster.until(lambda: len(ended) == 4, 20.0)
    assert [event["to"] for event in cluster.machines[4].events("transfer_started")] == ["n0"]


def test_a_restart_changes_no_membership() -> None:
    cluster, _ = scaled(3, 3, 0)
    ended = stop(cluster.machines[2])
    cluster.until(lambda: ended, 5.0)
    assert voters(cluster.machines[0]) == ["n0", "n1", "n2"]
    assert not cluster.machines[2].identity.aside


@pytest.mark.parametrize("failure", ["", "the API server is down"])
def test_scaled_to_zero_or_unknown_everybody_stays_a_member(failure: str) -> None:
    cluster, statefulset = scaled(3, 0, 0)
    statefulset.failure = failure
    ended = stop(*cluster.machines)
    cluster.until(lambda: len(ended) == 3, 20.0)
    for machine in cluster.machines:
        assert not machine.identity.aside
        machine.start()
    cluster.until(lambda: cluster.leader() is not None)
    assert voters(cluster.machines[1]) == ["n0", "n1", "n2"]


def test_a_slow_api_server_does_not_hold_up_the_hand_over() -> None:
    cluster, statefulset = scaled(3, 3, 0)
    statefulset.delay_s = 60.0
    ended = stop(cluster.machines[0])
    began = cluster.world.now
    cluster.until(lambda: cluster.leader() not in (None, cluster.machines[0]), 5.0)
    assert cluster.world.now - began < 2.0
    cluster.until(lambda: ended, 40.0)
    assert voters(cluster.machines[1]) == ["n0", "n1", "n2"]


def test_who_is_wanted_again_gives_up_its_removal() -> None:
    """5 → 3 → 5 while the pods still stop: the size is read anew before each try."""
    cluster, statefulset = scaled(3, 1, 0)
    cluster.machines[1].kill()  # so that 2 cannot be spared yet
    ended = stop(cluster.machines[2])
    cluster.run(5.0)
    assert ended == []
    assert "waits to be removed" in cluster.machines[2].replica.status().reason
    statefulset.replicas = 3
    cluster.until(lambda: ended, 5.0)
    assert len(voters(cluster.machines[0])) == 3
    assert not cluster.machines[2].identity.aside


def test_who_cannot_be_spared_ends_as_a_member_after_the_time_out() -> None:
    """Below a live majority nobody is removed; nothing is lost when it comes back."""
    cluster, _ = scaled(3, 1, 0, removal_timeout_s=8.0)
    cluster.machines[1].kill()
    ended = stop(cluster.machines[2])
    cluster.until(lambda: ended, 15.0)
    assert cluster.machines[2].events("removal_not_reached")
    assert len(voters(cluster.machines[0])) == 3
    cluster.machines[2].start()
    cluster.until(lambda: cluster.leader() is not None)


def test_a_dead_one_is_removed_first_so_that_the_stopping_one_can_be_spared() -> None:
    """3 → 1 with one of the two dead: the leader's grace is shorter than the stopping node's patience."""
    cluster, _ = scaled(3, 1, 0)
    cluster.machines[1].kill()
    ended = stop(cluster.machines[2])
    cluster.until(lambda: ended, 30.0)
    assert voters(cluster.machines[0]) == ["n0"]
    assert cluster.machines[2].identity.aside


def test_an_api_server_that_fails_midway_neither_removes_nor_gives_up() -> None:
    cluster, statefulset = scaled(3, 1, 0)
    cluster.machines[1].kill()
    ended = stop(cluster.machines[2])
    cluster.run(3.0)
    statefulset.failure = "down"
    cluster.run(4.0)
    assert ended == []
    assert len(voters(cluster.machines[0])) == 3
    statefulset.failure = ""
    cluster.until(lambda: ended, 30.0)
    assert voters(cluster.machines[0]) == ["n0"]


def test_told_to_leave_a_node_is_removed_without_any_api_server() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    ended = stop(cluster.machines[0], leave=True)
    cluster.until(lambda: ended, 10.0)
    assert voters(cluster.machines[1]) == ["n1", "n2"]
    assert cluster.machines[0].identity.aside
    assert cluster.machines[0].fatal is None


def test_a_cluster_of_one_that_is_told_to_leave_just_stops() -> None:
    cluster = Cluster(1).found()
    cluster.led_by(0)
    ended = stop(cluster.machines[0], leave=True)
    cluster.until(lambda: ended, 10.0)
    assert not cluster.machines[0].identity.aside


def test_an_old_volume_comes_back_as_a_new_member() -> None:
    """3 → 5 → 3 → 5."""
    cluster, statefulset = scaled(5, 3, 0)
    going = cluster.machines[3:]
    ended = stop(*going)
    cluster.until(lambda: len(ended) == 2, 20.0)
    cluster.until(lambda: voters(cluster.machines[0]) == ["n0", "n1", "n2"])
    statefulset.replicas = 5
    for machine in going:  # the next start sets the marked data aside
        assert machine.identity.aside
        machine.wipe()
        machine.start()
    cluster.until(lambda: len(voters(cluster.machines[0])) == 5, 60.0)
