"""The paper and the dissertation, claim by claim.

Raft §5 is Ongaro and Ousterhout, USENIX ATC 2014; the other numbers are Ongaro's dissertation,
Stanford 2014. The docstrings say the claim in our words.
"""

from __future__ import annotations

import pytest

from kvnode.errors import MembershipRefused
from kvnode.raft import election
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.types import ZERO, Entry, EntryKind, HardState, Index, Role, Term
from tests.raft.cluster import Cluster, Disk, Node, command, lid, log_of, membership, nid


def terms(node: Node) -> list[int]:
    return [entry.term for entry in node.raw.log._entries]


def become_leader(cluster: Cluster, number: int, *voters: int) -> Node:
    """An election in which only ``voters`` hear the candidate, and nobody hears its entries yet."""
    node = cluster[number]
    cluster.cut([number, *voters])
    for voter in voters:
        cluster[voter].core.elapsed = 10
    node.raw.campaign()
    cluster.pump(node)
    while node.raw.role is not Role.LEADER:
        cluster.deliver(cluster.network.pop(0))
    cluster.network.clear()
    return node


# -- Raft §5.1: terms ---------------------------------------------------------------------------------


def test_5_1_a_stale_leader_reverts_to_follower() -> None:
    """If a candidate or leader discovers that its term is out of date, it immediately reverts to
    follower state.
    """
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.raw.step(HeartbeatReply(nid(2), nid(1), Term(9), 0))
    assert (leader.raw.role, leader.raw.term) == (Role.FOLLOWER, 9)


def test_5_1_a_request_with_a_stale_term_is_rejected() -> None:
    """If a server receives a request with a stale term number, it rejects the request."""
    cluster = Cluster(3, terms={2: 5})
    node = cluster[2]
    node.raw.step(AppendEntries(nid(1), nid(2), Term(4), ZERO, (command(1, 4),), Index(1)))
    assert node.handle() == [HeartbeatReply(nid(2), nid(1), Term(5), 0)]
    assert node.raw.log.last_index == 0


# -- Raft §5.2: leader election --------------------------------------------------------------------------


def test_5_2_servers_start_as_followers() -> None:
    cluster = Cluster(3)
    assert all(node.raw.role is Role.FOLLOWER for node in cluster.nodes.values())


def test_5_2_a_leader_sends_periodic_heartbeats_to_all() -> None:
    cluster = Cluster(3, heartbeat_ticks=2)
    leader = cluster.elect(1)
    leader.raw.tick()
    leader.raw.tick()
    beats = [m.to for m in leader.handle() if isinstance(m, Heartbeat)]
    assert beats == [nid(2), nid(3)]


def test_5_2_a_follower_that_hears_nothing_begins_an_election() -> None:
    """It increments its current term, votes for itself and issues RequestVote RPCs in parallel. The
    poll before it is the thesis's (§9.6).
    """
    cluster = Cluster(3)
    cluster.tick([1], 10)
    polls = [m for m in cluster.network if isinstance(m, PreVote)]
    assert [m.to for m in polls] == [nid(2), nid(3)]
    for message in list(cluster.network):
        cluster.network.remove(message)
        cluster.deliver(message)
    cluster.deliver(cluster.network.pop(0))
    votes = [m for m in cluster.network if isinstance(m, Vote)]
    assert [(m.to, m.term) for m in votes] == [(nid(2), 1), (nid(3), 1)]
    assert cluster[1].disk.hard_state == HardState(Term(1), nid(1))


@pytest.mark.parametrize(
    ("size", "granted", "wins"),
    [
        (1, 0, True),
        (2, 0, False),
        (2, 1, True),
        (3, 0, False),
        (3, 1, True),
        (4, 1, False),
        (4, 2, True),
        (5, 1, False),
        (5, 2, True),
    ],
)
def test_5_2_a_majority_of_the_full_cluster_wins(size: int, granted: int, wins: bool) -> None:
    cluster = Cluster(size)
    node = cluster[1]
    node.core.become_pre_candidate()
    election.elect(node.core, transfer=False)
    node.handle()
    for other in range(2, 2 + granted):
        node.raw.step(VoteReply(nid(other), nid(1), Term(1), granted=True))
    assert (node.raw.role is Role.LEADER) is wins


