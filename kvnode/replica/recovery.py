"""What a node makes of its disk at start, before it says anything to anybody.

The store may lag behind the log, never lead it (RC-10). A received snapshot that was complete on disk
when the node stopped is loaded again from its beginning: its file is the commit point (RC-37).
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.errors import CorruptLog
from kvnode.ports import Journal, LogBase, Recovered, SnapshotStore
from kvnode.raft.types import Entry, HardState
from kvnode.store.engine import Engine, EngineFactory
from kvnode.store.snapshot import load
from kvnode.store.store import Store


class Recovery(NamedTuple):
    """A consistent start."""

    hard_state: HardState
    base: LogBase
    entries: list[Entry]
    store: Store
    pending_snapshot: bool
    """A finished snapshot is to be discarded once everything queued on the journal is durable."""


def recover(
    recovered: Recovered, journal: Journal, engines: EngineFactory, snapshots: SnapshotStore
) -> Recovery:
    """Bring log, store and a left-over snapshot together. Slow work; runs before the loop matters.

    Raises:
        CorruptLog: Store and log do not fit together: something that was synced is gone.
    """
    hard_state, base, entries = recovered
    engine = engines.open_current()
    complete = snapshots.complete()
    if complete is not None:
        meta, handle = complete
        if meta.last.index > Store(engine).applied_index:
            old, engine = engine, load_snapshot(engines, snapshots, handle)
            old.close()
        if hard_state.term < meta.last.term:
            hard_state = HardState(meta.last.term, None)
            journal.save(hard_state, (), _queued)
        position = meta.last.index - base.last.index - 1
        held = position < 0 or (position < len(entries) and entries[position].id == meta.last)
        if meta.last.index > base.last.index and not held:
            base, entries = LogBase(meta.last, meta.membership), []
            journal.reset(base, _queued)
    store = Store(engine)
    _check(store, base, entries)
    return Recovery(hard_state, base, entries, store, complete is not None)


def load_snapshot(engines: EngineFactory, snapshots: SnapshotStore, handle: str) -> Engine:
    """Load a received snapshot into the next generation of the engine and make it current.

    The caller closes the engine of the former generation, once nobody reads it any more.
    """
    fresh = engines.create_next()
    load(fresh, snapshots.read(handle))
    fresh.flush()
    engines.switch_to_next()
    return fresh


def _check(store: Store, base: LogBase, entries: list[Entry]) -> None:
    last = entries[-1].index if entries else base.last.index
    applied = store.applied_index
    if applied < base.last.index:
        raise CorruptLog(
            f"the store has applied {applied}, but the log begins only after {base.last.index}: "
            "the store lost data that had been synced; set this node's data aside and let it rejoin"
        )
    if applied > last:
        raise CorruptLog(
            f"the store has applied {applied}, but the log ends at {last}: "
            "the log lost entries that had been synced; set this node's data aside and let it rejoin"
        )


def _queued(_error: object) -> None:
    """The journal reports a failure to every later call as well."""
