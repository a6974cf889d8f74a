"""Snapshots between nodes: streams out and in, whatever breaks (RC-36 to RC-41, RC-70)."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import (
    CorruptLog,
    DiskFailed,
    DiskFull,
    InvariantBroken,
    KvnodeError,
    Overloaded,
    PeerUnreachable,
)
from kvnode.raft.messages import Heartbeat, InstallSnapshot
from kvnode.raft.types import HardState, Index, LogId, Member, NodeId, SnapshotMeta, Term
from kvnode.replica.facade import Consistency
from tests.replica.harness import Answers, Cluster, Machine


def behind(count: int = 3, **settings: Any) -> tuple[Cluster, Machine, Machine]:
    """A cluster whose last member missed what the leader has compacted away, and is still cut off."""
    cluster = Cluster(count, log_entries_max=10, **settings).found()
    leader, late = cluster.led_by(0), cluster.machines[-1]
    cluster.isolate(late)
    for number in range(40):
        leader.write(b"%d" % number)
    cluster.until(lambda: leader.replica.raft.log.base.index > 20)
    return cluster, leader, late


def until_loading(cluster: Cluster, late: Machine) -> None:
    """Up to where the snapshot is whole on the disk, and the next job loads it."""
    while late.snapshots.whole is None:
        cluster.run(0.05)
        late.worker.queue.release(1)
    cluster.run(0.2)


def caught_up(leader: Machine, late: Machine) -> bool:
    return (
        late.replica.store.applied_index == leader.replica.store.applied_index
        and late.replica.store.digest == leader.replica.store.digest
        and not late.replica.receiver.loading
    )


def test_a_follower_far_behind_gets_a_snapshot_and_goes_on() -> None:
    cluster, leader, late = behind()
    cluster.network.heal()
    cluster.until(lambda: caught_up(leader, late))
    assert late.snapshots.log == ["begin", "write", "write", "commit", "discard"]
    answers = late.write(b"after")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    assert late.snapshots.whole is None


def test_nothing_is_applied_and_no_read_is_released_while_a_snapshot_is_loaded() -> None:
    """RC-38. Stale reads go on, from the engine that was there."""
    cluster, _leader, late = behind()
    late.worker.queue.hold = True
    cluster.network.heal()
    cluster.until(lambda: len(late.worker.queue))
    before = late.replica.store.applied_index
    until_loading(cluster, late)
    answers, stale = late.read(), Answers()
    late.replica.read(Consistency.STALE, stale)
    cluster.run(0.5)
    assert late.replica.store.applied_index == before
    assert answers.calls == 0
    assert stale.calls == 1
    assert late.replica.store.get(b"39") is None
    late.worker.queue.release(1)  # loaded; the old engine is still to be closed
    assert late.replica.store.get(b"39") is not None
    late.worker.queue.hold = False
    late.worker.queue.release()
    cluster.until(lambda: answers.calls)
    assert answers.error is None


def test_the_old_engine_is_closed_only_after_the_new_one_is_in_place() -> None:
    """A stale read between the two would meet a closed engine."""
    cluster, leader, late = behind()
    old = late.replica.store.engine
    order: list[str] = []
    close, replace = old.close, late.replica.store.replace
    closing: Any = lambda: (order.append("close"), close())  # noqa: E731
    replacing: Any = lambda engine: (order.append("replace"), replace(engine))[1]  # noqa: E731

    class Spied:
        def __getattr__(self, name: str) -> Any:
            return closing if name == "close" else getattr(old, name)

    class Store:
        def __getattr__(self, name: str) -> Any:
            if name == "replace":
                return replacing
            return getattr(real, name)

    real = late.replica.store
    real.engine = Spied()  # type: ignore[assignment]
    late.replica.store = Store()  # type: ignore[assignment]
    cluster.network.heal()
    cluster.until(lambda: "close" in order)
    assert order == ["replace", "close"]
    assert leader.fatal is None


def test_a_leader_that_loads_a_snapshot_has_none_to_send() -> None:
    """Its log begins after what its store holds; it stopped on an assertion here."""
    cluster, _leader, late = behind()
    late.worker.queue.hold = True
    cluster.network.heal()
    until_loading(cluster, late)
    cluster.until(lambda: late.replica.raft.log.base.index > 20)
    raft, before = late.replica.raft, late.replica.store.applied_index
    assert before < raft.log.base.index
    meta = SnapshotMeta(raft.log.base, raft.membership)
    late.replica.sender.start(InstallSnapshot(raft.id, NodeId("n1"), raft.term, meta))
    assert late.replica.sender.busy_with is None


@pytest.mark.parametrize("step", ["begin", "write", "commit"])
def test_a_snapshot_that_does_not_fit_is_dropped_and_the_node_goes_on(step: str) -> None:
    """RC-70: not a crash loop. It is tried again, but not without a pause."""
    cluster, leader, late = behind()
    late.snapshots.fail[step] = DiskFull("no space left")
    cluster.network.heal()
    began, asked = cluster.world.now, len(leader.events("snapshot_needed"))
    cluster.until(lambda: len(leader.events("snapshot_send_failed")) >= 3)
    assert len(leader.events("snapshot_needed")) - asked <= 6, "nor does the log fill with it"
    assert cluster.world.now - began >= 2 * leader.settings.snapshot_pause_s
    assert late.fatal is None
    assert not late.replica.receiver.loading or step == "commit"
    answers = leader.write(b"more")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    late.snapshots.fail.clear()
    cluster.until(lambda: caught_up(leader, late))


@pytest.mark.parametrize("step", ["write", "commit", "discard"])
def test_a_disk_that_fails_under_a_snapshot_stops_the_node(step: str) -> None:
    """RC-8."""
    cluster, _leader, late = behind()
    late.snapshots.fail[step] = DiskFailed("input/output error")
    cluster.network.heal()
    cluster.until(lambda: late.fatal)
    assert isinstance(late.fatal, DiskFailed)


def test_a_worker_that_refuses_ends_the_stream_and_nothing_else() -> None:
    cluster, leader, late = behind()
    late.worker.refusal = Overloaded("too many jobs")
    cluster.network.heal()
    cluster.until(lambda: leader.events("snapshot_send_failed"))
    assert late.fatal is None
    late.worker.refusal = None
    cluster.until(lambda: caught_up(leader, late))


def test_a_node_that_is_nearly_full_takes_no_snapshot() -> None:
    cluster, leader, late = behind()
    late.replica.write_refusal = "1 MiB free"
    cluster.network.heal()
    cluster.until(lambda: leader.events("snapshot_send_failed"))
    assert late.snapshots.log == []
    late.replica.write_refusal = ""
    cluster.until(lambda: caught_up(leader, late))


def test_a_leader_whose_own_store_cannot_be_read_stops() -> None:
    """RC-71: else it would send broken streams for ever."""
    cluster, leader, _late = behind()

    class Broken:
        def __next__(self) -> bytes:
            raise CorruptLog("a block does not match its checksum")

        def close(self) -> None: ...

    store: Any = leader.replica.store

    class Store:
        def __getattr__(self, name: str) -> Any:
            return Broken if name == "dump" else getattr(store, name)

    leader.replica.store = Store()  # type: ignore[assignment]
    cluster.network.heal()
    cluster.until(lambda: leader.fatal)
    assert isinstance(leader.fatal, CorruptLog)


# -- the sender alone -----------------------------------------------------------------------------


class Dumps:
    """Counts what is opened and closed."""

    def __init__(self, machine: Machine) -> None:
        self.open = self.closed = 0
        store: Any = machine.replica.store
        dumps = self

        class Counted:
            def __init__(self) -> None:
                dumps.open += 1
                self._dump = store.dump()

            def __next__(self) -> bytes:
                chunk: bytes = next(self._dump)
                return chunk

            def close(self) -> None:
                dumps.closed += 1
                self._dump.close()

        class Store:
            def __getattr__(self, name: str) -> Any:
                return Counted if name == "dump" else getattr(store, name)

        machine.replica.store = Store()  # type: ignore[assignment]


@pytest.mark.parametrize("trouble", ["none", "refused", "cut", "no_space"])
def test_a_dump_is_closed_exactly_once_however_the_stream_ends(trouble: str) -> None:
    """An open one keeps the engine's directory locked."""
    cluster, leader, late = behind(snapshot_pause_s=100.0)
    dumps = Dumps(leader)
    if trouble == "refused":
        late.replica.receiver.loading = True
    if trouble == "no_space":
        late.snapshots.fail["write"] = DiskFull("no space")
    cluster.network.heal()
    cluster.until(lambda: dumps.open)
    if trouble == "cut":
        cluster.isolate(late)
    cluster.until(lambda: dumps.closed)
    cluster.run(5.0)
    assert (dumps.open, dumps.closed) == (1, 1)
    assert leader.replica.sender.busy_with is None


