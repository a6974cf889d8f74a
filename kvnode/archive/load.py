"""From ``state.bin`` to the pieces of a restore.

Two passes over the file. The first one checks every record and gathers what is small: sessions and
lock-delays. The second one makes pieces. So nothing is handed out of an archive that turns out bad at its
last byte, and the keys, which may be many, are never all in memory; only when they are not in the order in
which Consul writes them are their names and places gathered to be sorted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple

import msgpack

from kvnode.archive import state as records
from kvnode.archive.state import Fields, Reader, Record, number, raw_bytes, text
from kvnode.errors import BadArchive, BadRequest
from kvnode.store.commands import SessionCreate, check_command
from kvnode.store.fields import INT64_MAX
from kvnode.store.records import (
    DELAYS,
    DELETE,
    KV,
    LOCK_DELAY_MAX_NS,
    RELEASE,
    SESSIONS,
    Session,
    encode_delay,
    encode_key,
    encode_session,
)
from kvnode.store.registry_records import is_name
from kvnode.store.snapshot import Row, encode_rows

PIECE_BYTES: Final = 512 << 10
"""A piece is closed before it is longer; one large value can make it larger."""
KEY_BYTES_MAX: Final = 64 << 10
VALUE_BYTES_MAX: Final = 8 << 20
"""The largest that the settings allow: a piece is one log entry, and has to fit into a frame."""
SESSIONS_MAX: Final = 100_000
SESSION_BYTES_MAX: Final = 64 << 10
"""Sessions are held in memory while an archive is checked."""
UNSORTED_KEYS_MAX: Final = 1_000_000
"""So are the names of keys that are not in order; Consul and kvnode write them in order."""
_WANTED: Final = frozenset({records.SESSION, records.KV})
_IGNORED: Final = frozenset({records.TOMBSTONE, records.TABLE_INDEX})
"""Understood, and without a meaning for a restore: every index begins anew there."""
_DAY_NS: Final = 86_400 * 10**9
_BEHAVIORS: Final = {"": RELEASE, "release": RELEASE, "delete": DELETE}

ParseDuration = Callable[[str], int]
"""From Go's notation to nanoseconds; raises ``ValueError``."""


class Loaded(NamedTuple):
    """A state that was found good."""

    pieces: Iterator[bytes]
    """What to stage, in order; reads the file as it goes."""
    keys: int
    sessions: int
    skipped: Mapping[str, int]
    """Names of the kinds of record that kvnode has no use for, and how many there were."""
    released: int
    """Keys that were held by a session that is not in the archive: they are free now."""


def load(state: IO[bytes], parse_duration: ParseDuration) -> Loaded:
    """Check a state and get ready to hand it out.

    Args:
        state: A file that is at its beginning, and stays open until the last piece was taken.
        parse_duration: For the TTL of sessions.

    Raises:
        BadArchive: Something in it cannot be.
    """
    check = _Check(parse_duration)
    reader = Reader(state, _WANTED)
    check.header(reader.header)
    for record in reader.records():
        check.record(record)
    places = _sorted_places(state) if check.out_of_order else None
    return Loaded(
        _pieces(state, check, places),
        check.keys,
        len(check.sessions),
        {_name(kind): count for kind, count in sorted(check.skipped.items())},
        check.unheld(),
    )


def _name(kind: int) -> str:
    return records.NAMES.get(kind, f"type {kind}")


class _Check:
    """The first pass."""

    def __init__(self, parse_duration: ParseDuration) -> None:
        self._parse_duration = parse_duration
        self.sessions: dict[str, Session] = {}
        self.delays: dict[bytes, int] = {}
        self.skipped: Counter[int] = Counter()
        self.keys = 0
        self.out_of_order = False
        self._last = b""
        self._holders: Counter[str] = Counter()

    def header(self, fields: Fields) -> None:
        for pair in _list(records.extra(fields), b"LockDelays"):
            if not isinstance(pair, list) or len(pair) != 2:
                raise BadArchive("the lock-delays of the archive are not readable")
            key, delay_ns = pair
            if type(key) is not bytes or type(delay_ns) is not int or len(key) > KEY_BYTES_MAX:
                raise BadArchive("the lock-delays of the archive are not readable")
            if delay_ns > 0:
                self.delays[key] = min(delay_ns, LOCK_DELAY_MAX_NS)

    def record(self, record: Record) -> None:
        if record.kind == records.KV:
            assert record.fields is not None, "wanted"
            self._key(record.fields)
        elif record.kind == records.SESSION:
            assert record.fields is not None, "wanted"
            if record.size > SESSION_BYTES_MAX:
                raise BadArchive(f"a session has {record.size} bytes, at most {SESSION_BYTES_MAX}")
            if len(self.sessions) >= SESSIONS_MAX:
                raise BadArchive(f"there are more than {SESSIONS_MAX} sessions")
            session = _session(record.fields, self._parse_duration)
            if session.session_id in self.sessions:
                raise BadArchive(f"the session {session.session_id} is there twice")
            self.sessions[session.session_id] = session
        elif record.kind not in _IGNORED:
            self.skipped[record.kind] += 1

    def _key(self, fields: Fields) -> None:
        key, _ = _row(fields, None)
        holder = text(fields, b"Session")
        if holder:
            self._holders[holder] += 1
        if self.keys and key <= self._last:
            if key == self._last:
                raise BadArchive(f"the key {key[1:60]!r} is there twice")
            self.out_of_order = True
        if self.out_of_order and self.keys >= UNSORTED_KEYS_MAX:
            raise BadArchive(f"more than {UNSORTED_KEYS_MAX} keys are not in order")
        self._last = key
        self.keys += 1

    def unheld(self) -> int:
        """How many keys are held by a session that is not there."""
        return sum(n for holder, n in self._holders.items() if holder not in self.sessions)


