"""Sending entries, the commit rule, heartbeats, snapshots (Raft §5.3, §5.4, §7)."""

from __future__ import annotations

import pytest

from kvnode.errors import InvariantBroken, Overloaded
from kvnode.raft.log import ENTRY_OVERHEAD
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
)
from kvnode.raft.types import Index, Role, SnapshotMeta, Term
from tests.raft.cluster import Cluster, Node, command, lid, nid, without_n3


def said(node: Node, kind, to: int | None = None):  # type: ignore[no-untyped-def]
    return [m for m in node.handle() if isinstance(m, kind) and (to is None or m.to == nid(to))]


def accept(sender: int, term: int, match: int) -> AppendEntriesReply:
    return AppendEntriesReply(
        nid(sender), nid(1), Term(term), Index(0), False, Index(match), Term(0)
    )


def refuse(sender: int, term: int, prev: int, hint: int) -> AppendEntriesReply:
    return AppendEntriesReply(
        nid(sender), nid(1), Term(term), Index(prev), True, Index(hint), Term(term)
    )


def test_all_proposals_of_a_turn_travel_in_one_message() -> None:
    """Batching is what makes one sync serve many."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    for number in range(10):
        leader.raw.propose([b"%d" % number])
    sent = said(leader, AppendEntries)
    assert [(m.to, len(m.entries)) for m in sent] == [(nid(2), 10), (nid(3), 10)]


def test_messages_are_pipelined_up_to_the_window() -> None:
    """RC-68, thesis §10.2.1."""
    cluster = Cluster(2, append_bytes_max=1, inflight_messages_max=3)
    leader = cluster.elect(1)
    leader.raw.propose([b"x"] * 10)
    assert len(said(leader, AppendEntries)) == 3
    leader.raw.step(accept(2, 1, 2))
    assert [m.entries[0].index for m in said(leader, AppendEntries)] == [5]
    leader.raw.step(accept(2, 1, 5))
    assert len(said(leader, AppendEntries)) == 3


def test_a_dead_follower_costs_constant_memory() -> None:
    """RC-68: it is never waited for, and nothing is kept for it."""
    cluster = Cluster(3, inflight_messages_max=4)
    leader = cluster.elect(1)
    cluster.isolate(3)
    for number in range(50):
        cluster.propose(1, str(number))
    progress = leader.core.progress[nid(3)]
    assert len(progress.inflight) == 4
    assert not leader.core.messages
    assert not leader.core.held_messages


def test_uncommitted_bytes_are_bounded_at_the_leader() -> None:
    """RC-67: loss of the quorum cannot exhaust memory; nothing is appended when refused."""
    cluster = Cluster(3, uncommitted_bytes_max=3 * (ENTRY_OVERHEAD + 1))
    leader = cluster.elect(1)
    cluster.isolate(1)
    for _ in range(3):
        leader.raw.propose([b"x"])
    last = leader.raw.log.last_index
    with pytest.raises(Overloaded) as caught:
        leader.raw.propose([b"x"])
    assert caught.value.took_effect == "no"
    assert leader.raw.log.last_index == last
    cluster.settle()
    cluster.heal()
    cluster.run(2)
    leader.raw.propose([b"x"])


def test_a_new_leader_counts_what_it_took_over() -> None:
    cluster = Cluster(3, logs={1: [1, 1, 1]})
    cluster.isolate(3)
    cluster[1].raw.campaign()
    cluster.pump(cluster[1])
    while cluster.raw(1).role is not Role.LEADER:
        cluster.deliver(cluster.network.pop(0))
    cluster.network.clear()
    core = cluster[1].core
    assert core.uncommitted_bytes == core.log.bytes
    cluster.heal()
    cluster.run(3)
    assert core.uncommitted_bytes == 0


# -- the commit rule --------------------------------------------------------------------------------


def test_a_leader_counts_itself_only_up_to_its_own_disk() -> None:
    """RC-4: of two, the other's disk alone is no majority."""
    cluster = Cluster(2)
    leader = cluster.elect(1)
    leader.syncs = False
    at = cluster.propose(1, "a")
    assert leader.raw.log.commit_index == at.index - 1
    cluster.send(leader, leader.sync_one())
    cluster.settle()
    assert leader.raw.log.commit_index == at.index


