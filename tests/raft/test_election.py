"""Polls, votes, quorum checks and transfer (Raft §5.2, §5.4.1, thesis §3.10, §4.2.3, §6.2, §9.6)."""

from __future__ import annotations

import random

import pytest

from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.types import ZERO, HardState, Index, Role, SnapshotMeta, Term
from tests.raft.cluster import Cluster, Disk, lid, log_of, membership, nid


def said(node, kind):  # type: ignore[no-untyped-def]
    return [m for m in node.handle() if isinstance(m, kind)]


def every_message(term: int) -> list[Message]:
    """One of each kind, from n1 to n2."""
    a, b, t = nid(1), nid(2), Term(term)
    meta = SnapshotMeta(lid(1, 1), membership([1, 2, 3]))
    return [
        PreVoteReply(a, b, t, granted=False),
        Vote(a, b, t, lid(9, 9), transfer=False),
        VoteReply(a, b, t, granted=False),
        AppendEntries(a, b, t, ZERO, (), Index(0)),
        AppendEntriesReply(a, b, t, Index(0), False, Index(0), Term(0)),
        Heartbeat(a, b, t, Index(0), 0),
        HeartbeatReply(a, b, t, 0),
        InstallSnapshot(a, b, t, meta),
        TimeoutNow(a, b, t),
    ]


@pytest.mark.parametrize("message", every_message(7), ids=lambda m: type(m).__name__)
def test_a_higher_term_makes_a_follower_of_it_first(message: Message) -> None:
    """RC-13, Raft fig. 2 "rules for servers"; for each kind and each role."""
    for role in ("follower", "pre_candidate", "candidate", "leader"):
        cluster = Cluster(3)
        node = cluster[2]
        if role == "leader":
            cluster.elect(2)
        elif role == "pre_candidate":
            node.raw.campaign()
        elif role == "candidate":
            node.raw.campaign()
            node.handle()
            node.raw.step(PreVoteReply(nid(3), nid(2), Term(1), granted=True))
        node.handle()
        assert node.raw.role.value == role
        if role == "leader" and isinstance(message, Vote):
            continue  # stickiness: see below
        node.raw.step(message)
        assert (node.raw.role, node.raw.term) == (Role.FOLLOWER, 7)


@pytest.mark.parametrize("message", every_message(1), ids=lambda m: type(m).__name__)
def test_a_lower_term_changes_nothing(message: Message) -> None:
    """RC-13, RC-27: late by minutes; only a leader of old is told the new term (RC-18)."""
    cluster = Cluster(3, terms={1: 5, 2: 5, 3: 5})
    node = cluster[2]
    before = node.raw.describe()
    node.raw.step(message)
    answers = node.handle()
    assert node.raw.describe() == before
    if isinstance(message, AppendEntries | Heartbeat):
        assert answers == [HeartbeatReply(nid(2), nid(1), Term(5), 0)]
    else:
        assert not answers


def test_messages_for_others_are_ignored() -> None:
    """A restarted or renamed node may get what was meant for another (RC-27)."""
    cluster = Cluster(3)
    node = cluster[2]
    node.raw.step(Heartbeat(nid(1), nid(3), Term(9), Index(0), 0))
    assert node.raw.term == 0


def test_a_poll_raises_no_term_at_either_end() -> None:
    """RC-15: nothing is stored, nothing is reset."""
    cluster = Cluster(3)
    one, two = cluster[1], cluster[2]
    two.core.elapsed = 7
    one.raw.campaign()
    cluster.pump(one)
    cluster.deliver(next(m for m in cluster.network if m.to == two.id))
    assert one.raw.term == two.raw.term == 0
    assert (two.raw.vote, two.core.elapsed) == (None, 7), "RC-14: a poll resets no clock"
    assert not one.queue
    assert one.disk.hard_state == (0, None)