def test_a_deposed_leader_ends_its_stream() -> None:
    """Nobody needs it any more, and it keeps the next leader's out."""
    cluster, leader, late = behind()
    leader.worker.queue.hold = True
    cluster.network.heal()
    cluster.until(lambda: leader.replica.sender.busy_with)
    asked: list[Any] = []
    sent: list[Any] = []

    def send_snapshot(to: NodeId, term: int, meta: Any, next_chunk: Any, done: Any) -> None:
        asked.append(next_chunk)
        sent.append(done)

    leader.replica.sender.busy_with = None
    leader.transport.send_snapshot = send_snapshot  # type: ignore[method-assign]
    raft = leader.replica.raft
    meta = SnapshotMeta(raft.log.base, raft.membership)
    late_id = late.record.node_id
    leader.replica.sender.start(InstallSnapshot(raft.id, late_id, raft.term, meta))
    higher = Heartbeat(NodeId("n1"), raft.id, Term(raft.term + 1), Index(0), 0)
    raft.step(higher)
    answers = Answers()
    asked[0](answers)
    cluster.run(0.01)
    assert isinstance(answers.error, PeerUnreachable)


# -- the receiver alone ---------------------------------------------------------------------------


class Receiving:
    """One member that hears of snapshots from two leaders."""

    def __init__(self) -> None:
        self.cluster = Cluster(3).found()
        self.cluster.led_by(0)
        self.node = self.cluster.machines[2]
        self.cluster.isolate(self.node)
        self.cluster.run(0.01)
        self.receiver = self.node.replica.receiver
        raft = self.node.replica.raft
        self.term = raft.term
        self.meta = SnapshotMeta(LogId(Index(50), self.term), raft.membership)
        self.hellos = [machine.transport.hello for machine in self.cluster.machines]

    def chunk(self, sender: int, chunk: bytes = b"x") -> KvnodeError | None:
        answers: list[KvnodeError | None] = []
        self.receiver.chunk(self.hellos[sender], chunk, answers.append)
        self.cluster.run(0.01)
        assert len(answers) == 1
        return answers[0]

    def end(self, sender: int, ok: bool = True) -> KvnodeError | None:
        answers: list[KvnodeError | None] = []
        self.receiver.end(self.hellos[sender], ok, answers.append)
        self.cluster.run(0.01)
        assert len(answers) == 1
        return answers[0]