def test_a_leader_may_commit_before_its_own_disk() -> None:
    """RC-4, thesis §10.2.1; but it applies only what its own disk holds (RC-10)."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.syncs = False
    at = cluster.propose(1, "a")
    assert leader.raw.log.commit_index == at.index
    assert leader.raw.log.applied_index == at.index - 1
    cluster.send(leader, leader.sync_one())
    cluster.settle()
    assert leader.raw.log.applied_index == at.index


def test_entries_of_earlier_terms_are_not_committed_by_counting() -> None:
    """RC-21, Raft §5.4.2 and figure 8; they follow with the first of the own term."""
    cluster = Cluster(3, logs={1: [1, 2], 2: [1]}, terms={1: 3, 2: 3, 3: 3})
    leader = cluster[1]
    cluster.isolate(3)
    leader.raw.campaign()
    cluster.pump(leader)
    while leader.raw.role is not Role.LEADER:
        cluster.deliver(cluster.network.pop(0))
    cluster.network.clear()
    leader.raw.step(accept(2, 4, 2))
    assert leader.raw.log.commit_index == 0
    leader.raw.step(accept(2, 4, 3))
    assert leader.raw.log.commit_index == 3


def test_an_answer_beyond_our_log_is_not_believed() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.raw.step(accept(2, 1, 99))
    assert leader.raw.match_index(nid(2)) == 1
    assert leader.raw.log.commit_index == 1


# -- the follower's side ------------------------------------------------------------------------------


def test_a_follower_answers_no_more_than_the_request_proved() -> None:
    """RC-3, RC-25: its longer log may differ from the leader's beyond."""
    cluster = Cluster(3, logs={2: [1, 1, 1, 1]})
    node = cluster[2]
    request = AppendEntries(nid(1), nid(2), Term(2), lid(1, 1), (command(2, 1),), Index(4))
    node.raw.step(request)
    (answer,) = said(node, AppendEntriesReply)
    assert (answer.rejected, answer.match_index) == (False, 2)
    assert node.raw.log.commit_index == 2
    assert node.raw.log.last_index == 4


def test_an_empty_request_is_answered_with_its_prev() -> None:
    cluster = Cluster(3, logs={2: [1, 1, 1]})
    node = cluster[2]
    node.raw.step(AppendEntries(nid(1), nid(2), Term(2), lid(2, 1), (), Index(3)))
    (answer,) = said(node, AppendEntriesReply)
    assert answer.match_index == 2
    assert node.raw.log.commit_index == 2


def test_a_follower_acknowledges_when_its_disk_holds_it_and_in_the_same_term() -> None:
    """RC-3; an acknowledgement for a leader that is gone helps nobody."""
    cluster = Cluster(3, terms={2: 1})
    node = cluster[2]
    node.syncs = False
    node.raw.step(AppendEntries(nid(1), nid(2), Term(1), lid(0, 0), (command(1, 1),), Index(0)))
    assert not said(node, AppendEntriesReply)
    node.raw.step(Heartbeat(nid(3), nid(2), Term(2), Index(0), 0))
    node.handle()
    assert not [m for m in node.sync_one() if isinstance(m, AppendEntriesReply)]


def test_a_heartbeat_answer_waits_for_no_entries() -> None:
    """RC-69: a slow disk must not look like a dead node, once the term is saved."""
    cluster = Cluster(3, terms={2: 1})
    node = cluster[2]
    node.syncs = False
    node.raw.step(AppendEntries(nid(1), nid(2), Term(1), lid(0, 0), (command(1, 1),), Index(0)))
    node.raw.step(Heartbeat(nid(1), nid(2), Term(1), Index(0), 5))
    (answer,) = said(node, HeartbeatReply)
    assert answer.read_round == 5


def test_a_commit_index_beyond_the_log_stops_the_node() -> None:
    """RC-25."""
    cluster = Cluster(3)
    with pytest.raises(InvariantBroken):
        cluster[2].raw.step(Heartbeat(nid(1), nid(2), Term(1), Index(4), 0))


def test_two_leaders_of_one_term_stop_the_node() -> None:
    """Election safety (Raft fig. 3) is broken: going on could destroy data (RC-75)."""
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(InvariantBroken):
        cluster[1].raw.step(Heartbeat(nid(2), nid(1), Term(1), Index(0), 0))


# -- heartbeats ---------------------------------------------------------------------------------------


