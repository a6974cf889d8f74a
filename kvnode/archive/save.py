"""From a view of the store to ``state.bin``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import IO, Final, NamedTuple

from kvnode.archive.state import (
    EXTRA,
    KV,
    SESSION,
    TABLE_INDEX,
    TOMBSTONE,
    Fields,
    pack,
    write_record,
)
from kvnode.store.records import (
    DELAYS,
    DELETE,
    GRAVES,
    SESSIONS,
    TREE_GRAVES,
    decode_delay,
    decode_grave,
    decode_key,
    decode_session,
    ttl_of,
)
from kvnode.store.records import KV as KEYS
from kvnode.store.view import View

WRITE_BYTES: Final = 256 << 10


class Saved(NamedTuple):
    """What was written."""

    size: int
    """Bytes."""
    digest: bytes
    """SHA-256."""
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """Of the state."""
    records: int


def save_state(view: View, target: IO[bytes], go_on: Callable[[int], None]) -> Saved:
    """Write a view's content. Takes a few microseconds per key, in a thread.

    Args:
        view: Left open.
        target: An empty file.
        go_on: Called with the number of bytes before each write; may raise to stop.
    """
    running = hashlib.sha256()
    parts = [pack({b"LastIndex": view.meta.applied_index, **_header(view)})]
    size = records = 0
    gathered = len(parts[0])
    for record in _records(view):
        records += 1
        parts.append(record)
        gathered += len(record)
        if gathered >= WRITE_BYTES:
            size += _write(parts, target, running.update, go_on)
            parts, gathered = [], 0
    size += _write(parts, target, running.update, go_on)
    return Saved(size, running.digest(), view.meta.applied_index, records)


def _write(
    parts: list[bytes],
    target: IO[bytes],
    note: Callable[[bytes], None],
    go_on: Callable[[int], None],
) -> int:
    data = b"".join(parts)
    go_on(len(data))
    note(data)
    target.write(data)
    return len(data)


def _header(view: View) -> Fields:
    """What only kvnode has and belongs to no key: nothing, or lock-delays."""
    delays = [[raw[1:], decode_delay(raw, record)[1]] for raw, record in view.rows(DELAYS)]
    return {EXTRA: {b"LockDelays": delays}} if delays else {}


def _records(view: View) -> Iterator[bytes]:
    """Yield the records in Consul's order."""
    for raw, record in view.rows(SESSIONS):
        yield write_record(SESSION, _session(raw, record))
    for raw, record in view.rows(KEYS):
        yield write_record(KV, _key(raw, record))
    trees = {raw[1:]: decode_grave(raw, record) for raw, record in view.rows(TREE_GRAVES)}
    for raw, record in view.rows(GRAVES):
        index = max(decode_grave(raw, record), trees.pop(raw[1:], 0))
        yield write_record(TOMBSTONE, _tombstone(raw[1:], index))
    for prefix, index in trees.items():
        yield write_record(TOMBSTONE, _tombstone(prefix, index))
    meta = view.meta
    for name, index in (
        (b"kvs", meta.kv_index),
        (b"sessions", meta.session_index),
        (b"tombstones", meta.graves_index),
    ):
        if index:
            yield write_record(TABLE_INDEX, {b"Key": name, b"Value": index})


def _key(raw: bytes, record: bytes) -> Fields:
    key, value, flags, create, modify, lock, session = decode_key(raw, record)
    fields: Fields = {
        b"CreateIndex": create,
        b"Flags": flags,
        b"Key": key,
        b"LockIndex": lock,
        b"ModifyIndex": modify,
        b"Session": session.encode(),
        b"Value": value or None,
    }
    ttl = ttl_of(record)
    if ttl is not None:
        fields[EXTRA] = {b"TTL": ttl[1]}
    return fields


def _session(raw: bytes, record: bytes) -> Fields:
    session = decode_session(raw, record)
    services = [
        {b"ID": name.encode(), b"Namespace": space.encode()}
        for name, space in session.service_checks
    ]
    return {
        b"Behavior": b"delete" if session.behavior == DELETE else b"release",
        b"Checks": None,
        b"CreateIndex": session.create_index,
        b"ID": session.session_id.encode(),
        b"LockDelay": session.lock_delay_ns,
        b"ModifyIndex": session.modify_index,
        b"Name": session.name.encode(),
        b"Node": session.node.encode(),
        b"NodeChecks": [check.encode() for check in session.node_checks],
        b"ServiceChecks": services or None,
        b"TTL": session.ttl.encode(),
    }


def _tombstone(key: bytes, index: int) -> Fields:
    return {
        b"CreateIndex": 0,
        b"Flags": 0,
        b"Key": key,
        b"LockIndex": 0,
        b"ModifyIndex": index,
        b"Session": b"",
        b"Value": None,
    }
