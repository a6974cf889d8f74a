"""Restores for tests: rows of another history, staged and carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvnode.store.commands import Command, RestoreFinish, RestorePiece
from kvnode.store.engine import Engine
from kvnode.store.records import (
    DELAYS,
    KV,
    RELEASE,
    SESSIONS,
    Session,
    encode_delay,
    encode_key,
    encode_session,
)
from kvnode.store.restore import rebuild
from kvnode.store.snapshot import Row, encode_rows
from kvnode.store.store import Store

RESTORE = "11111111-2222-4333-8444-555555555555"
OTHER = "21111111-2222-4333-8444-555555555555"
HOLDER = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"


def key_row(
    key: bytes,
    value: bytes = b"v",
    *,
    index: int = 1,
    created: int = 1,
    session: str = "",
    ttl_ns: int = 0,
) -> Row:
    raw = KV + key
    ttl = (1, ttl_ns) if ttl_ns else None
    return raw, encode_key(raw, value, 7, created, index, 3, session.encode(), ttl)


def session_row(session_id: str = HOLDER, index: int = 1, node: str = "n0") -> Row:
    raw = SESSIONS + session_id.encode()
    session = Session(
        session_id, "name", node, 5 * 10**9, RELEASE, "20s", 20 * 10**9, (), (), 1, index
    )
    return raw, encode_session(raw, session)


def delay_row(key: bytes, delay_ns: int = 10**9) -> Row:
    return DELAYS + key, encode_delay(DELAYS + key, 1, delay_ns)


def pieces(rows: Sequence[Row], each: int = 2, restore_id: str = RESTORE) -> list[Command]:
    """Stage rows, a few per piece, and finish."""
    parts = [rows[at : at + each] for at in range(0, len(rows), each)] or [()]
    commands: list[Command] = [
        RestorePiece(restore_id, number, encode_rows(part)) for number, part in enumerate(parts)
    ]
    return [*commands, RestoreFinish(restore_id, len(parts))]


def apply(
    store: Store, commands: Iterable[Command], new_engine: Callable[[], Engine]
) -> list[object]:
    """Apply commands as the replica does; return their values."""
    values: list[object] = []
    for command in commands:
        index = store.applied_index + 1
        if isinstance(command, RestoreFinish) and store.is_restore_due(command):
            fresh = new_engine()
            source = store.engine.snapshot()
            problem = rebuild(source, fresh, index, command)
            source.close()
            assert not problem, problem
            store.replace(fresh)
            values.append(True)
        else:
            values.append(store.apply_batch([(index, command)])[0].value)
    return values
