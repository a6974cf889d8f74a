"""The turn: saved before said, applied only when durable here, answered once, silent after the end."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import (
    DiskFailed,
    InvariantBroken,
    LeadershipLost,
    NoLeader,
    NotLeader,
    Removed,
)
from kvnode.raft.messages import AppendEntriesReply, Heartbeat, InstallSnapshot, Vote, VoteReply
from kvnode.raft.types import Index, LogId, NodeId, Role, SnapshotMeta, Term
from kvnode.replica.facade import Consistency
from kvnode.store.commands import KvDelete
from tests.replica.harness import Answers, Cluster, Machine


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(3).found()
    found.led_by(0)
    return found


def sent(machine: Machine) -> list[Any]:
    """What the machine's driver gives the transport from now on."""
    messages: list[Any] = []
    send = machine.transport.send

    def spy(to: NodeId, batch: Any) -> None:
        messages.extend(batch)
        send(to, batch)

    machine.transport.send = spy  # type: ignore[method-assign]
    return messages


# -- the Ready contract -----------------------------------------------------------------------------


def test_a_follower_acknowledges_only_what_its_disk_holds(cluster: Cluster) -> None:
    """RC-1, RC-3."""
    leader, follower, other = cluster.machines
    cluster.isolate(other)
    follower.journal.queue.hold = True
    messages = sent(follower)
    answers = leader.write(b"k")
    cluster.run(0.3)
    last = follower.replica.raft.log.last_index
    assert last == leader.replica.raft.log.last_index
    replies = [m for m in messages if isinstance(m, AppendEntriesReply)]
    assert all(reply.match_index < last for reply in replies)
    assert answers.calls == 0
    follower.journal.queue.release()
    follower.journal.queue.hold = False
    cluster.until(lambda: answers.calls)


def test_a_vote_leaves_after_it_is_on_disk(cluster: Cluster) -> None:
    """RC-2."""
    voter = cluster.machines[1]
    raft = voter.replica.raft
    voter.journal.queue.hold = True
    messages = sent(voter)
    term = Term(raft.term + 1)
    last = LogId(Index(99), term)
    raft.step(Vote(NodeId("n2"), raft.id, term, last, True))
    voter.replica.wake()
    cluster.run(0.05)
    assert not [m for m in messages if isinstance(m, VoteReply)]
    voter.journal.queue.release()
    cluster.run(0.05)
    replies = [m for m in messages if isinstance(m, VoteReply)]
    assert [(reply.granted, reply.term) for reply in replies] == [(True, term)]
    assert voter.hard_state == (term, NodeId("n2"))


def test_the_store_never_leads_the_own_log(cluster: Cluster) -> None:
    """A majority holds it, but this disk does not yet: the engine may be ahead of the log else (RC-10)."""
    leader = cluster.machines[0]
    cluster.run(0.1)
    leader.journal.queue.hold = True
    before = leader.replica.store.applied_index
    answers = leader.write(b"k")
    cluster.run(0.3)
    assert leader.replica.raft.log.commit_index > before
    assert leader.replica.store.applied_index == before
    assert answers.calls == 0
    leader.journal.queue.release()
    assert answers.calls == 0 or leader.replica.store.applied_index > before
    leader.journal.queue.hold = False
    cluster.until(lambda: answers.calls)
    assert answers.value.value is True


def test_a_cluster_of_one_answers_after_its_own_sync() -> None:
    """RC-7."""
    cluster = Cluster(1).found()
    cluster.until(lambda: cluster.leader() and cluster.machines[0].replica.raft.has_term_commit)
    node = cluster.machines[0]
    node.journal.queue.hold = True
    answers = node.write(b"k")
    cluster.run(0.3)
    assert answers.calls == 0
    node.journal.queue.release()
    node.journal.queue.hold = False
    cluster.until(lambda: answers.calls)


def test_a_turns_writes_share_one_write_of_the_log_and_one_frame_per_follower(
    cluster: Cluster,
) -> None:
    leader = cluster.machines[0]
    messages = sent(leader)
    leader.journal.calls.clear()
    answers = [leader.write(b"%d" % number) for number in range(50)]
    cluster.until(lambda: all(found.calls for found in answers))
    assert leader.journal.calls.count("save+log") == 1
    assert len([m for m in messages if getattr(m, "entries", ())]) == 2