@pytest.fixture
def receiving() -> Receiving:
    return Receiving()


def test_a_newer_leaders_stream_replaces_an_older_ones(receiving: Receiving) -> None:
    r = receiving
    assert r.receiver.begin(r.hellos[0], r.term, r.meta)
    assert r.chunk(0) is None
    assert not r.receiver.begin(r.hellos[1], r.term, r.meta), "one at a time in one term"
    assert r.receiver.begin(r.hellos[1], r.term + 1, r.meta)
    assert isinstance(r.chunk(0), PeerUnreachable), "the old one is told"
    assert isinstance(r.end(0, ok=False), PeerUnreachable), "and does not end the new one"
    assert r.chunk(1) is None
    assert r.node.snapshots.log == ["begin", "write", "abort", "begin", "write"]


def test_a_stream_of_a_term_that_has_passed_is_ended_at_its_next_chunk(
    receiving: Receiving,
) -> None:
    r = receiving
    assert r.receiver.begin(r.hellos[0], r.term, r.meta)
    raft = r.node.replica.raft
    raft.step(Heartbeat(NodeId("n1"), raft.id, Term(r.term + 1), Index(0), 0))
    assert isinstance(r.chunk(0), PeerUnreachable)
    assert r.end(0, ok=False) is None
    assert not r.receiver.begin(r.hellos[0], r.term, r.meta)
    assert r.receiver.begin(r.hellos[1], r.term + 1, r.meta)


def test_a_stream_that_broke_off_leaves_nothing_and_the_next_may_begin(
    receiving: Receiving,
) -> None:
    r = receiving
    assert r.receiver.begin(r.hellos[0], r.term, r.meta)
    assert r.chunk(0) is None
    assert r.end(0, ok=False) is None
    assert isinstance(r.chunk(0), PeerUnreachable)
    assert r.receiver.begin(r.hellos[0], r.term, r.meta)


