"""Everything replaced by the content of an archive, at one index (decision 0009).

The content comes through the log in *pieces*, which are *staged*: kept as rows of a table of their own that
no read looks at. One last entry puts them in the place of everything else. Until that entry nothing has
changed; from it on everything has; and since entries are all that decides, every node agrees, whatever
happens to leaders and processes in between.

That last entry is not applied like others. It may mean writing a million rows, so the replica has a thread
build a fresh engine from the staged rows (``rebuild``), makes that one current in one durable step, and
hands it to ``Store.replace``. A crash on the way leaves the old engine, in front of the same entry.

Pieces hold rows of three tables (sessions, lock-delays, keys; in this order), each in byte order.
Everything else is derived here, so that no archive can say what does not fit together. What the cluster
has set for itself, who is registered, the newest events and the keys of writes done once stay as they are;
the history of keys begins anew.

Indexes: what was restored was written at indexes of another history, maybe of another cluster. They are
kept where they lie in the past, and become the index of the restore where they would lie in the future. A
read's index (spec §2.2) is never below that of the last restore (``Store.restored_index``), so that it does
not fall for a watcher, and everybody who waits hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store.commands import RestoreDrop, RestoreFinish, RestorePiece, Result
from kvnode.store.engine import Engine, EngineSnapshot
from kvnode.store.records import (
    BY_NAME,
    BY_SERVICE,
    CHECKS,
    DELAY_ORDER,
    DELAYS,
    DIGEST_MASK,
    EVENTS,
    HELD,
    INDEXES,
    KEY_TTL,
    KV,
    MARK_BYTES,
    MARKED,
    META_KEY,
    NODES,
    ONCE,
    ONCE_COUNT,
    ONCE_ORDER,
    PARAMETERS,
    RESTORE,
    SERVICES,
    SESSION_ID_CHARACTERS,
    SESSIONS,
    TTLS,
    Meta,
    decode_delay,
    decode_key,
    decode_meta,
    decode_session,
    encode_delay,
    encode_key,
    encode_session,
    key_range,
    mark_of,
    order_key,
    ttl_of,
)
from kvnode.store.registry_records import CRITICAL, bound_keys, decode_check, fold
from kvnode.store.snapshot import Batches, check_empty, read_chunk
from kvnode.store.tables import Transaction

DONE_KEY: Final = RESTORE + b"\0"
"""Which restore was the last one, and at which index."""
HEAD_KEY: Final = RESTORE + b"\1"
"""Which restore is being staged, and how many pieces there are."""
PIECES: Final = RESTORE + b"\2"
"""Table of pieces: this + number as 8 big-endian bytes -> the piece."""
_NUMBER: Final = Struct(">Q")
_NOTE: Final = Struct("<B36sQ")
"""Version, id, number."""
_VERSION: Final = 1
ORDER: Final = (SESSIONS, DELAYS, KV)
"""The tables that pieces may hold, in the order in which they must."""
KEPT: Final = (
    *(PARAMETERS, EVENTS, ONCE, ONCE_COUNT, ONCE_ORDER),
    *(NODES, SERVICES, CHECKS, INDEXES, BY_NAME, BY_SERVICE),
)
"""Tables that a restore leaves alone. What is registered says who is there now, not who was there then.
That a write was done once is remembered too: it was, and is not done again when its client asks again."""


class Note(NamedTuple):
    """A restore, and its index or its number of pieces."""

    restore_id: str
    number: int


def read_note(get: Callable[[bytes], bytes | None], raw: bytes) -> Note | None:
    """Read ``DONE_KEY`` or ``HEAD_KEY``; None: there is none.

    Raises:
        CorruptLog: The record is of no known form.
    """
    record = get(raw)
    if record is None:
        return None
    try:
        version, restore_id, number = _NOTE.unpack(record)
        if version != _VERSION:
            raise CorruptLog(f"the record {raw!r} of a restore is of version {version}")
        return Note(restore_id.decode("ascii"), number)
    except (StructError, UnicodeDecodeError) as error:
        raise CorruptLog(f"the record {raw!r} of a restore is not readable") from error


def _note(restore_id: str, number: int) -> bytes:
    return _NOTE.pack(_VERSION, restore_id.encode("ascii"), number)


# --- commands ------------------------------------------------------------------------------


def stage(tx: Transaction, index: int, command: RestorePiece) -> Result:
    """Keep one piece; see ``commands.RestorePiece``."""
    restore_id, number, data = command
    head = read_note(tx.get, HEAD_KEY)
    if number == 0 and (head is None or head.restore_id != restore_id):
        _forget(tx, head)
        head = Note(restore_id, 0)
    if head is None or head.restore_id != restore_id or number > head.number:
        return Result(False, index)
    if number == head.number:
        tx.overlay[PIECES + _NUMBER.pack(number)] = data
        tx.overlay[HEAD_KEY] = _note(restore_id, number + 1)
    return Result(True, index)


def finish(tx: Transaction, index: int, command: RestoreFinish) -> Result:
    """Answer a ``RestoreFinish`` that changes nothing; one that ``is_due`` is for ``rebuild``."""
    if is_due(tx.get, command):
        raise InvariantBroken(f"entry {index} ends a restore: it cannot be applied like others")
    done = read_note(tx.get, DONE_KEY)
    return Result(done is not None and done.restore_id == command.restore_id, index)


def is_due(get: Callable[[bytes], bytes | None], command: RestoreFinish) -> bool:
    """Whether a ``RestoreFinish`` finds what it is to put in the place of everything."""
    head = read_note(get, HEAD_KEY)
    return head == Note(command.restore_id, command.pieces)


def drop(tx: Transaction, index: int, command: RestoreDrop) -> Result:
    """Give a staging up; see ``commands.RestoreDrop``."""
    head = read_note(tx.get, HEAD_KEY)
    if head is not None and head.restore_id == command.restore_id:
        _forget(tx, head)
    return Result(True, index)


def _forget(tx: Transaction, head: Note | None) -> None:
    if head is not None:
        for number in range(head.number):
            tx.overlay[PIECES + _NUMBER.pack(number)] = None
        tx.overlay[HEAD_KEY] = None


# --- the fresh engine ------------------------------------------------------------------------


class Unsound(Exception):  # it ends a walk, and never leaves this module
    """What was staged contradicts itself. Every node finds the same."""


def rebuild(source: EngineSnapshot, fresh: Engine, index: int, command: RestoreFinish) -> str:
    """Fill an empty engine with what was staged, as the state at ``index``; runs in a worker thread.

    The meta record is written in the last batch. The caller flushes the engine before it makes it
    current, and throws it away after any other outcome.

    Args:
        source: The state right before the entry.
        fresh: An empty engine.
        index: The entry's.
        command: The entry; it ``is_due``.

    Returns:
        Empty when it is done; else what is wrong with what was staged, the same on every node.

    Raises:
        CorruptLog: A piece is not what was staged.
        InvariantBroken: What was staged is of a newer version: this node must stop (RC-29).
        DiskFailed: The engine refused.
    """
    check_empty(fresh)
    builder = _Builder(fresh, index)
    builder.keep(source)
    try:
        for data in _pieces(source, command.pieces):
            for raw, record in read_chunk(data)[1]:
                builder.add(raw, record)
    except Unsound as problem:
        return str(problem)
    builder.finish(command.restore_id)
    return ""


def _pieces(source: EngineSnapshot, count: int) -> Iterator[bytes]:
    found = 0
    with closing(source.scan(PIECES, RESTORE + b"\3")) as rows:
        for raw, data in rows:
            if raw != PIECES + _NUMBER.pack(found):
                raise CorruptLog(f"piece {found} of a restore is missing")
            found += 1
            yield data
    if found != count:
        raise CorruptLog(f"a restore has {found} pieces, and its note says {count}")


class _Builder:
    """Checks staged rows, derives the others, and writes both."""

    def __init__(self, engine: Engine, index: int) -> None:
        self._batches = Batches(engine)
        self._index = index
        self._last = (0, b"")
        self._sessions: set[str] = set()
        self._ended: set[str] = set()
        """Sessions that a check ends as soon as they begin: they are left out, and their keys are free."""
        self._critical: set[bytes] = set()
        self._digest = 0
        self._keys = 0
        self._former = Meta()

    def keep(self, source: EngineSnapshot) -> None:
        """Take over what a restore does not touch."""
        for table in KEPT:
            with closing(source.scan(*key_range(table, b""))) as rows:
                for raw, record in rows:
                    if table in MARKED:
                        self._digest += int.from_bytes(record[:MARK_BYTES], "big")
                    if table == CHECKS:
                        check = decode_check(raw, record)
                        if check.status == CRITICAL:
                            self._critical.add(fold(check.node, check.check_id))
                    self._batches.put(raw, record)
        with closing(source.scan(META_KEY, META_KEY + b"\0")) as rows:
            self._former = decode_meta(next(rows)[1])

    def add(self, raw: bytes, record: bytes) -> None:
        """Take a row.

        Raises:
            Unsound: It does not fit the ones before.
        """
        table = raw[:1]
        if table not in ORDER:
            raise InvariantBroken(
                f"a restore holds rows of a table {table!r}, which this version does not know: "
                f"upgrade this node"
            )
        place = (ORDER.index(table), raw)
        if place <= self._last:
            raise Unsound(f"the row {raw[:60]!r} is there twice, or not in its place")
        self._last = place
        if mark_of(raw, record[MARK_BYTES:]) != record[:MARK_BYTES]:
            raise Unsound(f"the row {raw[:60]!r} does not match its mark")
        try:
            if table == KV:
                record = self._key(raw, record)
            elif table == SESSIONS:
                record = self._session(raw, record)
                if not record:
                    return
            else:
                record = self._delay(raw, record)
        except CorruptLog as error:
            raise InvariantBroken(f"a restore holds what cannot be read: {error}") from error
        self._digest += int.from_bytes(record[:MARK_BYTES], "big")
        self._batches.put(raw, record)

    def _past(self, index: int) -> int:
        """An index of another history: of the past, and never 0."""
        return min(max(index, 1), self._index)

    def _key(self, raw: bytes, record: bytes) -> bytes:
        pair = decode_key(raw, record)
        self._keys += 1
        holder = "" if pair.session in self._ended else pair.session
        session = holder.encode("ascii", "replace")
        if holder:
            if pair.session not in self._sessions:
                raise Unsound(f"the key {pair.key[:60]!r} is held by a session that is not there")
            self._batches.put(HELD + session + pair.key, b"")
        modify = self._past(pair.modify_index)
        create = min(self._past(pair.create_index), modify)
        ttl = ttl_of(record)
        if ttl is not None:
            # As with lock-delays: it has its time in full again, and never expires early.
            ttl = (self._index, ttl[1])
            self._batches.put(TTLS + pair.key, KEY_TTL.pack(*ttl))
        elif (create, modify, holder) == (pair.create_index, pair.modify_index, pair.session):
            return record
        return encode_key(
            raw, pair.value, pair.flags, create, modify, pair.lock_index, session, ttl
        )

    def _session(self, raw: bytes, record: bytes) -> bytes:
        session = decode_session(raw, record)
        if len(session.session_id) != SESSION_ID_CHARACTERS:
            raise Unsound(f"{session.session_id[:60]!r} is no id of a session")
        names = (*session.node_checks, *(name for name, _ in session.service_checks))
        if any(fold(session.node, name) in self._critical for name in names):
            self._ended.add(session.session_id)
            return b""
        self._sessions.add(session.session_id)
        for bound in sorted(bound_keys(session)):
            self._batches.put(bound, b"")
        modify = self._past(session.modify_index)
        create = min(self._past(session.create_index), modify)
        return encode_session(raw, session._replace(create_index=create, modify_index=modify))

    def _delay(self, raw: bytes, record: bytes) -> bytes:
        # Nobody knows when it began, so it begins anew: it may be lengthened, never shortened (RC-62).
        _, delay_ns = decode_delay(raw, record)
        self._batches.put(order_key(self._index, raw, DELAY_ORDER), b"")
        return encode_delay(raw, self._index, delay_ns)

    def finish(self, restore_id: str) -> None:
        """Write what is left, and what makes it a store."""
        index = self._index
        self._batches.put(DONE_KEY, _note(restore_id, index))
        self._batches.finish(
            Meta(
                applied_index=index,
                kv_index=index,
                count=self._keys,
                digest=self._digest & DIGEST_MASK,
                session_index=index,
                sessions=len(self._sessions),
                recording=self._former.recording,
                history_floor=index,
                history_base=index,
                history_limit=self._former.history_limit,
            )
        )
