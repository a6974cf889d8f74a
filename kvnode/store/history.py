"""What changed: a bounded window of changes, by index and by key.

Every change of a key leaves a row with the index, what did it, and the key's record *before* it: an undo
log. What the key became is not stored again. It is the old record of the key's next change, or, after
the last one, the key itself; so a value stands in the engine once, however often it is asked for. Rows
can be forgotten from the old end at any time without anything left behind being torn.

The window is replicated state: it grows in ``apply`` with the change itself (so it never shows what was
not committed), it is part of every snapshot, and it shrinks by ``TrimHistory``, which the leader proposes
by its settings. ``Meta.history_floor`` says where it begins: every change above it is there.

Not in the digest. A node that was upgraded from a version without history begins its window later than
the others until the next trim, and that is no divergence; and a second hash per write would cost more than
the row itself. The old records keep their marks, which are checked wherever a snapshot is loaded.
"""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

from kvnode.errors import Compacted
from kvnode.store.change_records import (
    INDEX_MAX,
    change_bytes,
    change_key,
    change_stop,
    decode_change,
    decode_change_key,
    decode_revision,
    decode_revision_key,
    revision_key,
)
from kvnode.store.commands import Result, TrimHistory
from kvnode.store.engine import Engine
from kvnode.store.records import CHANGES, KV, KVPair, Meta, decode_key, key_range
from kvnode.store.tables import Transaction


class Position(NamedTuple):
    """A point between two changes, in their order: by index, and within one entry by key."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    key: bytes | None
    """Changes of ``index`` up to this key lie before the point; None: all of that index do."""


class Change(NamedTuple):
    """What one entry did to one key."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    key: bytes
    cause: int
    """See ``records.Cause``; a newer version may know more of them."""
    old: KVPair | None
    """None: there was no such key."""
    new: KVPair | None
    """None: there is no such key any more. Never None together with ``old``."""


class Changes(NamedTuple):
    """Part of the window."""

    found: tuple[Change, ...]
    position: Position
    """Where to go on; behind everything that is applied once ``complete``."""
    complete: bool
    """Whether the end of the window was reached."""
    whole: bool
    """Whether the last entry has certainly no further change under the prefix."""


class Revision(NamedTuple):
    """What a key was from one index on."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    cause: int
    """0: not known any more; the change itself is below the window."""
    pair: KVPair | None
    """None: deleted."""


class Revisions(NamedTuple):
    """The newest revisions of a key."""

    found: tuple[Revision, ...]
    """The newest first."""
    complete: bool
    """Whether these are all that the window knows."""


# --- writing -------------------------------------------------------------------------------------


def trim_history(tx: Transaction, index: int, command: TrimHistory) -> Result:
    """Forget changes, oldest first, and switch recording; no index moves."""
    upto = min(command.upto, index)
    forgotten = 0
    if tx.history_rows and upto > tx.history_base:
        start = change_stop(tx.history_base)  # what lies below is gone, and would only cost time
        forgotten = tx.forget(tx.scan(start, change_stop(upto)))
    tx.history_base = max(tx.history_base, upto)
    if not (command.recording and tx.recording):
        tx.history_floor = index  # nothing that was done before is known any more, or will be
    tx.history_floor = max(tx.history_floor, upto)
    tx.limit_history(command.recording, command.bytes_max)
    return Result(forgotten, index)


# --- reading -------------------------------------------------------------------------------------


def floor(meta: Meta) -> int:
    """Return the index above which every change is known; without recording the applied one."""
    return meta.history_floor if meta.recording else meta.applied_index


def check_known(meta: Meta, index: int) -> None:
    """Refuse an index from which the window does not reach to the present.

    Raises:
        Compacted: The changes behind it are not kept any more, or it lies in the future.
    """
    lowest = floor(meta)
    if not lowest <= index <= meta.applied_index:
        raise Compacted(index, lowest, meta.applied_index)


def changes(
    engine: Engine, meta: Meta, since: Position, prefix: bytes, rows_max: int, bytes_max: int
) -> Changes:
    """Return the changes under a prefix behind ``since``, in order.

    At most ``rows_max`` rows of the window are read, under the prefix or not; so an answer can be empty
    and not complete. It ends with the one that makes it ``bytes_max`` of old values.

    Raises:
        Compacted: The window does not reach back to ``since``.
        CorruptLog: A row is not readable.
    """
    # Within an entry the point is known if the entry itself is.
    check_known(meta, since.index if since.key is None else since.index - 1)
    start = change_stop(since.index)
    if since.key is not None:
        start = change_key(since.index, since.key) + b"\0"
    rows: list[_Row] = []
    position = since
    read = size = 0
    complete = whole = True
    with closing(engine.scan(start, change_stop(meta.applied_index))) as found:
        for raw, _ in found:
            index, key = decode_change_key(raw)
            if read >= rows_max or size >= bytes_max:
                complete, whole = False, index != position.index
                break
            read += 1
            position = Position(index, key)
            if key.startswith(prefix):
                row = _Row(index, key, *_revision(engine, key, index))
                size += len(row.record)
                rows.append(row)
    told = _with_news(engine, rows, bytes_max)
    if len(told) < len(rows):
        last = rows[len(told) - 1]
        position, complete = Position(last.index, last.key), False
        whole = rows[len(told)].index != last.index
    elif complete:
        position = Position(meta.applied_index, None)
    # What an entry made and removed again was never there.
    seen = tuple([change for change in told if change.old is not None or change.new is not None])
    return Changes(seen, position, complete, whole)


class _Row(NamedTuple):
    """A row of the window."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    key: bytes
    cause: int
    record: bytes
    """Of the key before; empty: there was none."""

    def before(self) -> KVPair | None:
        """Return what the key was before."""
        return decode_key(KV + self.key, self.record) if self.record else None


