"""A crash at every step of a snapshot's installation leaves the old or the new state, never a gap (RC-37)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvnode.disk.journal import JournalCore, Operation, Reset, Save, open_journal
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.errors import CorruptLog, KvnodeError
from kvnode.ports import LogBase, Recovered
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
    HardState,
    Index,
    LogId,
    Member,
    Membership,
    NodeId,
    SnapshotMeta,
    Term,
)
from kvnode.replica.codec import encode
from kvnode.replica.recovery import Recovery, load_snapshot, recover
from kvnode.store.commands import KvSet
from kvnode.store.memory import MemoryEngine, MemoryEngineFactory
from kvnode.store.store import Store
from tests.disk.crash_disk import CrashDisk, MachineStopped
from tests.replica.harness import Cluster, Machine
from tests.replica.test_snapshots import behind, caught_up

MEMBERSHIP = Membership(
    voters=frozenset({NodeId("a")}), members=(Member(NodeId("a"), "n-0", "h:1"),)
)
LAST = LogId(Index(10), Term(3))
META = SnapshotMeta(LAST, MEMBERSHIP)
AFTER = Entry(Index(11), Term(3), EntryKind.COMMAND, encode(KvSet(b"after", b"v")))


def entries(first: int, last: int, term: int) -> list[Entry]:
    return [
        Entry(Index(i), Term(term), EntryKind.COMMAND, encode(KvSet(b"%d" % i, b"old")))
        for i in range(first, last + 1)
    ]


# -- with the real files ----------------------------------------------------------------------------


class Engines(MemoryEngineFactory):
    """Generations whose every step is a place for a crash."""

    __slots__ = ("_crash_disk",)

    def __init__(self, disk: CrashDisk) -> None:
        super().__init__()
        self._crash_disk = disk

    def create_next(self) -> MemoryEngine:
        self._crash_disk.step("make an engine")
        return super().create_next()

    def switch_to_next(self) -> None:
        self._crash_disk.step("switch the engine")
        super().switch_to_next()
        self._crash_disk.step("after the switch")


class DirectJournal:
    """Runs each call at once; what a start queues is durable a moment later."""

    def __init__(self, core: JournalCore) -> None:
        self._core = core

    def save(
        self, state: HardState | None, saved: Any, done: Callable[[KvnodeError | None], None]
    ) -> None:
        self._run(Save(state, saved), done)

    def reset(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        self._run(Reset(base), done)

    def compact(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        raise AssertionError("not at a start")

    def pending(self) -> int:
        return 0

    def _run(self, operation: Operation, done: Callable[[KvnodeError | None], None]) -> None:
        self._core.run([operation])
        done(None)


class Volume:
    """A follower's disk before the snapshot: some log, a store that applied two entries of it."""

    def __init__(self, seed: int, log: list[Entry]) -> None:
        self.disk = CrashDisk(seed)
        self.engines = Engines(self.disk)
        core, _ = open_journal(self.disk, "/d/raft", fresh=True)
        core.run([Save(HardState(Term(log[-1].term if log else 1), None), log)])
        core.close()
        store = Store(self.engines.open_current())
        store.apply_batch([(e.index, KvSet(b"%d" % e.index, b"old")) for e in log[:2]])
        store.engine.flush()
        self.log = log

    def chunks(self) -> list[bytes]:
        engine = MemoryEngine()
        store = Store(engine)
        store.apply_batch([(i, KvSet(b"new", b"%d" % i)) for i in range(1, LAST.index + 1)])
        return list(store.dump())

    def install(self, order: str, *, keeps_log: bool) -> None:
        """The steps of the driver, in the order in which its two threads may do them."""
        core, _ = open_journal(self.disk, "/d/raft", fresh=False)
        snapshots = FileSnapshotStore(self.disk, "/d/snapshots")
        writer = snapshots.begin(META)
        for chunk in self.chunks():
            writer.write(chunk)
        writer.commit()
        term = Term(4)

        def journal() -> None:
            if keeps_log:
                core.run([Save(HardState(term, None), [])])
                return
            core.run([Save(HardState(term, None), [])])
            core.run([Reset(LogBase(LAST, MEMBERSHIP))])
            core.run([Save(None, [AFTER])])

        def worker() -> None:
            complete = snapshots.complete()
            assert complete is not None
            load_snapshot(self.engines, snapshots, complete[1])

        for step in (journal, worker) if order == "journal" else (worker, journal):
            step()
        snapshots.discard()
        core.close()

    def recover(self) -> tuple[Recovered, Recovery]:
        core, recovered = open_journal(self.disk, "/d/raft", fresh=False)
        snapshots = FileSnapshotStore(self.disk, "/d/snapshots")
        recovery = recover(recovered, DirectJournal(core), self.engines, snapshots)
        if recovery.pending_snapshot:
            snapshots.discard()
        core.close()
        return recovered, recovery


LOGS = {
    "empty": [],
    "short": entries(1, 5, 1),
    "conflicting": entries(1, 14, 2),
    "matching": [*entries(1, 9, 2), *entries(10, 14, 3)],
}


def operations(name: str, order: str) -> int:
    volume = Volume(0, LOGS[name])
    volume.disk.operations = 0
    volume.install(order, keeps_log=name == "matching")
    return volume.disk.operations


