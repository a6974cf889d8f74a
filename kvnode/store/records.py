"""How the store's data looks as bytes: raw keys by table, records, and the meta record.

A raw key is one table byte and the table's own key; an engine holds nothing else, except the one meta
record. Numbers inside records are little-endian; numbers inside *keys* are big-endian, so that bytes
order as the numbers do. Every record that counts for the digest starts with its *mark*: 16 bytes of
BLAKE2b over its raw key and body. The store's digest is the sum of all marks modulo 2^128, so a write
needs to hash only the new record: the old mark is read, not computed again.
"""

from __future__ import annotations

from enum import IntEnum
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
"""Sessions: ``s`` + id -> session record."""
HELD: Final = b"h"
"""Keys by the session that holds them: ``h`` + id + key -> empty. Derived from the keys."""
DELAYS: Final = b"d"
"""Lock-delays: ``d`` + key -> delay record (spec §5.5). It says at which index the delay began and how
long it is, and never what time it is: each node's clock starts when it learns of it (RC-62)."""
DELAY_ORDER: Final = b"e"
"""Lock-delays by age, as ``GRAVE_ORDER``: ``e`` + index as 8 big-endian bytes + ``d`` + key -> empty."""
PARAMETERS: Final = b"p"
"""Parameters of the cluster: ``p`` + name of the group -> record, see ``control``."""
EVENTS: Final = b"v"
"""The newest events: ``v`` + index as 8 big-endian bytes -> event record, see ``control``."""
CHANGES: Final = b"c"
"""Changes of keys by index: ``c`` + index as 8 big-endian bytes + key -> size of its revision. At most one
per key and index: what an entry does to a key in several steps is one change."""
REVISIONS: Final = b"r"
"""The same by key: ``r`` + length of the key as 4 big-endian bytes + key + index as 8 -> what did it, and the
key's record before. Neither is in the digest, see ``change_records`` and ``history``."""
TTLS: Final = b"x"
"""Keys that expire: ``x`` + key -> index at which their time began, and nanoseconds. Derived from the key
records, so that a leader finds them without reading all keys."""
ONCE: Final = b"i"
"""Writes with an idempotency key: ``i`` + that key -> once record (see ``once``)."""
ONCE_ORDER: Final = b"j"
"""The same by age, as ``GRAVE_ORDER``: ``j`` + index as 8 big-endian bytes + ``i`` + key -> empty."""
ONCE_COUNT: Final = b"q"
"""The one record that says how many of them there are."""

NODES: Final = b"N"
"""``N`` + node -> node record."""
SERVICES: Final = b"V"
"""``V`` + node + NUL + service id -> service record."""
CHECKS: Final = b"C"
"""``C`` + node + NUL + check id -> check record."""
INDEXES: Final = b"I"
"""``I`` + name -> the index of reads of that name: a grave record. See ``registry.touch``."""
BY_NAME: Final = b"J"
"""``J`` + service name + NUL + node + NUL + service id -> empty. Derived from the services."""
BY_SERVICE: Final = b"Q"
"""``Q`` + node + NUL + service id + NUL + check id -> empty; the id is empty for a check of the node.
Derived from the checks."""
BOUND: Final = b"B"
"""``B`` + node + NUL + check id + NUL + session id -> empty: which sessions a check ends; an empty check
id stands for the node itself, and each session has that row. Derived from the sessions."""

RESTORE: Final = b"w"
"""What a restore has staged, and which one was the last: see ``kvnode.store.restore``. Without marks."""

MARKED: Final = frozenset(
    {KV, GRAVES, TREE_GRAVES, SESSIONS, DELAYS, PARAMETERS, EVENTS, ONCE, ONCE_COUNT}
    | {NODES, SERVICES, CHECKS, INDEXES}
)
"""Tables whose records start with a mark and count for the digest."""
TABLES: Final = (
    MARKED
    | {GRAVE_ORDER, HELD, DELAY_ORDER, CHANGES, REVISIONS, TTLS, ONCE_ORDER}
    | {BY_NAME, BY_SERVICE, BOUND, RESTORE}
)
"""Every table that this version writes."""

