"""A crash at every step of a node's housekeeping: log, store, flush and compaction together (RC-10, RC-39).

``tests/disk/test_journal_crashes.py`` enumerates the log alone, ``tests/replica/test_recovery.py`` the
installation of a snapshot. This is what lies between: the store is written unsynced, flushed by one
thread while it is written on by another, and only then may the log forget. Law: whatever a power cut
leaves, log and store meet without a gap, and together they hold every entry that was reported durable.
"""

from __future__ import annotations

import contextlib

import pytest

from kvnode.disk.journal import Compact, JournalCore, Save, open_journal
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.ports import LogBase
from kvnode.raft.types import Entry, EntryKind, HardState, Index, Membership, NodeId, Term
from kvnode.replica.codec import decode, encode
from kvnode.replica.recovery import Recovery, recover
from kvnode.store.commands import KvSet
from kvnode.store.memory import MemoryEngine, MemoryEngineFactory
from kvnode.store.store import Store
from tests.disk.crash_disk import CrashDisk, MachineStopped

MEMBERSHIP = Membership(voters=frozenset({NodeId("a")}))
TERM = Term(1)
ROUNDS = 4


class FlushingEngine(MemoryEngine):
    """A memory engine whose flush is a place for a crash, before and after."""

    __slots__ = ("crash_disk",)
    crash_disk: CrashDisk

    def flush(self) -> None:
        self.crash_disk.step("flush the store")
        super().flush()
        self.crash_disk.step("after the flush")


class Engines(MemoryEngineFactory):
    """Makes such engines."""

    __slots__ = ("_crash_disk",)

    def __init__(self, disk: CrashDisk) -> None:
        super().__init__()
        self._crash_disk = disk

    def open_current(self) -> MemoryEngine:
        super().open_current()
        engine = FlushingEngine(self._current)
        engine.crash_disk = self._crash_disk
        return engine


def entry(index: int) -> Entry:
    data = encode(KvSet(b"k%d" % (index % 7), b"%d" % index))
    return Entry(Index(index), TERM, EntryKind.COMMAND, data)


def apply(store: Store, entries: list[Entry]) -> None:
    store.apply_batch([(e.index, decode(e.data)) for e in entries])


class Machine:
    """One node's disk, and how far its log was reported durable."""

    def __init__(self, seed: int) -> None:
        self.disk = CrashDisk(seed)
        self.engines = Engines(self.disk)
        self.durable = 0
        core, _ = open_journal(self.disk, "/d/raft", fresh=True)
        core.close()
        FileSnapshotStore(self.disk, "/d/snapshots")
        self.disk.operations = 0

    def start(self) -> tuple[JournalCore, Recovery]:
        core, recovered = open_journal(self.disk, "/d/raft", fresh=False)
        snapshots = FileSnapshotStore(self.disk, "/d/snapshots")
        return core, recover(recovered, None, self.engines, snapshots)  # type: ignore[arg-type]

    def live(self) -> None:
        """Rounds of: append, apply, decide to compact, append and apply more, flush, compact."""
        core, recovery = self.start()
        store = recovery.store
        base = recovery.base.last.index
        last = recovery.entries[-1].index if recovery.entries else base
        apply(store, [e for e in recovery.entries if e.index > store.applied_index])
        for _ in range(ROUNDS):
            last = self.append(core, store, last, 6)
            target = Index(min(store.applied_index, base + max(1, (last - base) // 2)))
            last = self.append(core, store, last, 2)  # the loop does not wait for the worker
            store.engine.flush()
            core.rest()  # nobody may have written for a while
            last = self.append(core, store, last, 1)
            core.run([Compact(LogBase(entry(target).id, MEMBERSHIP))])
            base = target
        core.close()

    def append(self, core: JournalCore, store: Store, last: int, count: int) -> int:
        for index in range(last + 1, last + count + 1):
            hard_state = HardState(TERM, None) if index == 1 else None
            core.run([Save(hard_state, [entry(index)])])
            self.durable = index
            # Applied only now: the store never leads the log.
            apply(store, [entry(index)])
        return last + count

    def power_cut(self, keep: int) -> None:
        self.disk.crash()
        self.engines.crash(keep)


def check(machine: Machine) -> None:
    """Log and store meet, and hold everything durable between them."""
    core, recovery = machine.start()
    store, base = recovery.store, recovery.base.last.index
    last = recovery.entries[-1].index if recovery.entries else base
    assert base <= store.applied_index <= last, "a gap, or a store that leads the log"
    assert last >= machine.durable, "a durable entry is gone"
    apply(store, [e for e in recovery.entries if e.index > store.applied_index])
    model = Store(MemoryEngine())
    apply(model, [entry(index) for index in range(1, last + 1)])
    assert store.digest == model.digest
    assert [p.value for p in store.list(b"")] == [p.value for p in model.list(b"")]
    core.close()


def operations() -> int:
    machine = Machine(0)
    machine.live()
    return machine.disk.operations


@pytest.mark.parametrize("kept", ["nothing", "half", "all"])
def test_a_power_cut_at_any_step_leaves_a_log_and_a_store_that_meet(kept: str) -> None:
    """The store loses any suffix of what it had not flushed; the log fills it up again."""
    total = operations()
    assert total > 60, "the story has that many steps"
    for at in range(1, total + 1):
        machine = Machine(at)
        machine.disk.crash_at = at
        with pytest.raises(MachineStopped):
            machine.live()
        unsynced = machine.engines.unsynced_batches()
        machine.power_cut({"nothing": 0, "half": unsynced // 2, "all": unsynced}[kept])
        check(machine)


def test_it_may_stop_again_and_again() -> None:
    """Each life does some of it and is cut off, also while it starts; what was durable once stays."""
    for at in range(1, 40, 3):
        machine = Machine(1000 + at)
        for life in range(6):
            machine.disk.operations = 0
            machine.disk.crash_at = at + 7 * life
            with contextlib.suppress(MachineStopped):
                machine.live()
            machine.power_cut(machine.engines.unsynced_batches() // (life + 1))
            check(machine)
            machine.power_cut(0)


def test_the_law_can_be_broken() -> None:
    """Compacting what was not flushed is what the whole order is for: here it is noticed."""
    machine = Machine(5)
    core, recovery = machine.start()
    last = machine.append(core, recovery.store, 0, 8)
    core.run([Compact(LogBase(entry(last).id, MEMBERSHIP))])
    core.close()
    machine.power_cut(0)
    with pytest.raises(Exception, match="the store lost data that had been synced"):
        machine.start()