def test_a_heartbeat_names_at_most_what_the_follower_holds() -> None:
    """RC-25: beyond, its log may hold something else at the same index."""
    leader = without_n3(4)[1]
    leader.raw.tick()
    commits = {m.to: m.commit_index for m in said(leader, Heartbeat)}
    assert commits == {nid(2): 5, nid(3): 1}


def test_the_commit_index_is_spread_once_when_asked() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.run(1)
    cluster.propose(1, "a")
    leader.raw.spread_commit()
    assert {(m.to, m.commit_index) for m in said(leader, Heartbeat)} == {(nid(2), 2), (nid(3), 2)}
    leader.raw.spread_commit()
    assert not said(leader, Heartbeat)
    cluster[2].raw.spread_commit()
    assert not cluster[2].handle()


@pytest.mark.parametrize("lost", ["request", "answer", "both", "all the time"])
def test_a_follower_is_never_stuck(lost: str) -> None:
    """Whatever is lost without a report, the next heartbeats find out (RC-27, RC-68)."""
    cluster = Cluster(3, inflight_messages_max=2, append_bytes_max=1)
    leader = cluster.elect(1)
    for number in range(6):
        leader.raw.propose([b"%d" % number])
        cluster.pump(leader)
        if lost in {"request", "both"}:
            cluster.network = [m for m in cluster.network if m.to != nid(3)]
        for message in [m for m in cluster.network if m.to == nid(3)]:
            cluster.network.remove(message)
            cluster.deliver(message)
        if lost in {"answer", "both", "all the time"}:
            cluster.network = [m for m in cluster.network if m.sender != nid(3)]
        if lost != "all the time":
            leader.raw.report_unreachable(nid(3 if number % 2 else 2))
    cluster.settle()
    cluster.run(20)
    assert cluster.raw(3).log.last == leader.raw.log.last
    assert cluster.raw(3).log.applied_index == leader.raw.log.last_index


# -- snapshots -----------------------------------------------------------------------------------------


def behind_the_base(**config: int) -> Cluster:
    """n3 lacks entries that n1 has compacted, and has just said so."""
    cluster = without_n3(6, **config)
    cluster.compact(1, 5)
    leader = cluster[1]
    leader.raw.report_unreachable(nid(3))
    (asked,) = said(leader, AppendEntries, to=3)
    assert (asked.prev, asked.entries) == (lid(5, 1), ())
    leader.raw.step(refuse(3, 1, prev=5, hint=1))
    return cluster


def test_a_follower_that_holds_more_than_it_could_say_is_counted() -> None:
    """RC-27: a snapshot would bring it nothing, and it refuses such without a word, again and again."""
    cluster = without_n3(3)
    leader = cluster[1]
    cluster.heal()
    leader.raw.report_unreachable(nid(3))
    (entries,) = said(leader, AppendEntries, to=3)
    cluster.deliver(entries)
    cluster.network.clear()  # its answer is lost
    assert cluster.raw(3).log.commit_index == 4
    cluster.compact(1, 4)
    cluster.isolate(2)
    cluster.propose(1, "needs n3")
    cluster.run(4)
    assert leader.raw.progress_state(nid(3)) == "replicate"
    assert leader.raw.log.commit_index == 5


def test_what_is_compacted_is_replaced_by_a_snapshot_with_its_membership() -> None:
    """RC-36; and nothing else is sent meanwhile (RC-68)."""
    cluster = behind_the_base()
    leader = cluster[1]
    (message,) = said(leader, InstallSnapshot)
    assert message.meta == SnapshotMeta(lid(5, 1), cluster.first)
    assert leader.raw.progress_state(nid(3)) == "snapshot"
    leader.raw.propose([b"x"])
    assert not said(leader, AppendEntries, to=3)
    leader.raw.tick()
    assert said(leader, Heartbeat, to=3), "heartbeats go on (RC-41)"


def test_a_snapshot_that_reached_further_is_not_followed_by_what_it_held() -> None:
    cluster = behind_the_base()
    leader = cluster[1]
    leader.handle()
    leader.raw.report_snapshot(nid(3), Index(7))
    leader.raw.propose([b"x"])
    (message,) = said(leader, AppendEntries, to=3)
    assert message.prev == lid(7, 1)