def _with_news(engine: Engine, rows: list[_Row], bytes_max: int) -> list[Change]:
    """Find out what each key became; stop, but not before the first, at ``bytes_max`` of values."""
    following: dict[bytes, _Row] = {}
    next_rows: list[_Row | None] = []
    for row in reversed(rows):
        next_rows.append(following.get(row.key))
        following[row.key] = row
    told: list[Change] = []
    size = 0
    for row, next_row in zip(rows, reversed(next_rows), strict=True):
        if told and size >= bytes_max:
            break
        old = row.before()
        new = _became(engine, row.key, row.index) if next_row is None else next_row.before()
        size += sum(len(pair.value) for pair in (old, new) if pair is not None)
        told.append(Change(row.index, row.key, row.cause, old, new))
    return told


def _became(engine: Engine, key: bytes, index: int) -> KVPair | None:
    """Return what a key was after its change at ``index``."""
    record = engine.get(KV + key)
    pair = None if record is None else decode_key(KV + key, record)
    if pair is not None and pair.modify_index == index:
        return pair
    start = revision_key(key, index + 1)
    with closing(engine.scan(start, revision_key(key, INDEX_MAX))) as found:
        following = next(found, None)
    if following is None:
        return pair
    record = decode_revision(*following)[1]
    return decode_key(KV + key, record) if record else None


def _revision(engine: Engine, key: bytes, index: int) -> tuple[int, bytes]:
    """Return what changed a key at ``index``, and its record before."""
    raw = revision_key(key, index)
    row = engine.get(raw)
    return decode_revision(raw, row if row is not None else b"")


def as_of(engine: Engine, meta: Meta, key: bytes, index: int) -> KVPair | None:
    """Return a key as it was when ``index`` had been applied, or None when there was none.

    Raises:
        Compacted: The window does not reach back that far, or the index lies in the future.
        CorruptLog: A row is not readable.
    """
    check_known(meta, index)
    return _became(engine, key, index)


def history(engine: Engine, meta: Meta, key: bytes, limit: int, bytes_max: int) -> Revisions:
    """Return a key's newest revisions, at most ``limit``, and about ``bytes_max`` bytes of values.

    The last one may be what the key was when the window began: then its cause is not known.
    """
    record = engine.get(KV + key)
    pair = None if record is None else decode_key(KV + key, record)
    found: list[Revision] = []
    size = 0
    start, stop = revision_key(key, 0), revision_key(key, INDEX_MAX)
    with closing(engine.scan(start, stop, reverse=True)) as rows:
        for raw, row in rows if meta.recording else ():
            if len(found) >= limit or (found and size > bytes_max):
                return Revisions(tuple(found), False)
            index = decode_revision_key(raw)[1]
            if index <= meta.history_floor:
                break  # a row that is still to be forgotten: what came after it is not known
            cause, old = decode_revision(raw, row)
            former = decode_key(KV + key, old) if old else None
            if pair is not None or former is not None:
                found.append(Revision(index, cause, pair))
                size += len(pair.value) if pair is not None else 0
            pair = former
    if pair is not None:
        if len(found) >= limit:
            return Revisions(tuple(found), False)
        found.append(Revision(pair.modify_index, 0, pair))
    return Revisions(tuple(found), True)


def trim_bound(engine: Engine, meta: Meta, rows: int, size: int, at_most: int) -> int:
    """Return up to which index to trim so that ``rows`` changes and ``size`` bytes go; 0: nothing.

    About ``at_most`` changes go at a time, so that applying it stays short; what one entry did goes as a
    whole.
    """
    if (rows <= 0 and size <= 0) or not meta.history_rows:
        return 0
    start = change_stop(meta.history_base)
    bound = count = 0
    with closing(engine.scan(start, key_range(CHANGES, b"")[1])) as found:
        for raw, row in found:
            index = decode_change_key(raw)[0]
            if index != bound and ((rows <= 0 and size <= 0) or count >= at_most):
                break
            bound = index
            count += 1
            rows -= 1
            size -= change_bytes(raw, decode_change(raw, row))
    return bound