MARK_BYTES: Final = 16
DIGEST_MASK: Final = (1 << 128) - 1

KEY_VERSION: Final = 1
KEY_TIMED: Final = 2
"""Version of a key that expires: ``KEY_TTL`` stands between session and value."""
KEY_VERSION_AT: Final = MARK_BYTES
KEY_TTL: Final = Struct("<QQ")
"""Index at which a key's time began, nanoseconds."""
KEY_BODY: Final = Struct("<BBQQQQ")
"""Version, length of the session id, create, modify and lock index, flags; then session, value."""
KEY_HEAD: Final = Struct("<16sBBQQQQ")
"""Mark and body together, for reading."""
KEY_MODIFY: Final = Struct("<Q")
KEY_MODIFY_AT: Final = MARK_BYTES + 2 + 8
"""Where the modify index stands inside a key record."""
KEY_SESSION_SIZE_AT: Final = MARK_BYTES + 1
"""Where the length of the session's id stands inside a key record."""

GRAVE_VERSION: Final = 1
GRAVE_BODY: Final = Struct("<BQ")
"""Version, index."""
GRAVE_BYTES: Final = MARK_BYTES + GRAVE_BODY.size

RELEASE: Final = 0
"""Behaviour of a session: its end releases the keys that it holds."""
DELETE: Final = 1
"""Behaviour of a session: its end deletes them."""
SESSION_ID_CHARACTERS: Final = 36
SESSION_VERSION: Final = 1
SESSION_BODY: Final = Struct("<BBQQqQHH")
"""Version, behaviour, create and modify index, lock-delay and TTL in nanoseconds, number of node checks
and of service checks; then texts, each with its length before it: name, node, TTL, checks."""

DELAY_VERSION: Final = 1
DELAY_BODY: Final = Struct("<BQQ")
"""Version, index, nanoseconds."""
DELAY_BYTES: Final = MARK_BYTES + DELAY_BODY.size
LOCK_DELAY_MAX_NS: Final = 60_000_000_000
"""A longer lock-delay acts as this one (spec §5.1)."""

META_VERSION: Final = 3
_META: Final = Struct("<BQQQQQ16sQQBQQQQQ")
_META_2: Final = Struct("<BQQQQQ16sQQ")
"""Version 2, from before there was a history."""
_META_1: Final = Struct("<BQQQQQ16s")
"""Version 1, from before there were sessions."""
_LENGTH: Final = Struct("<I")
_ORDER: Final = Struct(">Q")
_INDEX_MAX: Final = (1 << 64) - 1


class Cause(IntEnum):
    """What changed a key. The numbers are on disk."""

    PUT = 1
    ACQUIRE = 2
    RELEASE = 3
    DELETE = 4
    DELETE_TREE = 5
    SESSION_END = 6
    """The session that held it ended: released, or deleted."""
    EXPIRE = 7
    """Its own time was over."""
    COPY = 8
    MOVE = 9
    ADD = 10
    """A counter was counted up or down."""


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


class Session(NamedTuple):
    """One session (spec §5.2)."""

    session_id: str
    name: str
    node: str
    """Name of the node that it belongs to."""
    lock_delay_ns: int
    behavior: int
    """``RELEASE`` or ``DELETE``."""
    ttl: str
    """As the client wrote it; empty: none."""
    ttl_ns: int
    """0: it does not expire."""
    node_checks: tuple[str, ...]
    service_checks: tuple[tuple[str, str], ...]
    """Pairs of id and namespace."""
    create_index: int
    modify_index: int


