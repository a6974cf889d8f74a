"""Linearizable reads without the log (thesis §6.4, RC-30 to RC-32)."""

from __future__ import annotations

import pytest

from kvnode.errors import NotLeader
from kvnode.raft.messages import Heartbeat, HeartbeatReply
from kvnode.raft.types import Index, NodeId, Role, Term
from tests.raft.cluster import Cluster, Node, nid


def answered(node: Node) -> list[object]:
    return [read for state in node.reads for read in state.reads]


def confirm(node: Node, sender: int, round_number: int, term: int = 1) -> None:
    node.raw.step(HeartbeatReply(nid(sender), nid(1), Term(term), round_number))
    node.handle()


def begun(node: Node) -> int:
    """Let the node begin a round; returns its number."""
    rounds = {m.read_round for m in node.handle() if isinstance(m, Heartbeat)}
    return max(rounds, default=0)


def test_a_read_waits_for_a_quorum_of_a_round_that_began_after_it() -> None:
    """RC-30 (c)."""
    cluster = Cluster(5)
    leader = cluster.elect(1)
    leader.raw.read_index("a")
    number = begun(leader)
    confirm(leader, 2, number)
    confirm(leader, 2, number)
    assert not answered(leader), "one answer, doubled, is not two"
    confirm(leader, 3, number - 1)
    assert not answered(leader), "an answer to an earlier round (RC-31)"
    confirm(leader, 3, number)
    assert answered(leader) == ["a"]


def test_reads_share_rounds_and_one_round_is_open_at_a_time() -> None:
    """Load makes rounds larger, not more numerous."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.raw.read_index(0)
    first = begun(leader)
    for read in range(1, 100):
        leader.raw.read_index(read)
        assert not leader.handle()
    assert leader.raw.read_load == 100
    confirm(leader, 2, first)
    assert answered(leader) == [0]
    confirm(leader, 2, first + 1)
    assert answered(leader) == list(range(100))
    assert leader.raw.read_load == 0


def test_the_read_index_covers_everything_committed_when_the_read_arrived() -> None:
    """RC-30 (b)."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    at = cluster.propose(1, "a")
    leader.raw.read_index("r")
    cluster.settle()
    assert leader.reads[-1].index >= at.index


def test_no_read_before_the_terms_first_commit() -> None:
    """RC-22: the new leader does not know yet what its predecessors committed."""
    cluster = Cluster(3, logs={1: [1], 2: [1], 3: [1]})
    leader = cluster[1]
    leader.raw.campaign()
    cluster.pump(leader)
    while leader.raw.role is not Role.LEADER:
        cluster.deliver(cluster.network.pop(0))
    leader.raw.read_index("r")
    for _ in range(3):
        leader.raw.tick()
        confirm(leader, 2, 0, term=2)
        confirm(leader, 3, 0, term=2)
    assert not leader.raw.has_term_commit
    assert not answered(leader)
    cluster.settle()
    assert [state.index for state in leader.reads] == [2]


def test_a_lost_round_is_repeated_by_the_periodic_heartbeat() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.raw.read_index("r")
    number = begun(leader)
    leader.raw.tick()
    assert begun(leader) == number
    confirm(leader, 3, number)
    assert answered(leader) == ["r"]


def test_a_single_voter_needs_nobody() -> None:
    cluster = Cluster(1, learners=[2])
    leader = cluster.elect(1)
    cluster.isolate(2)
    leader.raw.read_index("r")
    cluster.pump(leader)
    assert answered(leader) == ["r"]


@pytest.mark.parametrize("sender", [4, 9])
def test_learners_and_strangers_confirm_nothing(sender: int) -> None:
    """RC-44."""
    cluster = Cluster(3, learners=[4])
    leader = cluster.elect(1)
    leader.raw.read_index("r")
    confirm(leader, sender, begun(leader))
    assert not answered(leader)


def test_answers_of_another_term_confirm_nothing() -> None:
    """RC-30: in the same term. An older one is ignored, a newer one ends the leadership."""
    cluster = Cluster(3)
    cluster.elect(2)
    cluster.settle()
    leader = cluster.elect(1)
    term = leader.raw.term
    leader.raw.read_index("r")
    number = begun(leader)
    confirm(leader, 2, number, term=term - 1)
    assert not answered(leader)
    confirm(leader, 2, number, term=term + 1)
    assert leader.raw.role is Role.FOLLOWER
    assert not answered(leader)
    assert leader.failed_reads == ["r"]


def test_waiting_open_and_confirmed_reads_fail_on_step_down() -> None:
    """RC-32: a leader change wins over a result that arrives at the same moment; etcd #21375."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.raw.read_index("confirmed")
    number = begun(leader)
    leader.raw.read_index("waiting")
    leader.raw.step(HeartbeatReply(nid(2), nid(1), Term(1), number))
    leader.core.open_rounds.append((99, Index(1), ["open"]))
    leader.raw.step(Heartbeat(nid(2), nid(1), Term(2), Index(0), 0))
    leader.handle()
    assert sorted(map(str, leader.failed_reads)) == ["confirmed", "open", "waiting"]
    assert not answered(leader)
    assert leader.raw.read_load == 0


def test_only_a_leader_takes_reads() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(NotLeader) as caught:
        cluster.raw(2).read_index("r")
    assert caught.value.leader_id == nid(1)
    assert caught.value.took_effect == "no"


def test_rounds_begin_anew_with_each_leadership_and_only_rise_within_it() -> None:
    """RC-31: an answer carries its term, so equal numbers of two terms are never confused."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    numbers = []
    for read in range(3):
        leader.raw.read_index(read)
        numbers.append(begun(leader))
        confirm(leader, 2, numbers[-1])
    assert numbers == sorted(set(numbers))
    cluster.elect(2)
    leader = cluster.elect(1)
    leader.raw.read_index("r")
    number = begun(leader)
    # Late answers of the former leadership, with high numbers.
    confirm(leader, 2, 3, term=1)
    assert not answered(leader)[3:]
    confirm(leader, NodeId("n3"), number, term=leader.raw.term)  # type: ignore[arg-type]
    assert answered(leader)[3:] == ["r"]
