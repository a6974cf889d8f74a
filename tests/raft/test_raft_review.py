"""Corner cases found by reading the core as an adversary would. One law each."""

from __future__ import annotations

import sys

import pytest

from kvnode.errors import MembershipRefused
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
)
from kvnode.raft.progress import Progress, ProgressState
from kvnode.raft.types import Index, Role, SnapshotMeta, Term
from tests.raft.cluster import Cluster, command, lid, log_of, member, membership, nid, without_n3


def test_removing_the_last_other_voter_releases_the_open_read_round() -> None:
    """Nobody is left to answer the round, so the change itself must confirm it (RC-30)."""
    cluster = Cluster(2)
    leader = cluster.elect(1)
    cluster.isolate(2)
    leader.raw.read_index("r")
    cluster.settle()
    assert not leader.reads
    leader.raw.propose_membership(leader.raw.membership.without(nid(2)))
    cluster.settle()
    assert [state.reads for state in leader.reads] == [["r"]]
    leader.raw.read_index("s")
    cluster.settle()
    assert [state.reads for state in leader.reads] == [["r"], ["s"]]


def test_a_voter_that_never_answered_this_leader_does_not_count_as_reachable() -> None:
    """RC-45: a new leader gives everybody time, but must not remove the last live voter on credit."""
    cluster = Cluster(3)
    cluster.isolate(3)
    leader = cluster.elect(1)
    assert leader.raw.has_term_commit
    with pytest.raises(MembershipRefused):
        leader.raw.propose_membership(leader.raw.membership.without(nid(2)))


def test_a_new_learner_that_never_answered_cannot_be_promoted() -> None:
    """RC-45: of two voters, one would be a node that nobody has ever heard."""
    cluster = Cluster(1)
    leader = cluster.elect(1)
    leader.raw.propose_membership(leader.raw.membership.with_learner(member(nid(2))))
    cluster.settle()
    with pytest.raises(MembershipRefused):
        leader.raw.propose_membership(leader.raw.membership.with_voter(nid(2)))


def test_a_restored_log_is_acknowledged_only_after_the_disk_took_the_reset() -> None:
    """RC-3, RC-37: also a late duplicate from below the snapshot must not let the answer out."""
    cluster = Cluster(3)
    node = cluster[2]
    node.syncs = False
    leader = nid(1)
    cluster.send(node, node.handle())
    meta = SnapshotMeta(lid(10, 1), cluster.first)
    # The term is durable already, so only the entries can hold a reply back.
    node.raw.step(AppendEntries(leader, nid(2), Term(1), lid(5, 1), (), Index(0)))
    assert [m.rejected for m in _write_all(node) if isinstance(m, AppendEntriesReply)] == [True]
    node.raw.step(InstallSnapshot(leader, nid(2), Term(1), meta))
    node.raw.step(AppendEntries(leader, nid(2), Term(1), lid(3, 1), (command(4, 1),), Index(0)))
    assert not [m for m in node.handle() if isinstance(m, AppendEntriesReply)]
    replies = [m for m in _write_all(node) if isinstance(m, AppendEntriesReply)]
    assert {m.match_index for m in replies} == {10}


def _write_all(node):  # type: ignore[no-untyped-def]
    out = node.handle()
    while node.queue:
        out += node.sync_one()
        out += node.handle()
    return out


def test_read_rounds_do_not_resend_the_probe_each_time() -> None:
    """A follower that is being probed gets its megabyte once per heartbeat interval, not per read."""
    cluster = Cluster(3, heartbeat_ticks=3)
    leader = cluster.elect(1)
    cluster.settle()
    leader.raw.report_unreachable(nid(3))
    assert leader.raw.progress_state(nid(3)) == "probe"
    leader.raw.propose([b"x" * 1000])
    first = [m for m in leader.handle() if isinstance(m, AppendEntries) and m.to == nid(3)]
    assert len(first) == 1
    again = []
    for round_number in range(1, 6):
        leader.raw.read_index(round_number)
        leader.handle()
        leader.raw.step(HeartbeatReply(nid(3), nid(1), leader.raw.term, leader.core.read_round))
        again += [m for m in leader.handle() if isinstance(m, AppendEntries) and m.to == nid(3)]
    assert not again
    # A lost probe is still repeated: at the latest an interval later.
    for _ in range(6):
        leader.raw.tick()
        leader.handle()
        leader.raw.step(HeartbeatReply(nid(3), nid(1), leader.raw.term, 0))
        again += [m for m in leader.handle() if isinstance(m, AppendEntries) and m.to == nid(3)]
    assert 1 <= len(again) <= 3


