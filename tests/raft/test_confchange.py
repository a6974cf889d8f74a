"""Membership changes (thesis §4.1, §4.2, RC-42 to RC-47)."""

from __future__ import annotations

import pytest

from kvnode.errors import MembershipRefused, NotLeader
from kvnode.raft.messages import AppendEntries, HeartbeatReply, TimeoutNow
from kvnode.raft.types import Index, Membership, Role, Term
from tests.raft.cluster import Cluster, Node, member, membership, nid


def grow(cluster: Cluster, number: int) -> None:
    """A new node joins, catches up and is promoted."""
    leader = cluster.leader
    assert leader is not None
    cluster.boot(nid(number))
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(number))))
    cluster.settle()
    cluster.run(1)
    leader.raw.propose_membership(leader.raw.membership.with_voter(nid(number)))
    cluster.settle()
    cluster.run(1)


def remove(node: Node, number: int) -> None:
    node.raw.propose_membership(node.raw.membership.without(nid(number)))


def test_a_cluster_grows_from_one_to_five_and_back() -> None:
    cluster = Cluster(1)
    cluster.elect(1)
    for number in (2, 3, 4, 5):
        grow(cluster, number)
    assert len(cluster.raw(5).membership.voters) == 5
    for number in (5, 4, 3, 2):
        remove(cluster[1], number)
        cluster.settle()
        cluster.run(1)
    assert cluster.raw(1).membership.voters == {nid(1)}
    cluster.propose(1, "alone")
    assert cluster.raw(1).log.commit_index == cluster.raw(1).log.last_index


def test_a_change_is_in_effect_when_appended() -> None:
    """RC-42: of two voters and a promoted learner, two are a majority at once."""
    cluster = Cluster(2, learners=[3])
    leader = cluster.elect(1)
    cluster.run(1)
    cluster.isolate(2)
    leader.raw.propose_membership(leader.raw.membership.with_voter(nid(3)))
    cluster.settle()
    assert leader.raw.log.commit_index == leader.raw.log.membership_index == 2
    assert cluster.raw(3).membership.voters == {nid(1), nid(2), nid(3)}


def test_a_change_that_is_cut_off_is_rolled_back() -> None:
    """RC-42: and its node is no longer a voter of anything."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(1)
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(4))))
    cluster.pump(leader)
    assert nid(4) in leader.raw.membership.learners
    cluster.elect(2)
    cluster.heal()
    cluster.run(3)
    assert nid(4) not in leader.raw.membership.learners


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (membership([1, 2, 3, 4, 5]), "one voter"),
        (membership([1, 2, 4]), "one voter"),
        (membership([1]), "one voter"),
        (membership([1, 2, 3], [3]), "either"),
        (membership([1, 2, 3])._replace(members=()), "record"),
        (membership([1, 2, 3])._replace(learners=frozenset({nid(8)})), "record"),
    ],
)
def test_a_change_must_be_one_voter_and_whole(new: Membership, why: str) -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    last = leader.raw.log.last_index
    with pytest.raises(MembershipRefused, match=why):
        leader.raw.propose_membership(new)
    assert leader.raw.log.last_index == last


def test_the_last_voter_cannot_be_removed() -> None:
    cluster = Cluster(1)
    leader = cluster.elect(1)
    with pytest.raises(MembershipRefused, match="last voter"):
        remove(leader, 1)


def test_one_change_at_a_time() -> None:
    """RC-43, thesis §4.1."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    remove(leader, 3)
    with pytest.raises(MembershipRefused, match="not committed"):
        remove(leader, 2)
    cluster.settle()
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(4))))


def test_no_change_before_the_terms_first_commit() -> None:
    """RC-43: see ``test_paper`` for what happens otherwise."""
    cluster = Cluster(3, logs={1: [1], 2: [1], 3: [1]})
    leader = cluster[1]
    leader.raw.campaign()
    cluster.pump(leader)
    while leader.raw.role is not Role.LEADER:
        cluster.deliver(cluster.network.pop(0))
    with pytest.raises(MembershipRefused, match="no committed entry"):
        remove(leader, 3)
    cluster.settle()
    remove(leader, 3)