@pytest.mark.parametrize("kind", [VoteReply, PreVoteReply])
@pytest.mark.parametrize("term", [0, 1, 2])
def test_an_answer_counts_only_in_its_own_poll(kind: type[Message], term: int) -> None:
    """RC-16: type and term are part of the message; canonical/raft #196."""
    cluster = Cluster(5)
    node = cluster[1]
    node.raw.campaign()
    node.handle()
    for other in (2, 3):
        node.raw.step(kind(nid(other), nid(1), Term(term), True))  # type: ignore[call-arg]
        node.handle()
    if kind is PreVoteReply and term == 1:
        assert node.raw.role is Role.CANDIDATE
        for other in (2, 3):  # doubled poll answers are no votes
            node.raw.step(PreVoteReply(nid(other), nid(1), Term(1), granted=True))
            node.handle()
        assert node.raw.role is Role.CANDIDATE
    else:
        assert node.raw.role in {Role.PRE_CANDIDATE, Role.FOLLOWER}
        assert node.raw.role is not Role.LEADER


def test_a_doubled_vote_counts_once() -> None:
    cluster = Cluster(5)
    node = cluster[1]
    node.raw.campaign()
    node.handle()
    for other in (2, 3):
        node.raw.step(PreVoteReply(nid(other), nid(1), Term(1), granted=True))
    node.handle()
    for _ in range(3):
        node.raw.step(VoteReply(nid(2), nid(1), Term(1), granted=True))
        node.handle()
    assert node.raw.role is Role.CANDIDATE
    node.raw.step(VoteReply(nid(9), nid(1), Term(1), granted=True))
    assert node.raw.role is Role.CANDIDATE, "strangers and learners do not count"
    node.raw.step(VoteReply(nid(3), nid(1), Term(1), granted=True))
    assert node.raw.role is Role.LEADER


def test_the_own_vote_counts_once_it_is_saved() -> None:
    """RC-2: two nodes, a slow disk, and the other's vote is not enough."""
    cluster = Cluster(1)
    node = cluster[1]
    node.syncs = False
    node.raw.campaign()
    node.handle()
    assert node.raw.role is Role.CANDIDATE
    node.sync_one()
    assert node.raw.role is Role.LEADER


@pytest.mark.parametrize(
    ("mine", "theirs", "granted"),
    [
        ([1, 1], [1, 1], True),
        ([1, 1], [1, 1, 1], True),
        ([1, 1], [1], False),
        ([1, 1], [2], True),
        ([1, 2], [1, 1, 1], False),
        ([], [], True),
        ([1], [], False),
    ],
)
def test_a_vote_needs_a_log_at_least_as_up_to_date(mine, theirs, granted) -> None:  # type: ignore[no-untyped-def]
    """RC-12, Raft §5.4.1; the poll judges alike."""
    last = log_of(*theirs)[-1].id if theirs else ZERO
    for message in (
        PreVote(nid(1), nid(2), Term(5), last),
        Vote(nid(1), nid(2), Term(5), last, transfer=False),
    ):
        cluster = Cluster(3, logs={2: mine})
        cluster[2].raw.step(message)
        (answer,) = said(cluster[2], PreVoteReply | VoteReply)
        assert answer.granted is granted


def test_one_vote_per_term_and_the_same_again() -> None:
    """Raft §5.2: first come, first served; a doubled request gets the same answer."""
    cluster = Cluster(3)
    node = cluster[2]
    answers = []
    for sender in (1, 3, 1):
        node.raw.step(Vote(nid(sender), nid(2), Term(4), ZERO, transfer=False))
        answers += said(node, VoteReply)
    assert [a.granted for a in answers] == [True, False, True]


def test_no_vote_against_a_leader_of_the_same_term() -> None:
    """Its vote may be unsaved after a restart; that leader won without it, so nobody else can."""
    cluster = Cluster(3)
    node = cluster[2]
    node.raw.step(Heartbeat(nid(1), nid(2), Term(4), Index(0), 0))
    node.raw.step(Vote(nid(3), nid(2), Term(4), ZERO, transfer=False))
    (answer,) = said(node, VoteReply)
    assert not answer.granted