def test_5_2_a_candidate_that_hears_a_leader_of_its_term_follows() -> None:
    """If the leader's term is at least as large as the candidate's current term, then the candidate
    recognizes the leader as legitimate and returns to follower state.
    """
    cluster = Cluster(2)
    node = cluster[1]
    node.core.become_candidate()
    node.raw.step(Heartbeat(nid(2), nid(1), Term(1), Index(0), 0))
    assert (node.raw.role, node.raw.leader_id) == (Role.FOLLOWER, nid(2))
    node.core.become_candidate()
    node.raw.step(Heartbeat(nid(2), nid(1), Term(1), Index(0), 0))
    assert node.raw.role is Role.CANDIDATE, "a smaller term is rejected and it continues"


# -- Raft §5.3: log replication -----------------------------------------------------------------------------


def test_5_3_an_entry_is_committed_once_a_majority_holds_it_and_then_applied_by_all() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    at = leader.raw.propose([b"x"])
    cluster.pump(leader)
    assert leader.raw.log.commit_index < at.index
    cluster.settle()
    assert leader.raw.log.commit_index == at.index
    cluster.heal()
    cluster.run(2)
    assert all(node.applied[at.index].data == b"x" for node in cluster.nodes.values())


def test_5_3_a_commit_covers_all_preceding_entries_of_earlier_leaders() -> None:
    """This also commits all preceding entries in the leader's log, including entries created by
    previous leaders.
    """
    cluster = Cluster(3, logs={1: [1, 2, 2], 2: [1], 3: [1]})
    leader = cluster.elect(1)
    assert leader.raw.log.commit_index == 4


def test_5_3_the_leader_retries_indefinitely() -> None:
    """… even after it has responded to the client, until all followers eventually store all log
    entries.
    """
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster[3].crash()
    at = cluster.propose(1, "x")
    cluster.run(200)
    cluster.restart(3)
    cluster.run(2)
    assert cluster.raw(3).log.last == at
    assert leader.raw.role is Role.LEADER


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("name", FIGURE_7)
def test_5_3_figure_7_each_follower_is_brought_into_line(name: str) -> None:
    """The leader handles inconsistencies by forcing the followers' logs to duplicate its own. Each in
    at most two refusals: a term is skipped at a time, not an entry.
    """
    leader_log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    cluster = Cluster(
        3, logs={1: leader_log, 2: FIGURE_7[name], 3: leader_log}, terms={1: 7, 2: 7, 3: 7}
    )
    leader = become_leader(cluster, 1, 3)
    cluster.heal()
    refusals = []
    cluster[2].said = lambda _n, m: (
        refusals.append(m) if isinstance(m, AppendEntriesReply) and m.rejected else None  # type: ignore[func-returns-value]
    )
    cluster.run(4)
    assert terms(cluster[2]) == terms(leader) == [*leader_log, 8]
    assert len(refusals) <= 2


def test_5_3_a_leader_never_overwrites_or_deletes_its_own_entries() -> None:
    """Leader append-only (figure 3)."""
    cluster = Cluster(3, logs={1: [1, 2], 2: [1, 1, 1, 1], 3: [1]}, terms={2: 2})
    leader = cluster.elect(1)
    assert terms(leader) == [1, 2, 3]


# -- Raft §5.4: safety ----------------------------------------------------------------------


def test_5_4_1_a_candidate_without_all_committed_entries_cannot_win() -> None:
    """Its log is compared by last term, then by length; a majority knows better."""
    cluster = Cluster(5, logs={1: [1, 1], 2: [1, 1, 1], 3: [1, 1, 1], 4: [1, 1, 1], 5: [1, 1]})
    cluster[1].raw.campaign()
    cluster.settle()
    assert cluster.raw(1).role is not Role.LEADER
    cluster.elect(2)


def figure_8(at: str) -> Cluster:
    """The situation of figure 8 at time (c): S1 leads term 4, and 2@2 is on S1, S2 and S3."""
    cluster = Cluster(
        5,
        logs={1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]},
        terms={1: 3, 2: 3, 3: 3, 4: 3, 5: 3},
    )
    leader = become_leader(cluster, 1, 2, 3)
    index = {"c": 2, "e": 3}[at]
    for number in (2, 3):
        entries = tuple(e for e in leader.raw.log._entries if 1 < e.index <= index)
        message = AppendEntries(nid(1), nid(number), Term(4), lid(1, 1), entries, Index(0))
        cluster[number].raw.step(message)
        for reply in cluster[number].handle():
            if isinstance(reply, AppendEntriesReply):
                leader.raw.step(reply)
    return cluster