# -- failing ----------------------------------------------------------------------------------------


def test_after_a_failed_sync_nothing_is_said_any_more(cluster: Cluster) -> None:
    """RC-8: no reply, no vote, no heartbeat, no answer that says success."""
    leader, follower, _ = cluster.machines
    follower.journal.failure = DiskFailed("input/output error")
    answers = leader.write(b"k")
    cluster.until(lambda: follower.fatal)
    assert isinstance(follower.fatal, DiskFailed)
    messages = sent(follower)
    late = follower.read()
    cluster.run(5.0)
    assert messages == []
    assert late.error is None or isinstance(late.error, NoLeader)
    assert follower.replica.status().state == "failed"
    assert answers.value.value is True, "the others are a majority"


def test_a_failed_sync_of_the_leader_confirms_nothing(cluster: Cluster) -> None:
    leader = cluster.machines[0]
    leader.journal.failure = DiskFailed("input/output error")
    answers = leader.write(b"k")
    cluster.until(lambda: leader.fatal)
    cluster.run(3.0)
    assert answers.value is None
    assert cluster.leader() is not leader


def test_messages_made_in_the_turn_that_fails_stay_here(cluster: Cluster) -> None:
    """A broken invariant is found while messages are already on their way out."""
    leader = cluster.machines[0]
    messages = sent(leader)
    leader.write(b"k")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            if name == "apply_batch":
                raise InvariantBroken("entry 7 holds an unknown command")
            return getattr(store, name)

    store = leader.replica.store
    leader.replica.store = Broken()  # type: ignore[assignment]
    cluster.until(lambda: leader.fatal)
    count = len(messages)
    cluster.run(3.0)
    assert len(messages) == count


def test_what_is_posted_after_the_end_stays_here(cluster: Cluster) -> None:
    """A part that a message was given to may find that the node must stop."""
    leader = cluster.machines[0]
    replica, raft = leader.replica, leader.replica.raft
    messages = sent(leader)
    stop: Any = lambda _message: replica.fail(InvariantBroken("found on the way"))  # noqa: E731
    replica.sender.start = stop  # type: ignore[method-assign]
    meta = SnapshotMeta(raft.log.base, raft.membership)
    replica._post(InstallSnapshot(raft.id, NodeId("n1"), raft.term, meta))
    replica._post(Heartbeat(raft.id, NodeId("n1"), raft.term, Index(0), 0))
    replica._send_outbox()
    assert messages == []