def test_only_a_granted_vote_or_a_leader_resets_the_clock() -> None:
    """RC-14, hashicorp/raft #609."""
    cluster = Cluster(3, logs={2: [1, 1]})
    node = cluster[2]
    node.core.elapsed = 8
    node.raw.step(Vote(nid(1), nid(2), Term(4), ZERO, transfer=False))
    assert node.core.elapsed == 8, "refused: the log is behind"
    node.raw.step(Vote(nid(1), nid(2), Term(4), lid(2, 1), transfer=False))
    assert node.core.elapsed == 0
    node.core.elapsed = 8
    node.raw.step(Heartbeat(nid(1), nid(2), Term(3), Index(0), 0))
    assert node.core.elapsed == 8, "an old leader"
    node.raw.step(Heartbeat(nid(1), nid(2), Term(4), Index(0), 0))
    assert node.core.elapsed == 0


def test_time_outs_are_drawn_anew_for_each_election() -> None:
    """RC-14: two nodes that collided once must not collide for ever."""
    cluster = Cluster(3, draw=lambda node: random.Random(node))
    node = cluster[1]
    drawn = set()
    for _ in range(40):
        cluster.tick([1], 20)
        drawn.add(node.core.timeout)
        cluster.network.clear()
    assert len(drawn) > 4
    assert all(10 <= ticks < 20 for ticks in drawn)


@pytest.mark.parametrize("kind", ["poll", "vote"])
def test_who_hears_a_leader_ignores_requests_for_votes(kind: str) -> None:
    """RC-17, thesis §4.2.3: a node that lost touch does not disturb. The leader itself likewise."""
    cluster = Cluster(3)
    cluster.elect(1)
    for number in (1, 2):
        node = cluster[number]
        message: Message = (
            PreVote(nid(3), nid(number), Term(9), lid(9, 9))
            if kind == "poll"
            else Vote(nid(3), nid(number), Term(9), lid(9, 9), transfer=False)
        )
        node.raw.step(message)
        assert not node.handle()
        assert node.raw.term == 1
    cluster.tick([2], 10)
    assert cluster.raw(2).leader_id == nid(1)
    cluster.network.clear()
    cluster[2].raw.step(PreVote(nid(3), nid(2), Term(9), lid(9, 9)))
    assert [m.granted for m in said(cluster[2], PreVoteReply)] == [True]


def test_a_learner_never_campaigns_but_votes() -> None:
    """RC-20, etcd #10998: it may be a voter that has not heard of it."""
    cluster = Cluster(2, learners=[3])
    cluster.tick([3], 100)
    cluster[3].raw.campaign()
    assert cluster.raw(3).role is Role.FOLLOWER
    cluster[3].raw.step(Vote(nid(1), nid(3), Term(1), ZERO, transfer=False))
    assert [m.granted for m in said(cluster[3], VoteReply)] == [True]


def test_a_stranger_waits_to_be_told() -> None:
    """An empty node knows no membership: it never campaigns, and answers (RC-49 is the driver's)."""
    cluster = Cluster(1)
    stranger = cluster.boot(nid(7), Disk())
    for _ in range(100):
        stranger.raw.tick()
    assert stranger.raw.role is Role.FOLLOWER
    assert not stranger.handle()


def test_a_refused_poll_ends_when_it_cannot_be_won() -> None:
    cluster = Cluster(3, terms={1: 3, 2: 3, 3: 3}, logs={2: [1], 3: [1]})
    cluster[1].raw.campaign()
    cluster.settle()
    assert cluster.raw(1).role is Role.FOLLOWER
    assert cluster.raw(1).term == 3


def test_a_split_vote_is_tried_again_in_a_new_term() -> None:
    """Raft §5.2."""
    cluster = Cluster(2)
    for number in (1, 2):
        cluster[number].raw.campaign()
        cluster.pump(cluster[number])
    cluster.settle()
    assert cluster.raw(1).term == cluster.raw(2).term == 1
    assert cluster.leader is None
    cluster.run(25)
    assert cluster.leader is not None
    assert cluster.leader.raw.term == 2