def test_a_failed_snapshot_is_tried_again_after_a_sign_of_life_only() -> None:
    cluster = behind_the_base()
    leader = cluster[1]
    leader.handle()
    leader.raw.report_snapshot(nid(3), None)
    assert not said(leader, InstallSnapshot)
    leader.raw.tick()
    leader.handle()
    leader.raw.step(HeartbeatReply(nid(3), nid(1), Term(1), 0))
    (asked,) = said(leader, AppendEntries, to=3)
    leader.raw.step(refuse(3, 1, prev=asked.prev.index, hint=1))
    assert said(leader, InstallSnapshot)


def test_a_late_refusal_does_not_bring_a_second_snapshot() -> None:
    cluster = behind_the_base()
    leader = cluster[1]
    assert said(leader, InstallSnapshot)
    leader.raw.step(refuse(3, 1, prev=5, hint=1))
    assert not leader.handle()
    leader.raw.report_snapshot(nid(3), Index(7))
    assert leader.raw.progress_state(nid(3)) == "probe"
    leader.raw.step(refuse(3, 1, prev=5, hint=1))
    assert not said(leader, InstallSnapshot)


def test_a_late_acknowledgement_ends_the_wait_for_a_snapshot() -> None:
    """The follower turned out to hold what it was thought to lack."""
    cluster = behind_the_base()
    leader = cluster[1]
    leader.handle()
    leader.raw.step(accept(3, 1, 3))
    assert leader.raw.progress_state(nid(3)) == "snapshot", "not enough yet"
    leader.raw.step(accept(3, 1, 6))
    assert leader.raw.progress_state(nid(3)) == "replicate"
    leader.raw.report_snapshot(nid(3), None)
    assert leader.raw.progress_state(nid(3)) == "replicate", "a report of what is over"


def test_reports_about_strangers_and_by_followers_are_ignored() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    for number in (1, 2):
        cluster[number].raw.report_snapshot(nid(9), Index(1))
        cluster[number].raw.report_unreachable(nid(9))
        assert not cluster[number].handle()


def test_a_snapshot_at_or_below_the_commit_index_is_only_acknowledged() -> None:
    """RC-37: late and doubled streams."""
    cluster = Cluster(3, logs={2: [1, 1, 1]})
    node = cluster[2]
    node.raw.step(AppendEntries(nid(1), nid(2), Term(2), lid(3, 1), (), Index(3)))
    node.handle()
    node.raw.step(InstallSnapshot(nid(1), nid(2), Term(2), SnapshotMeta(lid(2, 1), cluster.first)))
    (answer,) = said(node, AppendEntriesReply)
    assert answer.match_index == 3
    assert not node.snapshots
    assert node.raw.log.last_index == 3


def test_a_snapshot_inside_the_log_keeps_the_suffix() -> None:
    """RC-37, paper's extended figure 13."""
    cluster = Cluster(3, logs={2: [1, 1, 1, 1]})
    node = cluster[2]
    node.raw.step(InstallSnapshot(nid(1), nid(2), Term(2), SnapshotMeta(lid(2, 1), cluster.first)))
    node.handle()
    assert not node.snapshots
    assert (node.raw.log.last_index, node.raw.log.commit_index) == (4, 2)


def test_a_snapshot_beside_the_log_drops_all_of_it() -> None:
    """RC-37."""
    cluster = Cluster(3, logs={2: [1, 1, 1, 1]})
    node = cluster[2]
    meta = SnapshotMeta(lid(2, 2), cluster.first)
    node.raw.step(InstallSnapshot(nid(1), nid(2), Term(2), meta))
    node.handle()
    assert node.snapshots == [meta]
    assert (node.raw.log.base, node.raw.log.last) == (lid(2, 2), lid(2, 2))
    assert (node.disk.base, node.disk.entries) == (lid(2, 2), [])


def test_entries_that_follow_a_snapshot_in_the_same_turn_are_saved_after_it() -> None:
    cluster = Cluster(3)
    node = cluster[2]
    meta = SnapshotMeta(lid(5, 1), cluster.first)
    node.raw.step(InstallSnapshot(nid(1), nid(2), Term(1), meta))
    node.raw.step(AppendEntries(nid(1), nid(2), Term(1), lid(5, 1), (command(6, 1),), Index(6)))
    ready = node.raw.ready()
    assert (ready.snapshot, [e.index for e in ready.entries]) == (meta, [6])
    assert not ready.committed, "not on this disk yet (RC-10)"
    node.raw.advance(ready)
    assert [e.index for e in node.raw.ready().committed] == [6]
