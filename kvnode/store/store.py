"""The store: applies committed entries to an engine and answers reads. See the package's essay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from struct import error as StructError
from typing import Any, Final

from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store import control, history, kv, locks, once, own, reads, registry, restore, txn
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    ReapGraves,
    ReapLockDelays,
    RestoreDrop,
    RestoreFinish,
    RestorePiece,
    Result,
    SessionCreate,
    SessionDestroy,
    TrimHistory,
    Txn,
    TxnOutcome,
)
from kvnode.store.control_commands import AutopilotSet, EventFire
from kvnode.store.engine import Engine
from kvnode.store.own_commands import KvAdd, KvCopy, KvExpire, KvPut, Once, ReapOnce
from kvnode.store.records import (
    DELAY_ORDER,
    META_KEY,
    ONCE_COUNT,
    ONCE_ORDER,
    KVPair,
    Meta,
    Session,
    decode_meta,
)
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_reads import Registry, bind_sessions
from kvnode.store.registry_records import Check
from kvnode.store.snapshot import Dump
from kvnode.store.tables import Transaction
from kvnode.store.view import View

ChangeListener = Callable[[int, bytes, bool], None]
"""Called with the index, the key or prefix, and whether everything under that prefix was deleted."""

SessionListener = Callable[[int, str, Session | None], None]
"""Called with the index, the id, and the session when it began, None when it ended."""

EventListener = Callable[[int], None]
"""Called with the index of the newest event."""

TtlListener = Callable[[bytes, int, int], None]
"""Called with a key, the index at which its time began, and nanoseconds; both 0: it does not expire any
more."""
RegistryListener = Callable[[int, bytes], None]
"""Called with the index and the name of an index of the registry that has moved (``registry.touch``)."""

CheckListener = Callable[[int, Check | None], None]
"""Called with the index and a check that was written, be it with the content that it had; one without a
status is one that was removed."""

DIGESTS_KEPT: Final = 1 << 15
"""For how many of the last applied indexes ``digest_at`` knows the answer."""

_RING_MASK: Final = DIGESTS_KEPT - 1

_HANDLERS: Final[dict[type[Command], Callable[[Transaction, int, Any], Result]]] = {
    KvSet: kv.set_key,
    KvDelete: kv.delete_key,
    KvDeleteTree: kv.delete_tree,
    ReapGraves: kv.reap_graves,
    KvLock: locks.lock_key,
    KvUnlock: locks.unlock_key,
    SessionCreate: locks.create_session,
    SessionDestroy: locks.destroy_session,
    ReapLockDelays: locks.reap_delays,
    Txn: txn.run_txn,
    AutopilotSet: control.set_autopilot,
    EventFire: control.fire_event,
    TrimHistory: history.trim_history,
    KvPut: own.put_key,
    KvAdd: own.add_to_key,
    KvExpire: own.expire_keys,
    KvCopy: own.copy_keys,
    Once: lambda tx, index, command: once.run_once(tx, index, command, _HANDLERS),
    ReapOnce: once.reap_once,
    Register: registry.register,
    Deregister: registry.deregister,
    UpdateCheck: registry.update_check,
    RestorePiece: restore.stage,
    RestoreFinish: restore.finish,
    RestoreDrop: restore.drop,
}

KVPairs = list[KVPair]
Sessions = list[Session]


class Store:
    """The replicated state. Owned by one task: no method is safe to call from another thread,
    except reading a ``Dump`` made by ``dump``.

    Attributes:
        engine: Where the data is. Written by nobody else.
        on_change: Called for each change, in index order, after its whole batch has been written;
            None costs nothing. For a deleted tree it is called once, with the prefix; after
            ``replace`` once with the empty prefix. It must not raise and must not call
            ``apply_batch``.
        on_session: Called likewise for each session that began or ended; after ``replace`` once
            with an empty id: any may have.
        restored_index: Where everything was replaced by an archive's content for the last time; 0:
            never. The index of a read is not below it, whatever it finds.
        on_event: Called likewise when events were fired; after ``replace`` in any case.
        on_ttl: Called likewise for each key whose time began, or that does not expire any more; after
            ``replace`` once with an empty key: any may have.
        on_registry: Called likewise for each index of the registry that moved; after ``replace`` once
            with an empty name: any may have.
        on_check: Called likewise for each check that was written or removed; after ``replace`` once
            with None: any may have been.
    """

    __slots__ = (
        "_events",
        "_meta",
        "_ring",
        "_ring_first",
        "engine",
        "on_change",
        "on_check",
        "on_event",
        "on_registry",
        "on_session",
        "on_ttl",
        "restored_index",
    )

    def __init__(self, engine: Engine) -> None:
        """Open the store that an engine holds; an empty engine is an empty store.

        Raises:
            CorruptLog: The engine holds data but no state, or state of an unknown form.
            DiskFailed: The engine could not be read.
        """
        self.engine = engine
        self.on_change: ChangeListener | None = None
        self.on_session: SessionListener | None = None
        self.on_event: EventListener | None = None
        self.on_ttl: TtlListener | None = None
        self.on_registry: RegistryListener | None = None
        self.on_check: CheckListener | None = None
        self._ring: list[int] = [0] * DIGESTS_KEPT
        self._open(engine)

    def _open(self, engine: Engine) -> None:
        self._meta = read_meta(engine)
        self._events: tuple[control.Event, ...] | None = None
        """What ``events`` has read, until it changes."""
        if self._meta.sessions:
            bind_sessions(engine)
        self._ring_first = self._meta.applied_index
        self._ring[self._ring_first & _RING_MASK] = self._meta.digest
        done = restore.read_note(engine.get, restore.DONE_KEY)
        self.restored_index = done.number if done is not None else 0
        self.engine = engine

    # --- writing ---------------------------------------------------------------------------

    def apply_batch(self, entries: Sequence[tuple[int, Command | None]]) -> list[Result]:
        """Apply committed entries and return one result for each.

        All writes, the applied index and the digest go to the engine in one batch (RC-6), so a crash
        keeps all of this call or nothing. Where batches begin and end changes no result, no record
        and no digest.

        Args:
            entries: Index and command, without gaps from ``applied_index + 1``; the very first entry
                of a store may have any index. None: an entry without a command, which only moves
                the applied index; its result is True.

        Raises:
            InvariantBroken: An index out of order, or a command that this version does not know
                (RC-29) or cannot store. Nothing of the batch took effect, and the node must stop.
            CorruptLog: A stored record is not readable. As above.
            DiskFailed: The engine refused. As above.
        """
        if not entries:
            return []
        meta = self._meta
        last = meta.applied_index or entries[0][0] - 1
        tx = Transaction(self.engine, meta, watched=self.on_change is not None)
        ring = self._ring
        results: list[Result] = []
        handlers = _HANDLERS
        for index, command in entries:
            if index != last + 1 or index < 1:
                raise InvariantBroken(f"entry {index} cannot be applied after {last}")
            last = index
            if command is None:
                results.append(Result(True, index))
            else:
                handler = handlers.get(type(command))
                if handler is None:
                    raise InvariantBroken(f"entry {index} holds an unknown command: {command!r}")
                try:
                    results.append(handler(tx, index, command))
                except (StructError, TypeError, ValueError) as error:
                    raise InvariantBroken(
                        f"entry {index} holds a {type(command).__name__} that cannot be stored: {error}"
                    ) from error
            # Slots of indexes that are not applied yet: harmless if this batch fails.
            ring[index & _RING_MASK] = tx.digest
        self._finish(tx, tx.meta(last), entries[0][0])
        return results

    def _finish(self, tx: Transaction, meta: Meta, first: int) -> None:
        self.engine.write(tx.writes(meta))
        if not self._meta.applied_index:
            # Index 0 is the empty store; a store that starts later knows nothing in between.
            self._ring_first = 0 if first == 1 else first
        self._meta = meta
        listener = self.on_change
        if listener is not None and tx.changes is not None:
            for change in tx.changes:
                listener(*change)
        if tx.session_changes and self.on_session is not None:
            for began_or_ended in tx.session_changes:
                self.on_session(*began_or_ended)
        if tx.event_fired:
            self._events = None
            if self.on_event is not None:
                self.on_event(tx.event_fired)
        if tx.ttl_changes and self.on_ttl is not None:
            for ttl_change in tx.ttl_changes:
                self.on_ttl(*ttl_change)
        if tx.touched and self.on_registry is not None:
            for touched in tx.touched:
                self.on_registry(*touched)
        if tx.check_changes and self.on_check is not None:
            for changed in tx.check_changes:
                self.on_check(*changed)

    def replace(self, engine: Engine) -> Engine:
        """Go on with another engine, into which a snapshot was loaded; return the old one.

        The listener hears that everything changed. The caller closes the old engine.

        Raises:
            CorruptLog, DiskFailed: As on opening; the old engine then stays in place.
        """
        old = self.engine
        self._open(engine)
        if self.on_change is not None:
            self.on_change(self._meta.applied_index, b"", True)
        if self.on_session is not None:
            self.on_session(self._meta.applied_index, "", None)
        if self.on_event is not None:
            self.on_event(self._meta.applied_index)
        if self.on_ttl is not None:
            self.on_ttl(b"", 0, 0)
        if self.on_registry is not None:
            self.on_registry(self._meta.applied_index, b"")
        if self.on_check is not None:
            self.on_check(self._meta.applied_index, None)
        return old

    def is_restore_due(self, command: RestoreFinish) -> bool:
        """Whether this command is to be carried out by ``restore.rebuild`` and ``replace``, and must
        not come to ``apply_batch``.
        """
        return restore.is_due(self.engine.get, command)

    def staging(self) -> restore.Note | None:
        """Return which restore is being staged, and how many pieces there are; None: none is."""
        return restore.read_note(self.engine.get, restore.HEAD_KEY)

    # --- positions -------------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        """Index of the last applied entry; 0 before the first."""
        return self._meta.applied_index

    @property
    def meta(self) -> Meta:
        """Counters and indexes at ``applied_index``."""
        return self._meta

    @property
    def digest(self) -> str:
        """32 hex digits, equal on two nodes with equal data at equal ``applied_index`` (RC-74).

        A checksum against decay and bugs, not against an adversary who chooses the data.
        """
        return f"{self._meta.digest:032x}"

    def digest_at(self, index: int) -> str | None:
        """Return the digest as it was when ``index`` had been applied.

        None when that is not known: not applied yet, from before this process opened the store, or
        more than ``DIGESTS_KEPT`` entries ago.
        """
        applied = self._meta.applied_index
        if index > applied or index < self._ring_first or index <= applied - DIGESTS_KEPT:
            return None
        return f"{self._ring[index & _RING_MASK]:032x}"

    def kv_index(self) -> int:
        """Index of the KV table: of the last change or tombstone; 0 if there never was one.

        Whoever prints it prints at least 1 (spec §2.2).
        """
        return self._meta.kv_index

    def session_index(self) -> int:
        """Index of the last session made or ended; as ``kv_index``."""
        return self._meta.session_index

    def prefix_index(self, prefix: bytes, pairs: Sequence[KVPair] | None = None) -> int:
        """Index of a read of everything under ``prefix``; ``pairs`` is what was just read there, if
        it was. See ``reads.prefix_index``.
        """
        found = reads.prefix_index(self.engine, self._meta, prefix, pairs)
        return max(found, self.restored_index)

    def key_index(self, pair: KVPair) -> int:
        """Index of a read of one key (spec §2.2)."""
        return max(pair.modify_index, self.restored_index)

    # --- reading ---------------------------------------------------------------------------

    def count(self) -> int:
        """Number of keys. Costs nothing."""
        return self._meta.count

    def get(self, key: bytes) -> KVPair | None:
        """Return a key, or None."""
        return reads.get(self.engine, key)

    def ttl(self, key: bytes) -> tuple[int, int] | None:
        """Return at which index a key's time began, and how many nanoseconds it has; None: it does not
        expire, or is not there.
        """
        return reads.get_ttl(self.engine, key)

    def ttls(self, *, after: bytes = b"", limit: int | None = None) -> reads.Ttls:
        """Return the keys above ``after`` that expire, each with its ``ttl``, in byte order."""
        return reads.list_ttls(self.engine, after, limit)

    def once_count(self) -> int:
        """Number of idempotency keys that are remembered."""
        return once.decode_count(self.engine.get(ONCE_COUNT))[0]

    def list(
        self,
        prefix: bytes,
        *,
        after: bytes | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> KVPairs:
        """Return the keys under ``prefix`` with their values, see ``reads.list_pairs``."""
        return reads.list_pairs(self.engine, prefix, after=after, limit=limit, reverse=reverse)

    def keys(
        self,
        prefix: bytes,
        separator: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int | None = None,
    ) -> reads.Keys:
        """Return the names under ``prefix``, rolled up at ``separator``, see ``reads.list_keys``."""
        return reads.list_keys(self.engine, prefix, separator, after=after, limit=limit)

    def session(self, session_id: str) -> Session | None:
        """Return a session, or None."""
        return reads.get_session(self.engine, session_id)

    def sessions(self, *, after: str = "", limit: int | None = None) -> Sessions:
        """Return the sessions with an id above ``after``, in the order of their ids."""
        return reads.list_sessions(self.engine, after, limit)

    def held(self, session_id: str) -> reads.Keys:
        """Return the keys that a session holds, in byte order."""
        return reads.list_held(self.engine, session_id)

    def lock_delay(self, key: bytes) -> tuple[int, int] | None:
        """Return at which index a key's lock-delay began and how many nanoseconds it lasts, or None.

        Whether it is over is for whoever has a clock to say.
        """
        return reads.get_delay(self.engine, key)

    def registry(self) -> Registry:
        """Return the reads of nodes, services and checks at this moment."""
        return Registry(self.engine)

    def evaluate(self, command: Txn) -> TxnOutcome:
        """Run a transaction on the state of this moment and keep nothing of it."""
        tx = Transaction(self.engine, self._meta, watched=False)
        return txn.evaluate(tx, self._meta.applied_index + 1, command)

    # --- history ---------------------------------------------------------------------------

    def history_floor(self) -> int:
        """Index above which every change is known; without recording the applied index."""
        return history.floor(self._meta)

    def changes(
        self,
        since: history.Position,
        prefix: bytes = b"",
        *,
        rows_max: int = 1000,
        bytes_max: int = 512 * 1024,
    ) -> history.Changes:
        """Return the changes under a prefix behind a point, in order, see ``history.changes``."""
        return history.changes(self.engine, self._meta, since, prefix, rows_max, bytes_max)

    def history(self, key: bytes, *, limit: int, bytes_max: int) -> history.Revisions:
        """Return a key's newest revisions, see ``history.history``."""
        return history.history(self.engine, self._meta, key, limit, bytes_max)

    def as_of(self, key: bytes, index: int) -> KVPair | None:
        """Return a key as it was at an index, see ``history.as_of``."""
        return history.as_of(self.engine, self._meta, key, index)

    def trim_bound(self, rows: int, size: int, at_most: int) -> int:
        """Return up to which index to trim, see ``history.trim_bound``."""
        return history.trim_bound(self.engine, self._meta, rows, size, at_most)

    # --- upkeep ----------------------------------------------------------------------------

    def graves(self) -> reads.Graves:
        """Return all tombstones as (key or prefix, index, is a tree's), in byte order."""
        return reads.list_graves(self.engine)

    def reap_bound(self, upto: int, at_most: int) -> int:
        """Return the highest index, at most ``upto``, up to which there are at most ``at_most``
        tombstones, so that one ``ReapGraves`` stays small; 0 when there is nothing to reap.

        One index can hold several: then it may be more than ``at_most``, never nothing.
        """
        return reads.reap_bound(self.engine, upto, at_most)

    def delays_bound(self, upto: int, at_most: int) -> int:
        """Return the same for lock-delays and ``ReapLockDelays``."""
        return reads.reap_bound(self.engine, upto, at_most, DELAY_ORDER)

    def autopilot(self) -> control.Autopilot | None:
        """Return how the leader looks after the members; None when nobody ever set it."""
        return control.read_autopilot(self.engine)

    def events(self) -> tuple[control.Event, ...]:
        """Return the newest events, oldest first."""
        if self._events is None:
            self._events = control.read_events(self.engine)
        return self._events

    def once_bound(self, upto: int, at_most: int) -> int:
        """Return the same for idempotency keys and ``ReapOnce``."""
        return reads.reap_bound(self.engine, upto, at_most, ONCE_ORDER)

    def view(self) -> View:
        """Open a view of this moment, for reads that may be long, see ``view.View``."""
        return View(self.engine.snapshot(), self._meta, self.restored_index)

    def dump(self) -> Dump:
        """Open a snapshot of this moment and return its chunks, see ``snapshot.Dump``."""
        return Dump(self.engine.snapshot())


def read_meta(engine: Engine) -> Meta:
    """Read the meta record of an engine; that of an empty store when the engine is empty.

    Raises:
        CorruptLog: There is data but no meta record: a load that was not finished, or lost files.
    """
    record = engine.get(META_KEY)
    if record is not None:
        return decode_meta(record)
    with closing(engine.scan(b"", None)) as rows:
        if next(rows, None) is not None:
            raise CorruptLog("the state engine holds data, but not the record that says which")
    return Meta()
