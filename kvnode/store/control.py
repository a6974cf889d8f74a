"""What commands about the cluster itself do to the data, and how it is stored.

Two small tables: ``p`` holds one record per group of parameters, ``v`` the newest events by index. Both count
for the digest, so that every node is known to hold the same.
"""

from __future__ import annotations

from contextlib import closing
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from kvnode.errors import CorruptLog
from kvnode.store.commands import Result
from kvnode.store.control_commands import EVENTS_KEPT, AutopilotSet, EventFire
from kvnode.store.engine import Engine
from kvnode.store.records import EVENTS, MARK_BYTES, PARAMETERS, key_range, mark_of
from kvnode.store.tables import Transaction

AUTOPILOT_KEY: Final = PARAMETERS + b"autopilot"
_AUTOPILOT_VERSION: Final = 1
_AUTOPILOT: Final = Struct("<BBBqqQQQQ")
"""Version, two switches, contact and stabilization in nanoseconds, trailing logs, quorum, create and modify
index; then two texts."""
_EVENT_VERSION: Final = 1
_LENGTH: Final = Struct("<I")
_INDEX: Final = Struct(">Q")


class Autopilot(NamedTuple):
    """The stored parameters; the members mean what ``AutopilotSet``'s do."""

    cleanup_dead_servers: bool
    last_contact_threshold_ns: int
    max_trailing_logs: int
    min_quorum: int
    server_stabilization_ns: int
    redundancy_zone_tag: str
    disable_upgrade_migration: bool
    upgrade_version_tag: str
    create_index: int
    modify_index: int


class Event(NamedTuple):
    """One event; the members mean what ``EventFire``'s do."""

    event_id: str
    name: str
    payload: bytes
    node_filter: str
    service_filter: str
    tag_filter: str
    fired_at: int
    """Index of its entry."""


def set_autopilot(tx: Transaction, index: int, command: AutopilotSet) -> Result:
    """Set the parameters."""
    cas = command.cas
    old = tx.get(AUTOPILOT_KEY)
    known = None if old is None else decode_autopilot(old)
    if cas is not None and cas != (0 if known is None else known.modify_index):
        return Result(False, index)
    created = index if known is None else known.create_index
    tx.put(AUTOPILOT_KEY, _encode_autopilot(Autopilot(*command[:8], created, index)), old)
    return Result(True, index, index)


def fire_event(tx: Transaction, index: int, command: EventFire) -> Result:
    """Keep an event, and forget the oldest ones."""
    raw = EVENTS + _INDEX.pack(index)
    with closing(tx.scan(*key_range(EVENTS, b""))) as rows:
        kept = sorted(rows)
    for oldest, record in kept[: max(0, len(kept) + 1 - EVENTS_KEPT)]:
        tx.remove(oldest, record)
    parts = (
        command.event_id.encode(),
        command.name.encode(),
        command.payload,
        command.node_filter.encode(),
        command.service_filter.encode(),
        command.tag_filter.encode(),
    )
    body = bytes((_EVENT_VERSION,)) + b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    tx.put(raw, mark_of(raw, body) + body, None)
    tx.event_fired = index
    return Result(True, index)


def read_autopilot(engine: Engine) -> Autopilot | None:
    """Return the parameters; None when nobody ever set them."""
    record = engine.get(AUTOPILOT_KEY)
    return None if record is None else decode_autopilot(record)


def read_events(engine: Engine) -> tuple[Event, ...]:
    """Return the events that are kept, oldest first."""
    with closing(engine.scan(*key_range(EVENTS, b""))) as rows:
        return tuple([decode_event(raw, record) for raw, record in rows])


def _encode_autopilot(values: Autopilot) -> bytes:
    body = _AUTOPILOT.pack(
        _AUTOPILOT_VERSION,
        values.cleanup_dead_servers,
        values.disable_upgrade_migration,
        values.last_contact_threshold_ns,
        values.server_stabilization_ns,
        values.max_trailing_logs,
        values.min_quorum,
        values.create_index,
        values.modify_index,
    )
    for text in (values.redundancy_zone_tag, values.upgrade_version_tag):
        encoded = text.encode()
        body += _LENGTH.pack(len(encoded)) + encoded
    return mark_of(AUTOPILOT_KEY, body) + body


def decode_autopilot(record: bytes) -> Autopilot:
    """Read the record of the parameters.

    Raises:
        CorruptLog: It is none of a known version.
    """
    try:
        version, cleanup, disable, contact, stable, trailing, quorum, created, modified = (
            _AUTOPILOT.unpack_from(record, MARK_BYTES)
        )
        if version != _AUTOPILOT_VERSION:
            raise CorruptLog(f"the record of the autopilot has an unknown form ({version})")
        zone, upgrade = [part.decode() for part in _parts(record, MARK_BYTES + _AUTOPILOT.size, 2)]
    except (StructError, UnicodeDecodeError) as error:
        raise CorruptLog("the record of the autopilot is not readable") from error
    return Autopilot(
        bool(cleanup), contact, trailing, quorum, stable, zone, bool(disable), upgrade,
        created, modified,
    )  # fmt: skip


def decode_event(raw: bytes, record: bytes) -> Event:
    """Read the record of an event.

    Raises:
        CorruptLog: It is none of a known version.
    """
    try:
        if record[MARK_BYTES] != _EVENT_VERSION:
            raise CorruptLog(f"the event {raw!r} has an unknown form ({record[MARK_BYTES]})")
        event_id, name, payload, *filters = _parts(record, MARK_BYTES + 1, 6)
        node, service, tag = [part.decode() for part in filters]
        (index,) = _INDEX.unpack(raw[1:])
        return Event(
            event_id.decode("ascii"), name.decode(), payload, node, service, tag, int(index)
        )
    except (StructError, IndexError, UnicodeDecodeError) as error:
        raise CorruptLog(f"the event {raw!r} is not readable") from error


def _parts(record: bytes, at: int, count: int) -> list[bytes]:
    parts = []
    for _ in range(count):
        size: int = _LENGTH.unpack_from(record, at)[0]
        at += _LENGTH.size + size
        parts.append(record[at - size : at])
    if at != len(record):
        raise CorruptLog("a record is not as long as it says")
    return parts
