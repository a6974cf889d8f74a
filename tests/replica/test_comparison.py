"""Members that hold different data are found, and the minority stops (RC-74)."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import StateDiverged
from kvnode.raft.types import NodeId
from kvnode.store.records import DIGEST_MASK
from tests.replica.harness import Answers, Cluster, Machine


def start(count: int = 3, **settings: Any) -> Cluster:
    cluster = Cluster(count, compare_interval_s=1.0, **settings).found()
    cluster.led_by(0)
    return cluster


def diverge(machine: Machine) -> None:
    """Its next entries give another result than the others'."""
    store = machine.replica.store
    meta = store._meta
    store._meta = meta._replace(digest=(meta.digest + 1) & DIGEST_MASK)


def traffic(cluster: Cluster, seconds: float = 6.0) -> None:
    leader = cluster.leader()
    assert leader is not None
    end = cluster.world.now + seconds
    while cluster.world.now < end:
        if not leader.replica.stopped:
            leader.write(b"%d" % cluster.world.events)
        cluster.run(0.2)


def test_equal_data_is_not_talked_about() -> None:
    cluster = start()
    traffic(cluster)
    for machine in cluster.machines:
        assert machine.fatal is None
        assert machine.events("digest_mismatch") == []
        assert machine.replica.status().reason == ""


def test_a_follower_that_differs_from_a_majority_stops_and_says_so() -> None:
    cluster = start()
    wrong = cluster.machines[2]
    diverge(wrong)
    traffic(cluster)
    assert isinstance(wrong.fatal, StateDiverged)
    assert wrong.events("digest_mismatch")
    assert [e["member"] for e in cluster.machines[0].events("digest_mismatch")][:1] == ["n2"]
    assert wrong.replica.status().state == "failed"
    assert [machine.fatal for machine in cluster.machines[:2]] == [None, None]


def test_a_leader_that_differs_from_a_majority_stops() -> None:
    cluster = start()
    diverge(cluster.machines[0])
    traffic(cluster)
    assert isinstance(cluster.machines[0].fatal, StateDiverged)
    assert [machine.fatal for machine in cluster.machines[1:]] == [None, None]
    cluster.until(lambda: cluster.leader() in cluster.machines[1:])


def test_two_who_differ_are_an_alarm_and_nobody_stops() -> None:
    """Nobody can tell who is right."""
    cluster = start(2)
    diverge(cluster.machines[1])
    traffic(cluster)
    leader = cluster.machines[0]
    assert [machine.fatal for machine in cluster.machines] == [None, None]
    assert leader.events("digest_mismatch")
    assert "none has a majority" in leader.replica.status().reason
    assert leader.replica.status().state == "running"
    store = cluster.machines[1].replica.store
    meta = store._meta
    store._meta = meta._replace(digest=(meta.digest - 1) & DIGEST_MASK)
    traffic(cluster)
    assert leader.replica.status().reason == ""


def test_a_learner_does_not_make_a_majority() -> None:
    cluster = start(2, promote_stable_s=1000.0)
    new = cluster.add("n9")
    new.start()
    cluster.until(lambda: new.replica.store.applied_index)
    diverge(cluster.machines[1])
    traffic(cluster)
    assert [machine.fatal for machine in cluster.machines] == [None] * 3


def test_a_learner_that_differs_stops_and_has_no_vote_on_who_is_right() -> None:
    cluster = start(promote_stable_s=1000.0)
    new = cluster.add("n9")
    new.start()
    cluster.until(lambda: new.replica.store.applied_index)
    diverge(new)
    traffic(cluster)
    assert isinstance(new.fatal, StateDiverged)
    assert not any(machine.fatal for machine in cluster.machines[:3])


def test_who_is_behind_or_away_is_not_wrong() -> None:
    cluster = start()
    cluster.machines[2].kill()
    cluster.machines[1].worker.queue.hold = True
    traffic(cluster)
    cluster.machines[2].start()
    traffic(cluster)
    assert not any(machine.events("digest_mismatch") for machine in cluster.machines)


@pytest.mark.parametrize(
    "payload", [None, [], [1], ["1", "x"], [10**9, "x"], [-1, "x"], [2, 5], "diverged", [1, "x", 2]]
)
def test_only_a_leader_with_a_proper_claim_stops_anybody(payload: Any) -> None:
    cluster = start()
    n1 = cluster.machines[1]
    assert not n1.replica.comparison.told(NodeId("n0"), payload)
    index = n1.replica.store.applied_index
    assert not n1.replica.comparison.told(NodeId("n2"), [index, "00"]), "does not lead"
    assert n1.fatal is None
    answers = Answers()
    cluster.machines[0].transport.request(NodeId("n1"), "diverged", payload, 1.0, answers)
    cluster.until(lambda: answers.calls)
    assert n1.fatal is None
    assert n1.replica.comparison.told(NodeId("n0"), [index, "00"])
    assert isinstance(n1.fatal, StateDiverged)