def test_a_turn_that_breaks_off_stops_the_node(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had not yet saved, sent or applied would never be."""
    leader = cluster.machines[0]

    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(leader.replica.registrar, "follow", broken)
    with pytest.raises(InvariantBroken, match="a bug"):
        leader.replica._turn()


def test_two_leaders_of_one_term_stop_the_node_that_sees_it(cluster: Cluster) -> None:
    """RC-75."""
    leader, other, _ = cluster.machines
    beat = Heartbeat(NodeId("n1"), NodeId("n0"), leader.replica.raft.term, Index(0), 0)
    other.transport.send(NodeId("n0"), [beat])
    cluster.until(lambda: leader.fatal)
    assert isinstance(leader.fatal, InvariantBroken)


# -- losing leadership --------------------------------------------------------------------------------


def test_reads_of_a_deposed_leader_are_answered_by_the_next(cluster: Cluster) -> None:
    """RC-32; and the ones that a peer asked for go back to it (RC-59)."""
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    own, hopped = n0.read(), Answers()
    n0.replica.intake.take_read(hopped, hopped=True)
    cluster.until(lambda: hopped.calls)
    assert isinstance(hopped.error, NotLeader)
    assert own.calls == 0
    cluster.network.heal()
    cluster.until(lambda: own.calls)
    assert own.error is None


def test_a_write_that_another_leader_replaced_certainly_did_not_happen(cluster: Cluster) -> None:
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    lost = n0.write(b"lost")
    cluster.until(lambda: not n0.replica.is_leader)
    answers = cluster.machines[1].write(b"kept")
    cluster.until(lambda: answers.calls)
    cluster.network.heal()
    cluster.until(lambda: lost.calls)
    assert isinstance(lost.error, LeadershipLost)
    assert lost.effect == "no"
    assert n0.replica.store.get(b"lost") is None


def test_the_commit_index_reaches_followers_without_traffic(cluster: Cluster) -> None:
    leader, follower, _ = cluster.machines
    answers = leader.write(b"k")
    cluster.until(lambda: answers.calls)
    cluster.run(0.03)
    assert follower.replica.store.get(b"k") is not None


def test_stale_reads_are_answered_without_anybody(cluster: Cluster) -> None:
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    cluster.run(5.0)
    answers = Answers()
    n0.replica.read(Consistency.STALE, answers)
    assert answers.calls == 0, "never from inside the call"
    cluster.run(0.01)
    assert answers.value.known_leader is False
    assert answers.value.last_contact_ms > 2000


def test_a_write_in_the_log_has_its_own_time(cluster: Cluster) -> None:
    """The time to wait for a leader is over once there is one."""
    leader, *others = cluster.machines
    for machine in others:
        machine.journal.queue.hold = True
    answers = leader.write(b"k")
    cluster.run(leader.settings.leader_wait_s + 1.0)
    assert answers.calls == 0
    for machine in others:
        machine.journal.queue.hold = False
        machine.journal.queue.release()
    cluster.until(lambda: answers.calls)
    assert answers.error is None


def test_ready_means_to_have_got_where_the_cluster_was(cluster: Cluster) -> None:
    cluster.until(lambda: all(m.replica.catch_up_index for m in cluster.machines))
    n2 = cluster.machines[2]
    n2.kill()
    answers = cluster.machines[0].write(b"k")
    cluster.until(lambda: answers.calls)
    n2.start()
    assert n2.replica.catch_up_index == 0
    cluster.until(lambda: n2.replica.catch_up_index)
    assert n2.replica.store.get(b"k") is not None


# -- stopping -----------------------------------------------------------------------------------------


def stop(machine: Machine) -> list[bool]:
    done: list[bool] = []
    machine.replica.stop(lambda: done.append(True))
    return done


def test_a_stopping_leader_hands_over_and_answers_what_is_open(cluster: Cluster) -> None:
    """RC-57."""
    leader = cluster.machines[0]
    answers = [leader.write(b"%d" % number) for number in range(5)]
    answers += [leader.read() for _ in range(5)]
    began = cluster.world.now
    done = stop(leader)
    cluster.until(lambda: done)
    assert cluster.world.now - began < 0.5
    assert [found.error for found in answers] == [None] * 10
    assert cluster.leader() not in (None, leader)


def test_requests_that_keep_coming_do_not_hold_up_the_end(cluster: Cluster) -> None:
    leader = cluster.machines[0]
    answers: list[Answers] = []

    def more() -> None:
        if len(answers) < 2000:
            answers.append(leader.write(b"k"))
            leader.clock.call_later(0.002, more)

    more()
    cluster.run(0.1)
    began = cluster.world.now
    done = stop(leader)
    cluster.until(lambda: done)
    assert cluster.world.now - began < 1.0
    cluster.run(5.0)
    assert len(answers) == 2000
    refused = [found for found in answers if found.error is not None]
    assert all(found.calls == 1 for found in answers)
    assert all(isinstance(found.error, NoLeader) for found in refused)


def test_a_node_without_a_leader_stops_in_time_and_leaves_nobody_waiting(
    cluster: Cluster,
) -> None:
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    in_log, in_core = n0.write(b"k"), n0.read()
    cluster.run(0.01)
    done = stop(n0)
    cluster.until(lambda: done, n0.settings.stop_wait_s + 1)
    assert in_log.effect == "unknown"
    assert isinstance(in_core.error, NoLeader)
    late = n0.write(b"late")
    cluster.run(0.01)
    assert isinstance(late.error, NoLeader)


def test_a_read_in_the_core_is_answered_at_the_end(cluster: Cluster) -> None:
    """It is in none of the desk's queues."""
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    cluster.run(0.02)
    read = n0.read()
    cluster.run(0.02)
    assert not n0.replica.desk.reads
    n0.replica.desk.fail_all()
    assert isinstance(read.error, NoLeader)


def test_a_write_on_its_way_to_the_leader_is_unknown_at_the_end(cluster: Cluster) -> None:
    leader, n1, _ = cluster.machines
    leader.clock.pause()
    cluster.run(0.01)
    answers = n1.write(b"k")
    cluster.run(0.01)
    n1.replica.desk.fail_all()
    assert answers.effect == "unknown"


def test_a_lone_node_and_an_empty_one_stop_at_once() -> None:
    cluster = Cluster(1).found()
    node = cluster.machines[0]
    cluster.until(lambda: node.replica.raft.role is Role.LEADER)
    empty = cluster.add("n7")
    empty.seeds = []
    empty.start()
    began = cluster.world.now
    for machine in (node, empty):
        done = stop(machine)
        cluster.until(lambda done=done: done)  # type: ignore[misc]
    assert cluster.world.now - began < 0.2


def test_a_stopped_node_hears_and_answers_nothing(cluster: Cluster) -> None:
    n1 = cluster.machines[1]
    done = stop(n1)
    cluster.until(lambda: done)
    messages = sent(n1)
    answers = Answers()
    cluster.machines[0].transport.request(NodeId("n1"), "write", [b"x"], 1.0, answers)
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, NoLeader)
    assert answers.effect == "no"
    cluster.run(2.0)
    assert messages == []