def test_5_4_2_figure_8_c_an_old_entry_on_a_majority_is_not_committed() -> None:
    cluster = figure_8("c")
    assert sum(terms(node)[1:2] == [2] for node in cluster.nodes.values()) == 3
    assert cluster.raw(1).log.commit_index == 0


def test_5_4_2_figure_8_d_it_can_still_be_overwritten() -> None:
    cluster = figure_8("c")
    cluster[1].crash()
    cluster[5].core.become_follower(Term(4), None)
    new = become_leader(cluster, 5, 2, 3, 4)
    cluster.heal()
    cluster.run(5)
    assert new.raw.role is Role.LEADER
    for number in (2, 3, 4, 5):
        assert terms(cluster[number]) == [1, 3, 5]


def test_5_4_2_figure_8_e_with_an_own_entry_on_a_majority_it_is_safe() -> None:
    cluster = figure_8("e")
    assert cluster.raw(1).log.commit_index == 3
    cluster[1].crash()
    cluster.cut([2, 3, 4, 5])
    for number in (2, 3, 4, 5):
        cluster[number].core.elapsed = 10
    for _ in range(3):
        cluster[5].raw.campaign()
        cluster.settle()
        assert cluster.raw(5).role is not Role.LEADER, "S5 cannot win an election"


def test_5_5_requests_are_idempotent() -> None:
    """If a follower receives an AppendEntries request that includes log entries already present in its
    log, it ignores those entries.
    """
    cluster = Cluster(3)
    node = cluster[2]
    request = AppendEntries(nid(1), nid(2), Term(1), ZERO, tuple(log_of(1, 1)), Index(1))
    node.raw.step(request)
    node.handle()
    written = list(node.disk.entries)
    node.raw.step(request)
    ready = node.raw.ready()
    assert not ready.entries
    assert node.disk.entries == written


# -- figure 2, line by line where it is not above ------------------------------------------------------------


def test_figure_2_next_index_begins_after_the_leaders_log() -> None:
    cluster = Cluster(3, logs={1: [1, 1]})
    leader = become_leader(cluster, 1, 2)
    progress = leader.core.progress[nid(3)]
    assert (progress.next_index, progress.match_index) == (3, 0)


def test_figure_2_commit_is_the_smaller_of_the_leaders_and_the_last_new_entry() -> None:
    cluster = Cluster(3, logs={2: [1, 1, 1, 1, 1]})
    node = cluster[2]
    entries = tuple(log_of(1, 1, 1)[1:])
    node.raw.step(AppendEntries(nid(1), nid(2), Term(2), lid(1, 1), entries, Index(5)))
    assert node.raw.log.commit_index == 3


# -- thesis --------------------------------------------------------------------------------


def test_3_8_a_vote_survives_a_restart() -> None:
    cluster = Cluster(3)
    cluster[3].raw.step(Vote(nid(1), nid(3), Term(2), ZERO, transfer=False))
    cluster[3].handle()
    cluster[3].crash()
    cluster.restart(3)
    cluster[3].raw.step(Vote(nid(2), nid(3), Term(2), ZERO, transfer=False))
    assert [m.granted for m in cluster[3].handle() if isinstance(m, VoteReply)] == [False]


def test_3_10_transfer_stops_proposals_catches_up_and_tells_the_target() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    cluster.propose(1, "x")
    leader.raw.transfer_leadership(nid(3))
    assert not [m for m in leader.handle() if isinstance(m, TimeoutNow)], "it lags"
    assert leader.raw.is_transferring
    cluster.heal()
    cluster.run(2)
    assert cluster.raw(3).role is Role.LEADER
    assert cluster.raw(3).term == 2


def test_3_10_transfer_is_given_up_after_an_election_timeout() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster[3].crash()
    leader.raw.transfer_leadership(nid(3))
    cluster.run(10)
    assert not leader.raw.is_transferring
    cluster.propose(1, "x")


def test_4_2_1_a_learner_does_not_delay_commit() -> None:
    """… before the configuration change, the new server joins the cluster as a non-voting member."""
    cluster = Cluster(3, learners=[4])
    leader = cluster.elect(1)
    cluster[4].crash()
    cluster[3].crash()
    at = cluster.propose(1, "x")
    assert leader.raw.log.commit_index == at.index


