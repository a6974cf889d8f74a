"""How the store's data looks as bytes: raw keys by table, records, and the meta record.

A raw key is one table byte and the table's own key; an engine holds nothing else, except the one meta
record. Numbers inside records are little-endian; numbers inside *keys* are big-endian, so that bytes
order as the numbers do. Every record that counts for the digest starts with its *mark*: 16 bytes of
BLAKE2b over its raw key and body. The store's digest is the sum of all marks modulo 2^128, so a write
needs to hash only the new record: the old mark is read, not computed again.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from kvnode.errors import CorruptLog

KV: Final = b"k"
"""Table of keys: ``k`` + key -> key record."""
GRAVES: Final = b"g"
"""Tombstones of single keys: ``g`` + key -> grave record (spec §2.3)."""
TREE_GRAVES: Final = b"t"
"""Tombstones of deleted trees: ``t`` + prefix -> grave record. A table of its own, because a tree's
grave also speaks for every prefix below it."""
GRAVE_ORDER: Final = b"o"
"""Graves by age: ``o`` + index as 8 big-endian bytes + table byte + key -> empty. Derived from the two
tables above, so that reaping costs what it reaps; it has no marks and is not in the digest."""
META_KEY: Final = b"m"
"""The one meta record, see ``Meta``."""
SESSIONS: Final = b"s"
"""Reserved: sessions by id."""
SESSION_KEYS: Final = b"h"
"""Reserved: keys held by a session."""

MARKED: Final = frozenset({KV, GRAVES, TREE_GRAVES})
"""Tables whose records start with a mark and count for the digest."""
TABLES: Final = MARKED | {GRAVE_ORDER}
"""Every table that this version writes."""

MARK_BYTES: Final = 16
DIGEST_MASK: Final = (1 << 128) - 1

KEY_VERSION: Final = 1
KEY_BODY: Final = Struct("<BBQQQQ")
"""Version, length of the session id, create, modify and lock index, flags; then session, value."""
KEY_HEAD: Final = Struct("<16sBBQQQQ")
"""Mark and body together, for reading."""
KEY_MODIFY: Final = Struct("<Q")
KEY_MODIFY_AT: Final = MARK_BYTES + 2 + 8
"""Where the modify index stands inside a key record."""

GRAVE_VERSION: Final = 1
GRAVE_BODY: Final = Struct("<BQ")
"""Version, index."""
GRAVE_BYTES: Final = MARK_BYTES + GRAVE_BODY.size

META_VERSION: Final = 1
_META: Final = Struct("<BQQQQQ16s")
_LENGTH: Final = Struct("<I")
_ORDER: Final = Struct(">Q")
_INDEX_MAX: Final = (1 << 64) - 1


class KVPair(NamedTuple):
    """One stored key."""

    key: bytes
    value: bytes
    flags: int
    """0 … 2^64-1."""
    create_index: int
    """Index of the entry that created the key."""
    modify_index: int
    """Index of the entry that last changed it (spec §2.1)."""
    lock_index: int
    """How often the key was locked since the last plain set."""
    session: str
    """Id of the session that holds the key; empty when none does."""


class Meta(NamedTuple):
    """What the store knows about itself; written in every engine batch (RC-6)."""

    applied_index: int = 0
    """Index of the last applied entry; 0 before the first."""
    kv_index: int = 0
    """Index of the last change to any key; 0 when there never was one."""
    graves_index: int = 0
    """Index of the last tombstone made; never above ``kv_index``. Not lowered by reaping."""
    count: int = 0  # type: ignore[assignment]  # a field, not tuple.count
    """Number of keys."""
    tree_graves: int = 0
    """Number of tombstones of trees."""
    digest: int = 0
    """Sum of all marks modulo 2^128."""


def mark_of(raw: bytes, body: bytes) -> bytes:
    """Return the mark of a record: 16 bytes. The raw key's length keeps key and body apart."""
    return blake2b(_LENGTH.pack(len(raw)) + raw + body, digest_size=16).digest()


def decode_key(raw: bytes, record: bytes) -> KVPair:
    """Read a key record.

    Raises:
        CorruptLog: It is no key record of a known version.
    """
    try:
        _, version, size, create, modify, lock, flags = KEY_HEAD.unpack_from(record)
    except StructError as error:
        raise CorruptLog(f"the record of key {raw[1:]!r} is too short") from error
    if version != KEY_VERSION or len(record) < 50 + size:
        raise CorruptLog(f"the record of key {raw[1:]!r} has an unknown form ({version})")
    session = record[50 : 50 + size].decode("ascii", "replace") if size else ""
    return KVPair(raw[1:], record[50 + size :], flags, create, modify, lock, session)


def encode_grave(raw: bytes, index: int) -> bytes:
    """Build a grave record."""
    body = GRAVE_BODY.pack(GRAVE_VERSION, index)
    return mark_of(raw, body) + body


def decode_grave(raw: bytes, record: bytes) -> int:
    """Return a grave's index.

    Raises:
        CorruptLog: It is no grave record of a known version.
    """
    if len(record) != GRAVE_BYTES or record[MARK_BYTES] != GRAVE_VERSION:
        raise CorruptLog(f"the tombstone {raw!r} has an unknown form")
    index: int = GRAVE_BODY.unpack_from(record, MARK_BYTES)[1]
    return index


def order_key(index: int, raw: bytes) -> bytes:
    """Return the raw key in the order table of the grave whose raw key is ``raw``."""
    return GRAVE_ORDER + _ORDER.pack(index) + raw


def order_stop(upto: int) -> bytes:
    """Return the raw key in the order table above every grave with an index up to ``upto``."""
    return GRAVE_ORDER + _ORDER.pack(min(max(upto, 0), _INDEX_MAX - 1) + 1)


def decode_order_key(raw: bytes) -> tuple[int, bytes]:
    """Return the index and the grave's raw key, the inverse of ``order_key``.

    Raises:
        CorruptLog: The key is too short.
    """
    if len(raw) < 10:
        raise CorruptLog(f"the row {raw!r} of the tombstones' order is too short")
    index: int = _ORDER.unpack_from(raw, 1)[0]
    return index, raw[9:]


def encode_meta(meta: Meta) -> bytes:
    """Build the meta record."""
    digest = meta.digest.to_bytes(MARK_BYTES, "big")
    return _META.pack(META_VERSION, *meta[:5], digest)


def decode_meta(record: bytes) -> Meta:
    """Read the meta record.

    Raises:
        CorruptLog: It is of no known version, or says what cannot be.
    """
    if len(record) != _META.size or record[0] != META_VERSION:
        raise CorruptLog("the store's meta record has an unknown form")
    _, applied, kv_index, graves_index, count, trees, digest = _META.unpack(record)
    if not graves_index <= kv_index <= applied:
        raise CorruptLog(
            f"the store's meta record contradicts itself: applied {applied}, last change "
            f"{kv_index}, last tombstone {graves_index}"
        )
    return Meta(applied, kv_index, graves_index, count, trees, int.from_bytes(digest, "big"))


def successor(prefix: bytes) -> bytes | None:
    """Return the first byte string that is above every one with ``prefix``; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def key_range(table: bytes, prefix: bytes) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of the raw keys of one table under a prefix."""
    stop = successor(table + prefix)
    assert stop is not None, "no table byte is 0xff"
    return table + prefix, stop
