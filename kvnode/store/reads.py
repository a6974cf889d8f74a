"""Reads of an engine: keys, lists, rolled-up names, indexes. No function changes anything.

Every engine iterator is closed before the function returns, as the engine's contract asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import Final

from kvnode.store.engine import Engine
from kvnode.store.records import (
    DELAYS,
    GRAVE_ORDER,
    GRAVES,
    HELD,
    KEY_MODIFY,
    KEY_MODIFY_AT,
    KEY_TTL,
    KV,
    SESSION_ID_CHARACTERS,
    SESSIONS,
    TREE_GRAVES,
    TTLS,
    KVPair,
    Meta,
    Session,
    decode_delay,
    decode_grave,
    decode_key,
    decode_order_key,
    decode_session,
    key_range,
    order_stop,
    successor,
)

Keys = list[bytes]
Graves = list[tuple[bytes, int, bool]]
Ttls = list[tuple[bytes, int, int]]
"""Keys, each with the index at which its time began, and nanoseconds."""

SKIP_AFTER_ROWS: Final = 16
"""So many rows of a rolled-up subtree are read one by one before the rest is jumped over: a jump
costs about as much as ten rows."""


def get(engine: Engine, key: bytes) -> KVPair | None:
    """Return one key, or None when it is missing."""
    raw = KV + key
    record = engine.get(raw)
    return None if record is None else decode_key(raw, record)


def list_pairs(
    engine: Engine, prefix: bytes, *, after: bytes | None, limit: int | None, reverse: bool
) -> list[KVPair]:
    """Return the keys under a prefix with their values, in byte order, or backwards.

    Args:
        engine: Where to read.
        prefix: Empty for all keys.
        after: Leave out everything up to and including this key, in the order asked for; it need
            not exist nor lie under the prefix. For paging.
        limit: At most so many; None for all.
        reverse: From the last to the first.
    """
    start, stop = key_range(KV, prefix)
    if after is not None:
        if reverse:
            stop = min(stop, KV + after)
        else:
            start = max(start, KV + after + b"\0")
    with closing(engine.scan(start, stop, reverse=reverse)) as rows:
        return [decode_key(raw, record) for raw, record in islice(rows, limit)]


def list_keys(
    engine: Engine, prefix: bytes, separator: bytes, *, after: bytes | None, limit: int | None
) -> Keys:
    """Return the names under a prefix in byte order, as Consul's ``?keys`` (spec §4.1).

    With a separator each name is cut after the first one that follows the prefix, and equal names
    are returned once; what lies under a cut name is jumped over, not read.

    Args:
        engine: Where to read.
        prefix: Empty for all keys. Names are cut only behind it.
        separator: Empty: no name is cut.
        after: Leave out every name up to and including this one, as returned before, and what was
            rolled up in it. For paging.
        limit: At most so many names; None for all.
    """
    start, stop = key_range(KV, prefix)
    found: Keys = []
    if limit is None:
        limit = -1
    if after is not None:
        first: bytes | None = KV + after + b"\0"
        if separator and after.startswith(prefix) and separator in after[len(prefix) :]:
            first = successor(KV + after)
        assert first is not None, "no table byte is 0xff"
        start = max(start, first)
    if not separator:
        with closing(engine.scan(start, stop)) as rows:
            return [raw[1:] for raw, _ in islice(rows, None if limit < 0 else limit)]
    next_start: bytes | None = start
    while next_start is not None and len(found) != limit:
        next_start = _roll_up(engine, next_start, stop, len(prefix) + 1, separator, found, limit)
    return found


def _roll_up(
    engine: Engine,
    start: bytes,
    stop: bytes,
    cut_from: int,
    separator: bytes,
    found: Keys,
    limit: int,
) -> bytes | None:
    """Append names from ``start`` on; return where to go on behind a long subtree, None at the end.

    A name that was cut starts every raw key of its subtree, and these stand together, so comparing
    with the last name is enough to drop duplicates.
    """
    subtree: bytes | None = None
    seen = 0
    with closing(engine.scan(start, stop)) as rows:
        for raw, _ in rows:
            if subtree is not None and raw.startswith(subtree):
                seen += 1
                if seen > SKIP_AFTER_ROWS:
                    return successor(subtree)
                continue
            if len(found) == limit:
                return None
            at = raw.find(separator, cut_from)
            if at < 0:
                found.append(raw[1:])
            else:
                subtree = raw[: at + len(separator)]
                seen = 0
                found.append(subtree[1:])
    return None


def prefix_index(
    engine: Engine, meta: Meta, prefix: bytes, pairs: Sequence[KVPair] | None = None
) -> int:
    """Return the index of a read of everything under a prefix (spec §2.2).

    It is the highest ModifyIndex under the prefix and of the tombstones whose key starts with it;
    where nothing is or was there, and for the empty prefix, that of the whole table (0: never
    written).

    One addition to Consul's rule: where something is or was there, the tombstone of a deleted tree
    *around* the prefix counts too. Consul forgets it: after a key under ``a/b/`` was deleted at 50,
    another set at 55 and ``a/`` deleted at 60, its index of ``a/b/`` falls back to 50 and a waiter
    at 55 is never told. Ours is 60, since an index seen by a client does not fall (RC-40, RC-64).

    Args:
        engine: Where to read.
        meta: The counters that belong to it.
        prefix: Empty for all keys; costs nothing then. Else every row under it is read.
        pairs: Everything under the prefix, if it has just been read anyhow: saves reading it again.
    """
    if not prefix:
        return meta.kv_index
    if pairs is not None:
        highest = max((pair.modify_index for pair in pairs), default=0)
    else:
        highest = _highest_modify_index(engine, prefix)
    for table in (GRAVES, TREE_GRAVES):
        with closing(engine.scan(*key_range(table, prefix))) as rows:
            for raw, record in rows:
                highest = max(highest, decode_grave(raw, record))
    if not highest:
        return meta.kv_index
    if meta.tree_graves:
        for size in range(1, len(prefix)):
            raw = TREE_GRAVES + prefix[:size]
            around = engine.get(raw)
            if around is not None:
                highest = max(highest, decode_grave(raw, around))
    return highest


def _highest_modify_index(engine: Engine, prefix: bytes) -> int:
    highest = 0
    unpack = KEY_MODIFY.unpack_from
    with closing(engine.scan(*key_range(KV, prefix))) as rows:
        for _, record in rows:
            modify = unpack(record, KEY_MODIFY_AT)[0]
            if modify > highest:
                highest = modify
    return highest


def list_graves(engine: Engine) -> Graves:
    """Return all tombstones as (key or prefix, index, is a tree's), in byte order of the first."""
    found: Graves = []
    for table in (GRAVES, TREE_GRAVES):
        with closing(engine.scan(*key_range(table, b""))) as rows:
            found += [
                (raw[1:], decode_grave(raw, record), table == TREE_GRAVES) for raw, record in rows
            ]
    return sorted(found)


def get_session(engine: Engine, session_id: str) -> Session | None:
    """Return one session, or None when there is none with this id, whatever it looks like."""
    raw = SESSIONS + session_id.encode("utf-8", "surrogateescape")
    if len(raw) != 1 + SESSION_ID_CHARACTERS:
        return None
    record = engine.get(raw)
    return None if record is None else decode_session(raw, record)


def list_sessions(engine: Engine, after: str, limit: int | None) -> list[Session]:
    """Return the sessions in the order of their ids, at most ``limit`` with an id above ``after``."""
    start, stop = key_range(SESSIONS, b"")
    if after:
        start = SESSIONS + after.encode("ascii") + b"\0"
    with closing(engine.scan(start, stop)) as rows:
        return [decode_session(raw, record) for raw, record in islice(rows, limit)]


def list_held(engine: Engine, session_id: str) -> Keys:
    """Return the keys that a session holds, in byte order."""
    start, stop = key_range(HELD, session_id.encode("ascii"))
    with closing(engine.scan(start, stop)) as rows:
        return [raw[len(start) :] for raw, _ in rows]


def get_delay(engine: Engine, key: bytes) -> tuple[int, int] | None:
    """Return at which index the lock-delay of a key began, and its length in nanoseconds."""
    record = engine.get(DELAYS + key)
    return None if record is None else decode_delay(DELAYS + key, record)


def get_ttl(engine: Engine, key: bytes) -> tuple[int, int] | None:
    """Return at which index a key's time began and its nanoseconds; None: it does not expire."""
    record = engine.get(TTLS + key)
    if record is None:
        return None
    since, ttl_ns = KEY_TTL.unpack(record)
    return since, ttl_ns


def list_ttls(engine: Engine, after: bytes, limit: int | None) -> Ttls:
    """Return keys that expire, in byte order, at most ``limit`` above ``after``; empty: from the first."""
    start, stop = key_range(TTLS, b"")
    if after:
        start = TTLS + after + b"\0"
    with closing(engine.scan(start, stop)) as rows:
        return [(raw[1:], *KEY_TTL.unpack(record)) for raw, record in islice(rows, limit)]


def reap_bound(engine: Engine, upto: int, at_most: int, table: bytes = GRAVE_ORDER) -> int:
    """Return up to which index to reap, so that about ``at_most`` rows of an order go; 0: none is old."""
    assert at_most > 0, "reaping nothing never ends"
    if upto < 1:
        return 0
    with closing(engine.scan(table, order_stop(upto, table))) as rows:
        indexes = [decode_order_key(raw)[0] for raw, _ in islice(rows, at_most + 1)]
    if len(indexes) <= at_most:
        return indexes[-1] if indexes else 0
    # The one too many shows whether the last index fits as a whole; the first one always goes.
    fitting = [index for index in indexes if index < indexes[-1]]
    return fitting[-1] if fitting else indexes[0]