def check(volume: Volume, recovery: Recovery) -> None:
    """Old or new, and no gap between the store and the log."""
    applied = recovery.store.applied_index
    base = recovery.base.last.index
    last = recovery.entries[-1].index if recovery.entries else base
    assert base <= applied <= last
    positions = [base, *(entry.index for entry in recovery.entries)]
    assert positions == list(range(base, last + 1)), "a gap in the log"
    newest = recovery.entries[-1].term if recovery.entries else recovery.base.last.term
    assert recovery.hard_state.term >= newest
    if applied >= LAST.index:
        assert recovery.store.get(b"new") is not None
    else:
        assert recovery.entries == volume.log
        assert applied <= 2


@pytest.mark.parametrize("order", ["journal", "worker"])
@pytest.mark.parametrize("name", LOGS)
def test_the_machine_may_stop_at_any_step(name: str, order: str) -> None:
    installed = 0
    for at in range(1, operations(name, order) + 1):
        volume = Volume(at, LOGS[name])
        volume.disk.crash_at = volume.disk.operations + at
        with pytest.raises(MachineStopped):
            volume.install(order, keeps_log=name == "matching")
        volume.disk.crash()
        volume.engines.crash(0)
        _, recovery = volume.recover()
        check(volume, recovery)
        installed += recovery.store.applied_index == LAST.index
        if name == "matching":
            assert recovery.entries[-1].index == 14, "the suffix is kept (RC-37)"
        # What the first start left behind, the second one finds.
        recovery.store.engine.close()
        volume.engines.crash(0)
        check(volume, volume.recover()[1])
    assert installed, "the snapshot's file is the commit point"


@pytest.mark.parametrize("name", LOGS)
def test_the_machine_may_stop_again_at_any_step_of_the_start(name: str) -> None:
    """A start that installs is an installation as well."""
    at = 0
    while True:
        at += 1
        volume = Volume(at, LOGS[name])
        snapshots = FileSnapshotStore(volume.disk, "/d/snapshots")
        writer = snapshots.begin(META)
        for chunk in volume.chunks():
            writer.write(chunk)
        writer.commit()
        volume.disk.operations = 0
        volume.disk.crash_at = at
        try:
            volume.recover()
        except MachineStopped:
            volume.disk.crash()
            volume.engines.crash(0)
        else:
            break
        _, recovery = volume.recover()
        check(volume, recovery)
        assert recovery.store.applied_index == LAST.index
    assert at > 3


@pytest.mark.parametrize(
    ("applied", "base", "last"),
    [(3, 5, 8), (9, 5, 8)],
    ids=["store behind the log's base", "store ahead of the log"],
)
def test_a_store_and_a_log_that_do_not_fit_stop_the_node(
    applied: int, base: int, last: int
) -> None:
    """RC-10: something that had been synced is gone; going on would serve a hole."""
    engines = MemoryEngineFactory()
    store = Store(engines.open_current())
    store.apply_batch([(i, KvSet(b"k", b"v")) for i in range(1, applied + 1)])
    log = entries(base + 1, last, 1)
    recovered = Recovered(
        HardState(Term(1), None), LogBase(LogId(Index(base), Term(1)), MEMBERSHIP), log
    )

    class Nothing:
        def complete(self) -> None:
            return None

    with pytest.raises(CorruptLog, match="set this node's data aside"):
        recover(recovered, None, engines, Nothing())  # type: ignore[arg-type]


def test_an_empty_disk_is_an_empty_node() -> None:
    recovered = Recovered(HardState(Term(0), None), LogBase(ZERO, Membership()), [])

    class Nothing:
        def complete(self) -> None:
            return None

    recovery = recover(recovered, None, MemoryEngineFactory(), Nothing())  # type: ignore[arg-type]
    assert recovery.store.applied_index == 0
    assert not recovery.pending_snapshot


# -- with the real driver ---------------------------------------------------------------------------


def step(cluster: Cluster, late: Machine, first: str) -> bool:
    """Complete one thing of the disk; the named thread goes first while it has any."""
    queues = [late.journal.queue, late.worker.queue]
    if first == "worker":
        queues.reverse()
    for queue in queues:
        if len(queue):
            queue.release(1)
            return True
    cluster.run(0.02)
    return False


@pytest.mark.parametrize("power_lost", [False, True])
@pytest.mark.parametrize("first", ["journal", "worker"])
def test_the_process_may_die_between_any_two_completions(first: str, power_lost: bool) -> None:
    done = 0
    for kill_after in range(1, 60):
        cluster, leader, late = behind()
        late.journal.queue.hold = late.worker.queue.hold = True
        cluster.network.heal()
        done = 0
        while done < kill_after and not caught_up(leader, late):
            done += step(cluster, late, first)
        finished = caught_up(leader, late)
        late.kill()
        if power_lost:
            late.engines.crash(0)
        late.start()
        cluster.until(lambda leader=leader, late=late: caught_up(leader, late))  # type: ignore[misc]
        assert late.fatal is None
        assert late.snapshots.whole is None
        if finished:
            break
    assert done > 5, "the story has that many steps"