HISTORY_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of history in a store whose leader has not said how many."""


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
    session_index: int = 0
    """Index of the last session made or ended; 0 when there never was one."""
    sessions: int = 0
    """Number of sessions."""
    recording: bool = True
    """Whether changes are kept as history."""
    history_floor: int = 0
    """Every change above this index is known; means nothing while nothing is recorded."""
    history_rows: int = 0
    """Number of changes kept, also of those that are to be forgotten."""
    history_bytes: int = 0
    """Bytes of their rows, in both tables."""
    history_base: int = 0
    """Every row up to this index is gone; never above ``history_floor``."""
    history_limit: int = HISTORY_LIMIT
    """Bytes to which the leader trims. Twice as many there are never: what would not fit is not recorded,
    and the window begins anew behind it."""


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
    value_at = 50 + size
    if version == KEY_TIMED:
        value_at += KEY_TTL.size
    elif version != KEY_VERSION:
        raise CorruptLog(f"the record of key {raw[1:]!r} has an unknown form ({version})")
    if len(record) < value_at:
        raise CorruptLog(f"the record of key {raw[1:]!r} is too short")
    session = record[50 : 50 + size].decode("ascii", "replace") if size else ""
    return KVPair(raw[1:], record[value_at:], flags, create, modify, lock, session)


def ttl_of(record: bytes) -> tuple[int, int] | None:
    """Return at which index a key's time began and how many nanoseconds it has, from its record, which
    ``decode_key`` could read; None: it does not expire.
    """
    if record[KEY_VERSION_AT] != KEY_TIMED:
        return None
    since, ttl_ns = KEY_TTL.unpack_from(record, KEY_HEAD.size + record[KEY_SESSION_SIZE_AT])
    return since, ttl_ns


def encode_key(
    raw: bytes,
    value: bytes,
    flags: int,
    create_index: int,
    modify_index: int,
    lock_index: int,
    session: bytes,
    ttl: tuple[int, int] | None = None,
) -> bytes:
    """Build a key record, the inverse of ``decode_key`` and ``ttl_of``. The hot path has this inlined."""
    version = KEY_VERSION if ttl is None else KEY_TIMED
    body = KEY_BODY.pack(version, len(session), create_index, modify_index, lock_index, flags)
    body += session
    if ttl is not None:
        body += KEY_TTL.pack(*ttl)
    body += value
    return mark_of(raw, body) + body


def holder_of(record: bytes) -> bytes:
    """Return the id of the session that holds a key, from its record; empty when none does."""
    size = record[KEY_SESSION_SIZE_AT]
    return record[KEY_HEAD.size : KEY_HEAD.size + size] if size else b""


def encode_session(raw: bytes, session: Session) -> bytes:
    """Build a session record.

    Raises:
        StructError: A number is out of range.
    """
    checks, services = session.node_checks, session.service_checks
    parts = [
        SESSION_BODY.pack(
            SESSION_VERSION,
            session.behavior,
            session.create_index,
            session.modify_index,
            session.lock_delay_ns,
            session.ttl_ns,
            len(checks),
            len(services),
        )
    ]
    texts = [session.name, session.node, session.ttl, *checks]
    for pair in services:
        texts += pair
    for text in texts:
        encoded = text.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    body = b"".join(parts)
    return mark_of(raw, body) + body


def decode_session(raw: bytes, record: bytes) -> Session:
    """Read a session record.

    Raises:
        CorruptLog: It is no session record of a known version.
    """
    try:
        version, behavior, create, modify, delay, ttl_ns, checks, services = (
            SESSION_BODY.unpack_from(record, MARK_BYTES)
        )
        if version != SESSION_VERSION:
            raise CorruptLog(f"the record of session {raw[1:]!r} has an unknown form ({version})")
        texts: list[str] = []
        at = MARK_BYTES + SESSION_BODY.size
        for _ in range(3 + checks + 2 * services):
            size: int = _LENGTH.unpack_from(record, at)[0]
            at += _LENGTH.size + size
            texts.append(record[at - size : at].decode())
        session_id = raw[1:].decode("ascii")
    except (StructError, UnicodeDecodeError) as error:
        raise CorruptLog(f"the record of session {raw[1:]!r} is not readable") from error
    if at != len(record):
        raise CorruptLog(f"the record of session {raw[1:]!r} is not as long as it says")
    name, node, ttl = texts[:3]
    pairs = texts[3 + checks :]
    return Session(
        session_id,
        name,
        node,
        delay,
        behavior,
        ttl,
        ttl_ns,
        tuple(texts[3 : 3 + checks]),
        tuple(zip(pairs[::2], pairs[1::2], strict=True)),
        create,
        modify,
    )


def encode_delay(raw: bytes, index: int, delay_ns: int) -> bytes:
    """Build a delay record."""
    body = DELAY_BODY.pack(DELAY_VERSION, index, delay_ns)
    return mark_of(raw, body) + body


def decode_delay(raw: bytes, record: bytes) -> tuple[int, int]:
    """Return at which index a lock-delay began, and how many nanoseconds it lasts.

    Raises:
        CorruptLog: It is no delay record of a known version.
    """
    if len(record) != DELAY_BYTES or record[MARK_BYTES] != DELAY_VERSION:
        raise CorruptLog(f"the lock-delay {raw!r} has an unknown form")
    _, index, delay_ns = DELAY_BODY.unpack_from(record, MARK_BYTES)
    return index, delay_ns


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


def order_key(index: int, raw: bytes, table: bytes = GRAVE_ORDER) -> bytes:
    """Return the raw key in an order table of the record whose raw key is ``raw``."""
    return table + _ORDER.pack(index) + raw


def order_stop(upto: int, table: bytes = GRAVE_ORDER) -> bytes:
    """Return the raw key in an order table above every row with an index up to ``upto``."""
    return table + _ORDER.pack(min(max(upto, 0), _INDEX_MAX - 1) + 1)


def decode_order_key(raw: bytes) -> tuple[int, bytes]:
    """Return the index and the raw key that it orders, the inverse of ``order_key``.

    Raises:
        CorruptLog: The key is too short.
    """
    if len(raw) < 10:
        raise CorruptLog(f"the row {raw!r} of an order table is too short")
    index: int = _ORDER.unpack_from(raw, 1)[0]
    return index, raw[9:]


def encode_meta(meta: Meta) -> bytes:
    """Build the meta record."""
    digest = meta.digest.to_bytes(MARK_BYTES, "big")
    return _META.pack(META_VERSION, *meta[:5], digest, *meta[6:])


def _from_before(record: bytes) -> bytes:
    """Bring an older version's meta record to the present form: its history begins now."""
    if len(record) == _META_1.size and record[0] == 1:
        record = b"\2" + record[1:] + bytes(_META_2.size - _META_1.size)
    if len(record) == _META_2.size and record[0] == 2:
        applied, limit = record[1:9], HISTORY_LIMIT.to_bytes(8, "little")
        history = b"\1" + applied + bytes(16) + applied + limit
        record = bytes((META_VERSION,)) + record[1:] + history
    return record


def decode_meta(record: bytes) -> Meta:
    """Read the meta record.

    Raises:
        CorruptLog: It is of no known version, or says what cannot be.
    """
    record = _from_before(record)
    if len(record) != _META.size or record[0] != META_VERSION:
        raise CorruptLog("the store's meta record has an unknown form")
    fields = list(_META.unpack(record)[1:])
    fields[5] = int.from_bytes(fields[5], "big")
    fields[8] = bool(fields[8])
    meta = Meta(*fields)
    applied = meta.applied_index
    if (
        not meta.graves_index <= meta.kv_index <= applied
        or max(meta.session_index, meta.history_floor) > applied
        or meta.history_base > meta.history_floor
    ):
        raise CorruptLog(f"the store's meta record contradicts itself: {meta}")
    return meta


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
