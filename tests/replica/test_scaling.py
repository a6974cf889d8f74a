"""The leader removes members that were scaled away and died before they could ask (design §5)."""

from __future__ import annotations

from kvnode.errors import ApiServerFailed
from kvnode.ports import Done, Scale
from kvnode.raft.types import NodeId
from tests.replica.harness import Cluster, Machine


class StatefulSet:
    """What the API server says to every node; ``failure`` while it says nothing."""

    def __init__(self, cluster: Cluster, replicas: int) -> None:
        self.cluster = cluster
        self.replicas = replicas
        self.failure = ""
        self.asked = 0
        self.delay_s = 0.01

    def ask(self, done: Done[Scale]) -> None:
        self.asked += 1
        clock = self.cluster.machines[0].clock
        clock.call_later(self.delay_s, self._answer, done)

    def _answer(self, done: Done[Scale]) -> None:
        if self.failure:
            done(None, ApiServerFailed(self.failure))
        else:
            done(Scale("kv", self.replicas, 0), None)


def start(count: int, **settings: float) -> tuple[Cluster, StatefulSet, Machine]:
    """Pods ``kv-0`` … led by the first."""
    cluster = Cluster(count, **settings)
    statefulset = StatefulSet(cluster, count)
    for number, machine in enumerate(cluster.machines):
        machine.name = f"kv-{number}"
        machine.address = f"kv-{number}:1"
        machine.wipe()
        machine.record = machine.record._replace(node_id=NodeId(f"n{number}"))
        machine.scale = statefulset.ask
    cluster.found()
    return cluster, statefulset, cluster.led_by(0)


def voters(machine: Machine) -> list[str]:
    return sorted(machine.replica.raft.membership.voters)


def test_a_dead_member_that_was_scaled_away_is_removed_after_a_grace() -> None:
    cluster, statefulset, leader = start(5)
    for machine in cluster.machines[3:]:
        machine.kill()
    statefulset.replicas = 3
    cluster.run(10.0)
    assert len(voters(leader)) == 5, "not before the grace is over"
    cluster.until(lambda: len(leader.events("scaled_away_member_removed")) == 2)
    assert voters(leader) == ["n0", "n1", "n2"]
    order = [event["member"] for event in leader.events("scaled_away_member_removed")]
    assert order == ["n4", "n3"], "one at a time, from the top"


def test_a_dead_member_that_is_wanted_stays() -> None:
    cluster, _, leader = start(3)
    cluster.machines[2].kill()
    cluster.run(120.0)
    assert voters(leader) == ["n0", "n1", "n2"]


def test_nobody_is_removed_while_the_size_is_not_known() -> None:
    """Nor with 0 replicas: stopped as a whole, to be started again."""
    cluster, statefulset, leader = start(3)
    cluster.machines[2].kill()
    statefulset.replicas = 2
    statefulset.failure = "forbidden: give it a Role"
    cluster.run(60.0)
    assert len(voters(leader)) == 3
    assert leader.replica.status().reason == "forbidden: give it a Role"
    assert len(leader.events("scale_unknown")) == 1
    statefulset.failure, statefulset.replicas = "", 0
    cluster.run(60.0)
    assert len(voters(leader)) == 3
    assert leader.replica.status().reason == ""
    statefulset.replicas = 2
    cluster.until(lambda: len(voters(leader)) == 2)


def test_a_live_member_is_never_removed_unasked() -> None:
    """It is about to be stopped, and asks then; or the number is raised again before."""
    cluster, statefulset, leader = start(3)
    statefulset.replicas = 1
    cluster.run(120.0)
    assert len(voters(leader)) == 3


def test_never_below_a_majority_of_live_voters() -> None:
    """Four voters, two of them dead: without either, two of three are left, but then one of two."""
    cluster, statefulset, leader = start(5)
    statefulset.replicas = 1
    for machine in cluster.machines[3:]:
        machine.kill()
    cluster.until(lambda: voters(leader) == ["n0", "n1", "n2"], 60.0)
    cluster.machines[2].kill()
    cluster.until(lambda: voters(leader) == ["n0", "n1"], 60.0)
    cluster.machines[1].kill()
    cluster.run(60.0)
    assert voters(leader) == ["n0", "n1"], "alone of two it has no majority to decide with"


def test_the_size_is_read_anew_for_each_decision() -> None:
    """What was read before the members fell silent says nothing."""
    cluster, statefulset, leader = start(5)
    statefulset.replicas = 3
    cluster.run(70.0)
    asked = statefulset.asked
    statefulset.replicas = 5
    cluster.machines[4].kill()
    cluster.run(40.0)
    assert statefulset.asked > asked
    assert len(voters(leader)) == 5


def test_healthy_nodes_ask_once_a_minute_and_only_one_question_at_a_time() -> None:
    cluster, statefulset, _ = start(3)
    cluster.run(10.0)
    assert statefulset.asked == 3, "each once, so that missing rights are known before they matter"
    statefulset.delay_s = 90.0
    cluster.run(200.0)
    assert statefulset.asked <= 3 * 4


def test_a_follower_removes_nobody() -> None:
    cluster, statefulset, leader = start(3)
    statefulset.replicas = 2
    cluster.machines[2].kill()
    leader.scale = None
    leader.replica.scaling._source = None
    cluster.run(60.0)
    assert len(voters(leader)) == 3


def test_a_learner_of_the_past_is_removed_too() -> None:
    cluster, statefulset, leader = start(3, promote_stable_s=1000.0)
    new = cluster.add("kv-3")
    new.start()
    cluster.until(lambda: leader.replica.raft.membership.learners)
    new.kill()
    cluster.until(lambda: not leader.replica.raft.membership.learners, 60.0)
    assert statefulset.replicas == 3
