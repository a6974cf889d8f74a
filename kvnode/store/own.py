"""What our own commands do to keys: conditional locks, counters, expiry, copies. Deterministic: RC-28.

No clock is read: the time to live of a key is a number beside it, and who counts it is the leader.
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import Final, NamedTuple

from kvnode.store.commands import Result
from kvnode.store.fields import INT64_MAX, INT64_MIN
from kvnode.store.kv import KEEP_TTL, drop_key, put_pair
from kvnode.store.locks import take_lock
from kvnode.store.own_commands import (
    KvAdd,
    KvCopy,
    KvExpire,
    KvPut,
    Mode,
    Refused,
    Why,
)
from kvnode.store.records import HELD, KV, Cause, KVPair, decode_key, key_range, ttl_of
from kvnode.store.tables import Transaction

_CAUSES: Final[dict[int, Cause]] = {
    Mode.SET: Cause.PUT,
    Mode.LOCK: Cause.ACQUIRE,
    Mode.UNLOCK: Cause.RELEASE,
}
_NUMBER: Final = re.compile(rb"\s*([-+]?[0-9]{1,40})\s*").fullmatch


def _read(tx: Transaction, key: bytes) -> tuple[bytes | None, KVPair | None]:
    old = tx.get(KV + key)
    return old, None if old is None else decode_key(KV + key, old)


def _matches(cas: int | None, pair: KVPair | None) -> bool:
    return cas is None or cas == (0 if pair is None else pair.modify_index)


def put_key(tx: Transaction, index: int, command: KvPut) -> Result:
    """Set, lock or release a key."""
    key, value, flags, cas, session, mode, keep, ttl_ns, as_of = command
    old, pair = _read(tx, key)
    if not _matches(cas, pair):
        return Result(False, index)
    lock_index = 0
    holder = pair.session if pair is not None else ""
    if mode == Mode.LOCK:
        taken = take_lock(tx, key, pair, session, as_of)
        if taken is None or taken is False:  # which 0 is not
            return Result(taken, index)
        lock_index, holder = taken, session
    elif mode == Mode.UNLOCK:
        if pair is None or not session or pair.session != session:
            return Result(False, index)
        tx.overlay[HELD + session.encode() + key] = None
        lock_index, holder = pair.lock_index, ""
    create = index
    if pair is not None:
        create = pair.create_index
        if keep:
            value, flags = pair.value, pair.flags
    wanted = KVPair(key, value, flags, create, index, lock_index, holder)
    return Result(True, index, put_pair(tx, wanted, pair, old, _CAUSES[mode], ttl_ns))


def add_to_key(tx: Transaction, index: int, command: KvAdd) -> Result:
    """Add to a number. Adding nothing to a number changes nothing."""
    key, delta, cas, ttl_ns = command
    old, pair = _read(tx, key)
    if not _matches(cas, pair):
        return Result(False, index)
    before = 0
    if pair is not None:
        found = _NUMBER(pair.value)
        before = int(found[1]) if found is not None else INT64_MAX + 1
        if not INT64_MIN <= before <= INT64_MAX:
            return Result(Refused(Why.NOT_A_NUMBER), index)
    after = before + delta
    if not INT64_MIN <= after <= INT64_MAX:
        return Result(Refused(Why.OVERFLOW), index)
    value = b"%d" % after
    if pair is None:
        wanted = KVPair(key, value, 0, index, index, 0, "")
    else:
        if after == before:
            value = pair.value
        wanted = pair._replace(value=value, modify_index=index)
    return Result(after, index, put_pair(tx, wanted, pair, old, Cause.ADD, ttl_ns or KEEP_TTL))


def expire_keys(tx: Transaction, index: int, command: KvExpire) -> Result:
    """Delete the keys whose time began when the leader says, and so is over."""
    gone = 0
    for key, since in command.keys:
        old = tx.get(KV + key)
        ttl = None if old is None else ttl_of(old)
        if old is not None and ttl is not None and ttl[0] == since:
            drop_key(tx, index, key, old, Cause.EXPIRE)
            gone += 1
    return Result(gone, index)


class _Source(NamedTuple):
    """One key to copy."""

    key: bytes
    record: bytes
    pair: KVPair
    target: bytes


def copy_keys(tx: Transaction, index: int, command: KvCopy) -> Result:
    """Copy or move: all, or nothing and why."""
    sources = _sources(tx, command)
    if isinstance(sources, Refused):
        return Result(sources, index)
    if not sources:
        return Result(Refused(Why.NO_SOURCE), index)
    refusal = _check_sources(sources, command)
    if refusal is not None:
        return Result(refusal, index)
    leaving = {source.key for source in sources} if command.move else set()
    if command.cas is not None:
        if not _matches(command.cas, _read(tx, sources[0].target)[1]):
            return Result(False, index)
    elif not command.overwrite:
        for source in sources:
            if source.target not in leaving and tx.get(KV + source.target) is not None:
                return Result(Refused(Why.TARGET_EXISTS, 0, source.target), index)
    cause = Cause.MOVE if command.move else Cause.COPY
    if command.move:
        for source in sources:
            drop_key(tx, index, source.key, source.record, Cause.MOVE)
    for source in sources:
        _write_copy(tx, index, source, cause)
    return Result(len(sources), index)


def _sources(tx: Transaction, command: KvCopy) -> list[_Source] | Refused:
    """Read what is to be copied, in byte order; no more of it than the bounds allow."""
    source, target = command.source, command.target
    found: list[_Source] = []
    if not command.tree:
        old, pair = _read(tx, source)
        if old is not None and pair is not None:
            found.append(_Source(source, old, pair, target))
        return found
    room = command.bytes_max
    with closing(tx.scan(*key_range(KV, source))) as rows:
        for raw, old in rows:
            key = raw[1:]
            room -= len(raw) + len(old)
            # One reason for both: which of the two comes first may differ by node.
            if room < 0 or len(found) >= command.keys_max:
                return Refused(Why.TOO_MUCH)
            found.append(_Source(key, old, decode_key(raw, old), target + key[len(source) :]))
    return sorted(found)  # what the batch itself wrote comes first in a scan


def _check_sources(sources: list[_Source], command: KvCopy) -> Refused | None:
    for source in sources:
        if not 0 < len(source.target) <= command.key_bytes_max:
            return Refused(Why.KEY_LENGTH, 0, source.key)
        if command.move and source.pair.session:
            return Refused(Why.SOURCE_LOCKED, 0, source.key)
    return None


def _write_copy(tx: Transaction, index: int, source: _Source, cause: Cause) -> None:
    old, former = _read(tx, source.target)
    wanted = source.pair._replace(
        key=source.target,
        create_index=index,
        modify_index=index,
        lock_index=0,
        session="",
    )
    if former is not None:
        wanted = wanted._replace(
            create_index=former.create_index,
            lock_index=former.lock_index,
            session=former.session,
        )
    ttl = ttl_of(source.record)
    put_pair(tx, wanted, former, old, cause, 0 if ttl is None else ttl[1])