def test_a_refusal_of_what_a_follower_is_known_to_hold_is_stale_while_probing_too() -> None:
    """RC-26: else leader and a late duplicate play ping-pong at the speed of the network."""
    progress = Progress(Index(11), 0)
    progress.acknowledged(Index(10))
    progress.become_probe()
    progress.sent(Index(10), 0, 0, 0)
    assert not progress.refused(Index(10), Index(3))
    assert progress.next_index == 11
    assert progress.probe_sent


def test_a_hint_from_before_the_log_asks_for_a_snapshot_at_once() -> None:
    """No position that is still in the log can match, so do not try any."""
    cluster = Cluster(3)
    cluster.isolate(3)
    leader = cluster.elect(1)
    for number in range(20):
        cluster.propose(1, str(number))
    cluster.compact(1, 15)
    cluster.propose(1, "tail")
    leader.raw.report_unreachable(nid(3))
    cluster.network.clear()
    cluster.heal()
    leader.core.progress[nid(3)].next_index = Index(20)
    leader.core.progress[nid(3)].probe_sent = False
    cluster.pump(leader)
    asked = []
    cluster.on_send = lambda m: asked.append(m) if m.to == nid(3) else None  # type: ignore[func-returns-value]
    cluster.settle()
    kinds = [type(m).__name__ for m in asked if isinstance(m, AppendEntries | InstallSnapshot)]
    assert kinds[0] == "InstallSnapshot"
    assert cluster.raw(3).log.last_index == leader.raw.log.last_index


def _steps(function) -> int:  # type: ignore[no-untyped-def]
    """Number of lines executed: a clock that no busy machine can disturb."""
    count = 0

    def trace(_frame, _event, _argument):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def test_searching_a_conflict_does_not_walk_the_log() -> None:
    """Terms never fall along a log, so the position can be bisected."""
    log = RaftLog(lid(0, 0), membership([1]), log_of(*[1] * 10, *[2] * 50_000))
    found = []
    assert _steps(lambda: found.append(log.find_conflict(Index(50_000), Term(1)))) < 500
    assert found == [lid(10, 1)]


def test_a_slice_costs_what_it_returns_and_not_what_follows() -> None:
    """A follower far behind is caught up in many messages; each must be cheap."""

    class Counting(list):  # type: ignore[type-arg]
        copied = 0

        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            result = super().__getitem__(key)
            if isinstance(key, slice):
                Counting.copied += len(result)
            return result

    log = RaftLog(lid(0, 0), membership([1]), log_of(*[1] * 20_000))
    log._entries = Counting(log._entries)
    part = log.slice(Index(1), Index(20_001), 1000)
    assert 1 < len(part) < 30
    assert Counting.copied < 2 * len(part) + 10


def test_a_stalled_full_window_ends_although_its_entries_are_compacted() -> None:
    """Everything under way was lost, the window is full, and the leader compacted past it."""
    cluster = Cluster(3, inflight_messages_max=2)
    leader = cluster.elect(1)
    cluster.isolate(3)
    for number in range(6):
        cluster.propose(1, str(number))
    assert leader.raw.progress_state(nid(3)) == "replicate"
    cluster.compact(1, leader.raw.log.applied_index)
    cluster.propose(1, "tail")
    cluster.heal()
    cluster.run(5)
    assert cluster.raw(3).log.last == leader.raw.log.last