def test_a_leader_steps_down_after_an_election_timeout_without_a_quorum() -> None:
    """RC-17: and not before, although nobody has ever answered it."""
    cluster = Cluster(5)
    leader = cluster.elect(1)
    cluster.cut([1, 2])
    cluster.run(9)
    assert leader.raw.role is Role.LEADER
    cluster.run(1)
    assert leader.raw.role is Role.FOLLOWER
    assert leader.raw.term == 1, "the term does not rise by it"


def test_a_leader_with_a_bare_quorum_stays() -> None:
    cluster = Cluster(5)
    leader = cluster.elect(1)
    cluster.isolate(4, 5)
    cluster.run(60)
    assert leader.raw.role is Role.LEADER


def test_a_broken_connection_to_the_leader_shortens_the_wait() -> None:
    """It no longer vouches for it, but asks others before it raises a term."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[2].raw.report_unreachable(nid(3))
    assert cluster[2].core.elapsed < 10, "only the leader's connection matters"
    cluster[2].raw.report_unreachable(nid(1))
    cluster.tick([2], 2)
    assert cluster.raw(2).role is Role.PRE_CANDIDATE
    cluster.settle()
    assert cluster.raw(2).term == 1, "n3 still hears the leader"
    cluster.run(2)
    assert cluster.raw(2).leader_id == nid(1)


# -- transfer ------------------------------------------------------------------------------------------


def test_timeout_now_is_obeyed_only_from_the_leader_in_its_term() -> None:
    """RC-19, RC-27."""
    cluster = Cluster(3, learners=[4])
    cluster.elect(1)
    for sender, to, term in ((3, 2, 1), (1, 2, 0), (1, 4, 1), (3, 2, 5)):
        cluster[to].raw.step(TimeoutNow(nid(sender), nid(to), Term(term)))
        assert cluster.raw(to).role is Role.FOLLOWER
    assert cluster.raw(2).term == 5, "a higher term is adopted all the same"
    cluster[3].raw.step(TimeoutNow(nid(1), nid(3), Term(1)))
    assert cluster.raw(3).role is Role.CANDIDATE


def test_a_transfer_to_a_node_that_is_removed_meanwhile_ends() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.raw.transfer_leadership(nid(3))
    assert leader.raw.is_transferring
    leader.core.log.append(
        leader.core.log._entries[0]._replace(
            index=Index(leader.raw.log.last_index + 1), kind=2, data=membership([1, 2]).encode()
        )
    )
    leader.core.track_members(leader.raw.log.last_index)
    assert not leader.raw.is_transferring


def test_reads_go_on_during_a_transfer() -> None:
    """A read needs no entry; the round shows whether this node still leads."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.raw.transfer_leadership(nid(3))
    leader.raw.read_index("r")
    cluster.settle()
    assert [state.reads for state in leader.reads] == [["r"]]


def test_the_old_leader_grants_its_vote_to_the_target() -> None:
    cluster = Cluster(2)
    leader = cluster.elect(1)
    leader.raw.transfer_leadership(nid(2))
    cluster.settle()
    assert cluster.raw(2).role is Role.LEADER
    assert cluster.raw(1).vote == nid(2)


def test_a_restart_forgets_no_vote() -> None:
    """RC-2, thesis §3.8."""
    cluster = Cluster(3)
    cluster[2].raw.step(Vote(nid(1), nid(2), Term(1), ZERO, transfer=False))
    cluster[2].handle()
    cluster[2].crash()
    cluster.restart(2)
    assert cluster[2].disk.hard_state == HardState(Term(1), nid(1))
    cluster[2].raw.step(Vote(nid(3), nid(2), Term(1), ZERO, transfer=False))
    (answer,) = said(cluster[2], VoteReply)
    assert not answer.granted
