"""Read replicas: learners for good, which serve and never decide (thesis §4.2.1; Consul's -read-replica)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvnode.errors import MembershipRefused
from kvnode.raft.types import Member, Membership, NodeId
from kvnode.replica.facade import Consistency
from tests.replica.harness import Answers, Cluster, Machine


def start(**settings: float) -> tuple[Cluster, Machine, Machine]:
    """Three voters, and a read replica that has joined."""
    cluster = Cluster(3, **settings).found()
    leader = cluster.led_by(0)
    reader = cluster.add("read-0")
    reader.settings = replace(cluster.settings, expect=0, read_replica=True)
    reader.start()
    cluster.until(lambda: leader.replica.raft.membership.read_replicas == {"read-0"})
    cluster.run(1.0)
    return cluster, leader, reader


def test_it_stays_a_learner_however_well_it_keeps_up() -> None:
    cluster, leader, _ = start()
    cluster.run(60.0)
    membership = leader.replica.raft.membership
    assert membership.learners == membership.read_replicas == {"read-0"}
    assert len(membership.voters) == 3
    assert leader.events("learner_promoted") == []
    row = next(m for m in leader.replica.status().members if m.name == "read-0")
    assert (row.voter, row.read_replica) == (False, True)


def test_it_answers_stale_reads_alone_and_all_others_through_the_leader() -> None:
    cluster, leader, reader = start()
    written = reader.write(b"k", b"v")
    cluster.until(lambda: written.calls)
    assert written.error is None
    read = reader.read()
    cluster.until(lambda: read.calls)
    assert read.error is None
    assert reader.replica.store.get(b"k") is not None
    cluster.isolate(reader)
    cluster.run(3.0)
    stale = Answers()
    reader.replica.read(Consistency.STALE, stale)
    cluster.until(lambda: stale.calls)
    assert stale.error is None
    refused = reader.read()
    cluster.until(lambda: refused.calls)
    assert refused.error is not None
    assert leader.replica.is_leader


def test_it_counts_in_no_majority_and_never_leads() -> None:
    """Two of three voters gone: a third copy does not help."""
    cluster, leader, reader = start()
    for machine in cluster.machines[1:3]:
        machine.kill()
    cluster.until(lambda: not leader.replica.is_leader)
    cluster.run(30.0)
    assert cluster.leader() is None
    assert reader.replica.raft.term == leader.replica.raft.term
    assert reader.events("became_pre_candidate") == []
    refused = Answers()
    reader.replica.transfer_leadership(NodeId("read-0"), refused)
    cluster.until(lambda: refused.calls)
    assert refused.error is not None


def test_it_is_still_one_after_a_restart_of_everybody() -> None:
    cluster, leader, reader = start()
    cluster.run(1.0)
    for machine in cluster.machines:
        machine.kill()
        machine.start()
    cluster.until(lambda: cluster.leader() is not None)
    cluster.run(10.0)
    assert reader.replica.raft.membership.read_replicas == {"read-0"}
    assert leader.replica.raft.membership.learners == {"read-0"}
    assert reader.replica.status().reason == ""


@pytest.mark.parametrize("was", ["voter", "read replica"])
def test_the_setting_of_a_member_changes_nothing_and_is_said(was: str) -> None:
    """One node's setting must not shrink a majority, nor widen it."""
    cluster, leader, reader = start()
    machine = cluster.machines[2] if was == "voter" else reader
    before = leader.replica.raft.membership
    machine.kill()
    machine.settings = replace(machine.settings, read_replica=was == "voter")
    machine.start()
    cluster.run(10.0)
    assert leader.replica.raft.membership == before
    assert "it stays what it joined as" in machine.replica.status().reason


def test_removed_it_may_join_anew_as_what_it_is_told_to_be() -> None:
    cluster, leader, reader = start()
    removed = Answers()
    leader.replica.remove_member(NodeId("read-0"), removed)
    cluster.until(lambda: removed.calls)
    reader.kill()
    reader.wipe()
    reader.settings = replace(reader.settings, read_replica=False)
    reader.start()
    cluster.until(lambda: "read-0-2" in leader.replica.raft.membership.voters)
    assert not leader.replica.raft.membership.read_replicas


def test_a_dead_one_is_removed_after_its_grace_and_a_dead_voter_is_not() -> None:
    cluster, leader, reader = start(read_replica_grace_s=20.0)
    reader.kill()
    cluster.machines[2].kill()
    cluster.run(15.0)
    assert leader.replica.raft.membership.read_replicas
    cluster.until(lambda: not leader.replica.raft.membership.read_replicas, 10.0)
    cluster.run(60.0)
    assert len(leader.replica.raft.membership.voters) == 3


def test_zero_means_never() -> None:
    cluster, leader, reader = start(read_replica_grace_s=0.0)
    reader.kill()
    cluster.run(120.0)
    assert leader.replica.raft.membership.read_replicas


def test_it_founds_nothing_and_does_not_count_among_founders() -> None:
    cluster = Cluster(3)
    reader = cluster.add("a-0")  # sorts before all others
    reader.settings = replace(cluster.settings, expect=0, read_replica=True)
    for machine in cluster.machines:
        machine.start()
    cluster.until(lambda: cluster.leader() is not None)
    cluster.until(lambda: reader.replica.cluster_id)
    membership = cluster.machines[0].replica.raft.membership
    assert membership.voters == {"n0", "n1", "n2"}
    assert membership.read_replicas <= {"a-0"}


def test_a_lost_volume_of_a_read_replica_comes_back_as_one() -> None:
    cluster, leader, reader = start()
    reader.kill()
    reader.wipe()
    reader.start()
    cluster.until(lambda: leader.replica.raft.membership.read_replicas == {"read-0-2"}, 60.0)
    assert "read-0" in leader.replica.raft.membership.removed


def test_the_core_admits_no_voting_read_replica() -> None:
    _, leader, _ = start()
    membership = leader.replica.raft.membership
    with pytest.raises(MembershipRefused):
        leader.replica.raft.propose_membership(
            membership._replace(read_replicas=membership.read_replicas | {NodeId("n1")})
        )


def test_memberships_of_older_builds_and_without_read_replicas_are_the_same_bytes() -> None:
    member = Member(NodeId("a"), "n-0", "h:1")
    plain = Membership(frozenset({NodeId("a")}), members=(member,))
    assert b"read_replicas" not in plain.encode()
    assert Membership.decode(plain.encode()) == plain
    other = Member(NodeId("b"), "n-1", "h:2")
    with_reader = plain.with_learner(other, read_replica=True)
    assert Membership.decode(with_reader.encode()) == with_reader
    assert with_reader.with_voter(NodeId("b")).read_replicas == frozenset()
    assert with_reader.without(NodeId("b")).read_replicas == frozenset()