def test_a_removal_that_would_leave_no_live_majority_is_refused() -> None:
    """RC-45: the dead one must go first."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.run(1)
    cluster.isolate(3)
    cluster.run(11)
    with pytest.raises(MembershipRefused, match="reachable"):
        remove(leader, 2)
    remove(leader, 3)
    cluster.settle()
    assert leader.raw.log.commit_index == leader.raw.log.membership_index


def test_a_learner_may_be_added_or_removed_while_a_voter_is_down() -> None:
    """It counts in no quorum (RC-44)."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster[3].crash()
    cluster.run(11)
    cluster.boot(nid(4))
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(4))))
    cluster.settle()
    remove(leader, 4)
    cluster.settle()
    assert leader.raw.log.commit_index == leader.raw.log.membership_index


def test_a_removed_incarnation_never_comes_back() -> None:
    """RC-47."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    remove(leader, 3)
    cluster.settle()
    with pytest.raises(MembershipRefused, match="removed"):
        leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(3))))


def test_only_a_leader_that_is_not_leaving_changes_the_membership() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    with pytest.raises(NotLeader) as caught:
        remove(cluster[2], 3)
    assert caught.value.leader_id == nid(1)
    cluster.isolate(3)
    leader.raw.transfer_leadership(nid(3))
    with pytest.raises(NotLeader):
        remove(leader, 3)


def test_a_removed_leader_does_not_count_itself_and_steps_down_when_it_is_committed() -> None:
    """RC-46, thesis §4.2.2."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    remove(leader, 1)
    cluster.pump(leader)
    requests = [m for m in cluster.network if isinstance(m, AppendEntries)]
    cluster.network.clear()
    cluster.deliver(requests[0])
    cluster.settle()
    assert leader.raw.role is Role.LEADER
    assert leader.raw.log.commit_index == 1, "its own disk and one other are not two voters"
    named = []
    leader.said = lambda _node, m: named.append(m) if isinstance(m, TimeoutNow) else None  # type: ignore[func-returns-value]
    cluster.deliver(requests[1])
    cluster.settle()
    assert leader.raw.role is Role.FOLLOWER
    assert len(named) == 1
    assert cluster.leader is not None, "without waiting for a time-out"
    cluster.run(40)
    assert cluster.leader.id != nid(1)
    assert leader.raw.term == 1, "it never campaigns again"


def test_a_removed_follower_is_harmless() -> None:
    """RC-47: it may never hear of its removal; RC-15 and RC-17 keep it quiet."""
    cluster = Cluster(4)
    leader = cluster.elect(1)
    cluster.isolate(4)
    cluster.run(11)
    remove(leader, 4)
    cluster.settle()
    cluster.heal()
    cluster.run(60)
    assert leader.raw.role is Role.LEADER
    assert leader.raw.term == 1
    assert cluster.raw(4).membership.voters == cluster.first.voters


def test_answers_of_a_removed_node_are_ignored() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    remove(leader, 3)
    cluster.settle()
    leader.raw.step(HeartbeatReply(nid(3), nid(1), Term(1), 7))
    assert leader.raw.ticks_since_heard(nid(3)) == 0
    assert leader.raw.match_index(nid(3)) == 0
    assert leader.raw.progress_state(nid(3)) == ""


def test_the_membership_survives_compaction_snapshot_and_restart() -> None:
    """RC-36, RC-42."""
    cluster = Cluster(1)
    leader = cluster.elect(1)
    grow(cluster, 2)
    cluster.propose(1, "a")
    cluster.compact(1, leader.raw.log.applied_index)
    grow(cluster, 3)
    assert cluster[3].snapshots
    for number in (1, 2, 3):
        cluster[number].crash()
        node = cluster.restart(number)
        assert node.raw.membership.voters == {nid(1), nid(2), nid(3)}


def test_a_new_learner_starts_at_the_end_and_is_led_back() -> None:
    cluster = Cluster(1)
    leader = cluster.elect(1)
    for number in range(5):
        cluster.propose(1, str(number))
    cluster.boot(nid(2))
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(2))))
    (request,) = [m for m in leader.handle() if isinstance(m, AppendEntries)]
    assert request.prev.index == leader.raw.log.last_index - 1
    cluster.run(3)
    assert cluster.raw(2).log.last_index == leader.raw.log.last_index
    assert cluster[2].applied[Index(2)].data == b"0"
