"""What each KV command does (spec §2.1, §2.3, §4.2, §4.3). Deterministic: RC-28.

Every function takes the batch's view, the entry's index and its command, and returns the answer. The
set is the hot path of the node: it is written flat, without helpers, on purpose.
"""

from __future__ import annotations

from typing import Final

from kvnode.errors import CorruptLog
from kvnode.store.commands import KvDelete, KvDeleteTree, KvSet, ReapGraves, Result
from kvnode.store.records import (
    DIGEST_MASK,
    GRAVE_ORDER,
    GRAVES,
    HELD,
    KEY_BODY,
    KEY_HEAD,
    KEY_TIMED,
    KEY_VERSION,
    KEY_VERSION_AT,
    KV,
    TREE_GRAVES,
    Cause,
    KVPair,
    decode_key,
    decode_order_key,
    encode_key,
    holder_of,
    key_range,
    mark_of,
    order_stop,
    ttl_of,
)
from kvnode.store.tables import Transaction

_unpack = KEY_HEAD.unpack_from
_pack = KEY_BODY.pack
_from_bytes = int.from_bytes
_PUT = int(Cause.PUT)


def set_key(tx: Transaction, index: int, command: KvSet) -> Result:
    """Set a key. An identical write changes nothing and keeps ModifyIndex (spec §2.1).

    A plain set resets LockIndex and keeps the session: surprising, and exactly Consul's.
    """
    key, value, flags, cas = command
    raw = KV + key
    overlay = tx.overlay
    old = overlay[raw] if raw in overlay else tx.engine_get(raw)
    if old is None:
        if cas:
            return Result(False, index)
        create = index
        session = b""
        tx.count += 1
        digest = tx.digest
    else:
        mark, version, size, create, modify, lock, old_flags = _unpack(old)
        if cas is not None and cas != modify:
            return Result(False, index)
        value_at = 50 + size
        if version != KEY_VERSION:
            if version != KEY_TIMED:
                raise CorruptLog(f"the record of key {key!r} has an unknown form ({version})")
            tx.end_ttl(key)  # so the write is none that changes nothing
        elif (
            lock == 0
            and flags == old_flags
            and len(old) == value_at + len(value)
            and old.endswith(value)
        ):
            return Result(True, index, modify)
        session = old[50:value_at]
        digest = tx.digest - _from_bytes(mark, "big")
    body = _pack(KEY_VERSION, len(session), create, index, 0, flags) + session + value
    mark = mark_of(raw, body)
    tx.digest = (digest + _from_bytes(mark, "big")) & DIGEST_MASK
    overlay[raw] = mark + body
    tx.changed(index, key, old, _PUT)
    return Result(True, index, index)


def delete_key(tx: Transaction, index: int, command: KvDelete) -> Result:
    """Delete a key and leave a tombstone. A missing key is True and changes nothing."""
    key, cas = command
    raw = KV + key
    old = tx.get(raw)
    if old is None:
        return Result(True, index)
    if cas is not None and cas != decode_key(raw, old).modify_index:
        return Result(False, index)
    drop_key(tx, index, key, old, Cause.DELETE)
    return Result(True, index)


def drop_key(tx: Transaction, index: int, key: bytes, old: bytes, cause: Cause) -> None:
    """Delete a key that exists, and leave a tombstone. A lock goes with it, without lock-delay."""
    tx.remove(KV + key, old)
    holder = holder_of(old)
    if holder:
        tx.overlay[HELD + holder + key] = None
    if old[KEY_VERSION_AT] == KEY_TIMED:
        tx.end_ttl(key)
    tx.count -= 1
    tx.bury(GRAVES, key, index)
    tx.changed(index, key, old, cause)


def delete_tree(tx: Transaction, index: int, command: KvDeleteTree) -> Result:
    """Delete everything under a prefix: one tombstone for all, none for the empty prefix.

    Nothing there: nothing changes, as in Consul. The table's index moves in both other cases.
    """
    prefix = command.prefix
    deleted = 0
    for raw, old in tx.scan(*key_range(KV, prefix)):
        tx.remove(raw, old)
        holder = holder_of(old)
        if holder:
            tx.overlay[HELD + holder + raw[1:]] = None
        if tx.recording:
            tx.record(index, raw[1:], old, Cause.DELETE_TREE)
        if old[KEY_VERSION_AT] == KEY_TIMED:
            tx.end_ttl(raw[1:])
        deleted += 1
    if deleted:
        tx.count -= deleted
        if prefix:
            tx.bury(TREE_GRAVES, prefix, index)
        tx.kv_index = index
        if tx.changes is not None:
            tx.changes.append((index, prefix, True))
    return Result(True, index)


KEEP_TTL: Final = -1
"""For ``put_pair``: whatever the time of the key is."""


def put_pair(
    tx: Transaction,
    pair: KVPair,
    former: KVPair | None,
    old: bytes | None,
    cause: Cause,
    ttl_ns: int = 0,
) -> int:
    """Write a key unless only its modify index would change (spec §2.1); return the one it has then.

    Args:
        tx: The batch.
        pair: What the key shall be; its modify index is the entry's.
        former: What it was, if it was.
        old: The record of that.
        cause: What does it.
        ttl_ns: 0: it does not expire; ``KEEP_TTL``: as before. Else its time begins now. Where nothing
            else changes, that is no change of the key: it renews its life.
    """
    key, value, flags, create, index, lock_index, session = pair
    before = None if old is None else ttl_of(old)
    ttl = before if ttl_ns == KEEP_TTL else (index, ttl_ns) if ttl_ns else None
    same = former is not None and pair._replace(modify_index=former.modify_index) == former
    if same and (before is None) == (ttl is None):
        assert former is not None
        index = former.modify_index
        if ttl == before:
            return index
    raw = KV + key
    record = encode_key(raw, value, flags, create, index, lock_index, session.encode(), ttl)
    tx.put(raw, record, old)
    if ttl is None and before is not None:
        tx.end_ttl(key)
    elif ttl is not None and ttl != before:
        tx.begin_ttl(key, *ttl)
    if index != pair.modify_index:
        return index
    tx.count += old is None
    tx.changed(index, key, old, cause)
    return index


def reap_graves(tx: Transaction, index: int, command: ReapGraves) -> Result:
    """Forget old tombstones, oldest first; no index moves (spec §2.3)."""
    old = [decode_order_key(raw) for raw, _ in tx.scan(GRAVE_ORDER, order_stop(command.upto))]
    for grave_index, raw in old:
        if not tx.unbury(raw, grave_index):
            raise CorruptLog(f"the tombstones' order names {raw!r} at {grave_index}: not there")
    return Result(len(old), index)