def test_a_follower_that_restarts_is_caught_up_again() -> None:
    """What was under way to its former life is lost; nobody reports it (RC-27)."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster[3].crash()
    for number in range(5):
        cluster.propose(1, str(number))
    assert leader.core.progress[nid(3)].state is ProgressState.REPLICATE
    cluster.restart(3)
    cluster.run(3)
    assert cluster.raw(3).log.last == leader.raw.log.last


def test_a_lost_snapshot_is_sent_again_after_a_sign_of_life() -> None:
    """The driver reports that the stream broke; the next heartbeat reply starts another (RC-68)."""
    cluster = without_n3(5)
    leader = cluster[1]
    cluster.compact(1, 4)
    leader.raw.report_unreachable(nid(3))
    cluster.settle()
    assert leader.raw.progress_state(nid(3)) in {"probe", "snapshot"}
    cluster.run(2)
    cluster.heal()
    cluster.run(3)
    assert cluster.raw(3).log.last == leader.raw.log.last
    assert leader.raw.role is Role.LEADER


def test_the_write_of_an_earlier_term_does_not_count_the_own_vote() -> None:
    """RC-2: two writes are with the disk; only the second holds the vote."""
    cluster = Cluster(3)
    node = cluster[2]
    node.syncs = False
    node.raw.step(Heartbeat(nid(1), nid(2), Term(1), Index(0), 0))
    node.handle()
    node.core.become_candidate()
    node.handle()
    node.sync_one()
    assert nid(2) not in node.core.votes
    node.sync_one()
    assert node.core.votes[nid(2)]


def test_a_transfer_ends_with_the_leadership() -> None:
    """Elected again, the node must not refuse proposals for a transfer of long ago."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster[3].crash()
    leader.raw.transfer_leadership(nid(3))
    cluster.elect(2)
    assert not leader.raw.is_transferring
    cluster.elect(1)
    cluster.propose(1, "x")


def test_writes_from_before_a_snapshot_prove_nothing_after_it() -> None:
    """RC-5: the log shrank to a snapshot below what was being written."""
    log = RaftLog(lid(0, 0), membership([1]), log_of(1))
    log.append_after(lid(1, 1), [command(index, 1) for index in range(2, 21)])
    log.hand_out()
    log.reset(lid(15, 2), membership([1]))
    log.append_after(lid(15, 2), [command(index, 2) for index in range(16, 19)])
    log.stable_to()
    assert log.stable_index < 15
    log.hand_out()
    log.stable_to()
    assert log.stable_index == 18


def test_a_round_is_not_begun_while_one_is_open_whatever_else_is_to_do() -> None:
    """Else each proposal of a busy leader would start a heartbeat round of its own."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    for number in range(5):
        leader.raw.read_index(number)
        leader.raw.propose([b"x"])
        leader.handle()
    assert leader.core.read_round == 1


def test_a_candidates_clock_begins_when_its_requests_leave() -> None:
    """Two saves, its own and the voters', may together take longer than the time-out."""
    cluster = Cluster(3)
    waiting: dict[str, list[int]] = {node: [] for node in cluster.nodes}
    for node in cluster.nodes.values():
        node.syncs = False
    for now in range(200):
        cluster.tick()
        cluster.settle()
        for node in cluster.nodes.values():
            due = waiting[node.id]
            due += [now + 8] * (len(node.queue) - len(due))
            while due and due[0] <= now:
                due.pop(0)
                cluster.send(node, node.sync_one())
        cluster.settle()
    assert cluster.leader is not None
    assert cluster.leader.raw.log.commit_index > 0


def test_a_hung_disk_gathers_no_polls() -> None:
    """RC-67: what cannot be said is not said again and again."""
    cluster = Cluster(3)
    node = cluster[1]
    node.syncs = False
    node.raw.step(Heartbeat(nid(2), nid(1), Term(1), Index(0), 0))
    node.handle()
    cluster.tick([1], 1000)
    assert len(node.queue) == 1
    assert not cluster.network