def test_what_brings_nothing_is_refused(receiving: Receiving) -> None:
    r = receiving
    commit = r.node.replica.raft.log.commit_index
    held = SnapshotMeta(LogId(commit, r.term), r.meta.membership)
    assert not r.receiver.begin(r.hellos[0], r.term, held)
    assert not r.receiver.begin(r.hellos[0], r.term - 1, r.meta)


def test_a_snapshot_that_the_core_does_not_need_any_more_is_dropped(
    receiving: Receiving,
) -> None:
    """The term passed while its last bytes were synced: ``loading`` must not stay."""
    r = receiving
    assert r.receiver.begin(r.hellos[0], r.term, r.meta)
    assert r.chunk(0) is None
    r.node.worker.queue.hold = True
    answers: list[KvnodeError | None] = []
    r.receiver.end(r.hellos[0], True, answers.append)
    raft = r.node.replica.raft
    raft.step(Heartbeat(NodeId("n1"), raft.id, Term(r.term + 1), Index(0), 0))
    r.node.worker.queue.hold = False
    r.node.worker.queue.release()
    r.cluster.run(0.1)
    assert answers == [None]
    assert not r.receiver.loading
    assert r.node.snapshots.whole is None
    assert r.node.fatal is None


def test_the_hard_state_is_saved_before_the_log_is_reset(receiving: Receiving) -> None:
    """A crash in between would leave a log of a later term than the hard state: unreadable (RC-37)."""
    r = receiving
    term = Term(r.term + 3)
    meta = SnapshotMeta(LogId(Index(50), Term(r.term + 2)), r.meta.membership)
    r.node.journal.queue.hold = True
    r.node.journal.calls.clear()
    r.node.replica.step_snapshot(InstallSnapshot(NodeId("n1"), NodeId("n2"), term, meta))
    assert r.node.journal.calls[:2] == ["save+state", "reset"]
    r.node.journal.queue.release(2)  # the fake journal looks at the terms, as a start would
    assert r.node.hard_state == HardState(term, None)
    assert r.node.base.last == meta.last


def test_a_log_position_that_was_skipped_leaves_its_writes_unknown() -> None:
    """RC-58: whether they are part of the snapshot cannot be told from here."""
    cluster = Cluster(3).found()
    n0 = cluster.led_by(0)
    cluster.isolate(n0)
    answers = n0.write(b"k")
    cluster.run(0.01)
    raft = n0.replica.raft
    committed = Answers()
    n0.replica.admin.when_committed(raft.log.last, 100.0, lambda e: committed(None, e))
    term = Term(raft.term + 1)
    meta = SnapshotMeta(LogId(Index(50), term), raft.membership)
    n0.replica.receiver.loading = True
    n0.replica.step_snapshot(InstallSnapshot(NodeId("n1"), raft.id, term, meta))
    assert answers.effect == "unknown"
    assert committed.effect == "unknown"


def test_a_snapshot_of_another_position_than_it_said_stops_the_node() -> None:
    cluster, leader, late = behind()
    cluster.network.heal()
    cluster.until(lambda: late.snapshots.whole)
    assert late.snapshots.whole is not None
    meta, chunks = late.snapshots.whole
    late.snapshots.whole = (meta, chunks[:-1])
    cluster.until(lambda: late.fatal)
    assert isinstance(late.fatal, CorruptLog | InvariantBroken)
    assert leader.fatal is None


def test_a_learner_gets_its_first_state_by_a_snapshot() -> None:
    cluster, leader, _ = behind()
    new = cluster.add("n9")
    new.start()
    cluster.until(lambda: new.replica.cluster_id)
    cluster.until(lambda: caught_up(leader, new))
    assert leader.replica.raft.membership.member(NodeId("n9")) == Member(NodeId("n9"), "n9", "n9:1")


def test_readiness_can_say_how_far_the_copying_is() -> None:
    """It may take minutes, and looks like nothing from outside."""
    cluster = Cluster(2).found()
    cluster.led_by(0)
    replica, sender = cluster.machines[1].replica, cluster.machines[0].transport.hello
    assert replica.status().reason == ""
    meta = SnapshotMeta(LogId(Index(1000), Term(9)), replica.raft.membership)
    assert replica.receiver.begin(sender, 9, meta)
    answers = []
    replica.receiver.chunk(sender, b"x" * (3 << 20), answers.append)
    assert replica.status().reason == "copying the data of n0: 3 MiB so far"
    replica.receiver.end(sender, ok=False, done=answers.append)
    cluster.run(0.1)
    assert replica.status().reason == ""