def test_4_2_3_a_removed_server_does_not_disrupt() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    cluster.run(11)
    leader.raw.propose_membership(leader.raw.membership.without(nid(3)))
    cluster.settle()
    cluster.heal()
    cluster.run(50)
    assert (leader.raw.role, leader.raw.term) == (Role.LEADER, 1)


def test_the_2015_membership_bug_cannot_happen() -> None:
    """Ongaro, raft-dev, 10 July 2015: two leaders each append a change to the same old membership of
    four; without a committed entry of the own term first, {S1,S2,S3} and {S1,S2,S3,S4,S5} would have
    majorities that do not overlap, and committed entries could be lost (RC-43).
    """
    cluster = Cluster(4)
    for number in (1, 2, 3, 4):
        cluster[number].core.elapsed = 10
    first = cluster.elect(1)
    cluster.isolate(1)
    # S1 adds S5, and reaches nobody with it.
    cluster.boot(nid(5), Disk())
    first.raw.propose_membership(first.raw.membership.with_learner(member_five := _member(5)))
    cluster.pump(first)
    cluster.network.clear()
    assert member_five in first.raw.membership.members
    # S2 leads by the votes of S3 and S4, and removes one of the four: this commits.
    second = become_leader(cluster, 2, 3, 4)
    with pytest.raises(MembershipRefused):
        second.raw.propose_membership(second.raw.membership.without(nid(1)))
    cluster.isolate(1, 5)
    cluster.run(2)
    second.raw.propose_membership(second.raw.membership.without(nid(1)))
    cluster.settle()
    assert second.raw.log.commit_index == second.raw.log.membership_index
    # S1 comes back: its change is older than what is committed, so nobody elects it.
    cluster.heal()
    first.core.become_follower(first.raw.term, None)
    for node in cluster.nodes.values():
        node.core.elapsed = 10
    first.raw.campaign()
    cluster.settle()
    assert first.raw.role is not Role.LEADER
    cluster.run(40)
    assert cluster.leader is not None
    assert cluster.leader.raw.membership.voters == {nid(2), nid(3), nid(4)}


def _member(number: int):  # type: ignore[no-untyped-def]
    (found,) = membership([number]).members
    return found


def test_6_2_a_leader_without_a_quorum_steps_down() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(1)
    cluster.run(10)
    assert leader.raw.role is Role.FOLLOWER


def test_6_4_the_steps_of_a_read() -> None:
    """1. a committed entry of the term. 2. the commit index. 3. a round of heartbeats. 4. applied."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    assert leader.raw.has_term_commit
    leader.raw.read_index("r")
    cluster.pump(leader)
    assert not leader.reads
    cluster.settle()
    (state,) = leader.reads
    assert state.index <= leader.raw.log.applied_index
    assert state.reads == ["r"]


def test_9_6_pre_vote_a_partitioned_server_does_not_depose_the_leader() -> None:
    """A server in the minority … its term does not increase, and it cannot disrupt when it rejoins."""
    cluster = Cluster(5)
    leader = cluster.elect(1)
    cluster.isolate(5)
    cluster.run(100)
    assert cluster.raw(5).term == 1
    cluster.heal()
    cluster.run(30)
    assert (leader.raw.role, leader.raw.term) == (Role.LEADER, 1)


def test_10_2_1_entries_leave_in_parallel_with_the_leaders_own_write() -> None:
    """The leader may even commit an entry before it has been written to its own disk, if a majority of
    followers have written it to their disks.
    """
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.syncs = False
    at = cluster.propose(1, "x")
    assert leader.disk.last_index < at.index
    assert leader.raw.log.commit_index == at.index


def test_10_2_2_requests_are_pipelined() -> None:
    """A leader … updates next_index without waiting for the response."""
    cluster = Cluster(2)
    leader = cluster.elect(1)
    for text in ("a", "b", "c"):
        leader.raw.propose([text.encode()])
        cluster.pump(leader)
    sent = [m for m in cluster.network if isinstance(m, AppendEntries)]
    assert [m.prev.index for m in sent] == [1, 2, 3]


def test_a_committed_entry_is_opaque_and_unchanged() -> None:
    """State machine safety begins here: the bytes that were proposed are the bytes that are applied."""
    cluster = Cluster(3)
    cluster.elect(1)
    data = bytes(range(256))
    at = cluster[1].raw.propose([data])
    cluster.settle()
    cluster.run(2)
    wanted = Entry(at.index, at.term, EntryKind.COMMAND, data)
    assert all(node.applied[at.index] == wanted for node in cluster.nodes.values())