def _list(fields: Fields, name: bytes) -> list[Any]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadArchive(f"{name.decode()} of a record is no list")
    return value


def _texts(fields: Fields, name: bytes) -> tuple[str, ...]:
    found = _list(fields, name)
    if not all(type(item) is bytes for item in found):
        raise BadArchive(f"{name.decode()} of a record is no list of texts")
    return tuple([item.decode("utf-8", "replace") for item in found])


def _session(fields: Fields, parse_duration: ParseDuration) -> Session:
    session_id = text(fields, b"ID")
    behavior = _BEHAVIORS.get(text(fields, b"Behavior"))
    if behavior is None:
        raise BadArchive(f"the session {session_id[:60]!r} has an unknown behavior")
    ttl = text(fields, b"TTL")
    try:
        ttl_ns = min(max(parse_duration(ttl), 0), _DAY_NS) if ttl else 0
    except ValueError as error:
        raise BadArchive(f"the session {session_id[:60]!r} has a bad TTL: {error}") from error
    # Before 1.7 there was one list of checks.
    checks = _texts(fields, b"NodeChecks") or _texts(fields, b"Checks")
    session = Session(
        session_id,
        text(fields, b"Name"),
        text(fields, b"Node"),
        number(fields, b"LockDelay", -INT64_MAX, INT64_MAX),
        behavior,
        ttl,
        ttl_ns,
        checks,
        tuple(map(_service_check, _list(fields, b"ServiceChecks"))),
        max(1, number(fields, b"CreateIndex")),
        max(1, number(fields, b"ModifyIndex")),
    )
    names = (session.node, *checks, *(name for name, _ in session.service_checks))
    try:
        check_command(SessionCreate(*session[:9]))
    except BadRequest as error:
        raise BadArchive(f"the session {session_id[:60]!r} is not sound") from error
    if not all(map(is_name, names)):
        raise BadArchive(f"the session {session_id[:60]!r} names what can have no such name")
    return session


def _service_check(value: object) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise BadArchive("a service check of a session is no map")
    return text(value, b"ID"), text(value, b"Namespace")


def _row(fields: Fields, sessions: Mapping[str, Session] | None) -> Row:
    """Make a key's row; without ``sessions`` only check it.

    Raises:
        BadArchive: It cannot be one.
    """
    key, value = raw_bytes(fields, b"Key"), raw_bytes(fields, b"Value")
    if len(key) > KEY_BYTES_MAX:
        raise BadArchive(f"the key {key[:60]!r}… has {len(key)} bytes, at most {KEY_BYTES_MAX}")
    if len(value) > VALUE_BYTES_MAX:
        raise BadArchive(
            f"the value of {key[:60]!r} has {len(value)} bytes, at most {VALUE_BYTES_MAX}"
        )
    flags, lock_index = number(fields, b"Flags"), number(fields, b"LockIndex")
    modify = max(1, number(fields, b"ModifyIndex"))
    create = min(max(1, number(fields, b"CreateIndex")), modify)
    holder = text(fields, b"Session")
    ttl_ns = number(records.extra(fields), b"TTL", 0, INT64_MAX)
    raw = KV + key
    if sessions is None:
        return raw, b""
    if holder not in sessions:
        holder = ""
    ttl = (1, ttl_ns) if ttl_ns else None
    return raw, encode_key(
        raw, value, flags, create, modify, lock_index, holder.encode("ascii"), ttl
    )


# --- the second pass -------------------------------------------------------------------------


def _pieces(
    state: IO[bytes], check: _Check, places: list[tuple[bytes, int, int]] | None
) -> Iterator[bytes]:
    rows: list[Row] = []
    size = 0
    for row in itertools.chain(
        _sessions(check), _delays(check), _keys(state, check.sessions, places)
    ):
        length = len(row[0]) + len(row[1])
        if rows and size + length > PIECE_BYTES:
            yield encode_rows(rows)
            rows, size = [], 0
        rows.append(row)
        size += length
    yield encode_rows(rows)  # at least one piece, even of nothing: it begins the restore


def _sessions(check: _Check) -> Iterator[Row]:
    for session_id, session in sorted(check.sessions.items()):
        raw = SESSIONS + session_id.encode("ascii")
        yield raw, encode_session(raw, session)


def _delays(check: _Check) -> Iterator[Row]:
    for key, delay_ns in sorted(check.delays.items()):
        raw = DELAYS + key
        yield raw, encode_delay(raw, 1, delay_ns)


def _keys(
    state: IO[bytes],
    sessions: Mapping[str, Session],
    places: list[tuple[bytes, int, int]] | None,
) -> Iterator[Row]:
    if places is not None:
        for _, at, size in places:
            state.seek(at)
            data = state.read(size)
            fields = msgpack.unpackb(data[1:], raw=True, strict_map_key=False)
            yield _row(fields, sessions)
        return
    state.seek(0)
    for record in Reader(state, frozenset({records.KV})).records():
        if record.fields is not None:
            yield _row(record.fields, sessions)


def _sorted_places(state: IO[bytes]) -> list[tuple[bytes, int, int]]:
    """Return name, place and length of every key's record, by name."""
    state.seek(0)
    found = [
        (raw_bytes(record.fields, b"Key"), record.at, record.size)
        for record in Reader(state, frozenset({records.KV})).records()
        if record.fields is not None
    ]
    found.sort()
    for one, other in itertools.pairwise(found):
        if one[0] == other[0]:
            raise BadArchive(f"the key {one[0][:60]!r} is there twice")
    return found