# -- removal ------------------------------------------------------------------------------------------


def test_a_removed_node_stores_it_answers_everybody_and_ends(cluster: Cluster) -> None:
    """RC-47."""
    leader, _, n2 = cluster.machines
    cluster.until(lambda: n2.replica.catch_up_index)
    gone = Answers()
    leader.replica.remove_member(NodeId("n2"), gone)
    waiting = n2.ask(KvDelete(b"k"))
    cluster.until(lambda: n2.fatal)
    assert gone.calls == 1
    assert isinstance(n2.fatal, Removed)
    assert n2.fatal.served
    assert n2.identity.aside, "durable before the process ends"
    assert waiting.calls == 1
    assert n2.replica.status().state == "removed"
    assert n2.replica.desk.count == 0


def test_a_completion_that_asks_again_while_everything_ends_is_refused(cluster: Cluster) -> None:
    n2 = cluster.machines[2]
    again: list[Answers] = []

    def done(_value: Any, _error: Any) -> None:
        again.append(n2.write(b"again"))

    cluster.isolate(n2)
    cluster.until(lambda: n2.replica.raft.leader_id is None)
    n2.replica.write(KvDelete(b"k"), done)
    n2.replica.write(KvDelete(b"k"), done)
    n2.replica.removed(n2.replica.cluster_id)
    cluster.until(lambda: n2.fatal)
    cluster.run(0.01)
    assert [type(found.error) for found in again] == [NoLeader, NoLeader]


def test_a_loop_that_stood_still_is_said(cluster: Cluster) -> None:
    """RC-69: an operator looks for the reason of an election."""
    leader = cluster.machines[0]
    leader.clock.pause()
    cluster.run(3.0)
    leader.clock.resume()
    cluster.run(1.0)
    assert [2.5 < fields["seconds"] < 3.0 for fields in leader.events("loop_stalled")] == [True]
    assert cluster.machines[1].events("loop_stalled") == []


def test_a_leader_whose_disk_hangs_hands_over(cluster: Cluster) -> None:
    """RC-69: it would heart-beat on, commit through the others, and answer nobody."""
    leader = cluster.machines[0]
    leader.journal.queue.hold = True
    answers = leader.write(b"k")
    cluster.until(lambda: cluster.machines[0].replica.raft.role is not Role.LEADER, 60.0)
    cluster.until(lambda: cluster.leader() not in (None, leader))
    assert leader.events("disk_stalled")
    leader.journal.queue.hold = False
    leader.journal.queue.release()
    cluster.until(lambda: answers.calls)
