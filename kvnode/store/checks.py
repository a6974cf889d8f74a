"""A store can check itself: for tests, for the simulator, and for an operator in doubt."""

from __future__ import annotations

from contextlib import closing

from kvnode.errors import CorruptLog
from kvnode.store.change_records import (
    change_bytes,
    decode_change,
    decode_change_key,
    decode_revision,
    decode_revision_key,
)
from kvnode.store.control import Event, decode_autopilot, decode_event
from kvnode.store.control_commands import EVENTS_KEPT
from kvnode.store.once import decode_count, decode_kept
from kvnode.store.records import (
    BOUND,
    BY_NAME,
    BY_SERVICE,
    CHANGES,
    CHECKS,
    DELAY_ORDER,
    DELAYS,
    DIGEST_MASK,
    EVENTS,
    GRAVE_ORDER,
    GRAVES,
    HELD,
    INDEXES,
    KEY_TTL,
    KV,
    MARK_BYTES,
    MARKED,
    META_KEY,
    NODES,
    ONCE,
    ONCE_COUNT,
    ONCE_ORDER,
    PARAMETERS,
    RESTORE,
    REVISIONS,
    SERVICES,
    SESSION_ID_CHARACTERS,
    SESSIONS,
    TABLES,
    TREE_GRAVES,
    TTLS,
    Meta,
    decode_delay,
    decode_grave,
    decode_key,
    decode_order_key,
    decode_session,
    mark_of,
    ttl_of,
)
from kvnode.store.registry_checks import RegistryAudit
from kvnode.store.restore import DONE_KEY, HEAD_KEY, PIECES, read_note
from kvnode.store.store import Store, read_meta

_REGISTRY = frozenset({NODES, SERVICES, CHECKS, INDEXES, BY_NAME, BY_SERVICE, BOUND})


def check(store: Store) -> list[str]:
    """Read everything and return one sentence for each thing that is wrong; empty when sound.

    Takes a few microseconds per row, and holds the caller for that long. Nothing is changed.
    """
    audit = _Audit(store.meta)
    try:
        if read_meta(store.engine) != store.meta:
            audit.problems.append("the stored meta record is not the one in memory")
        with closing(store.engine.scan(b"", None)) as rows:
            for raw, record in rows:
                audit.row(raw, record)
    except CorruptLog as error:
        audit.problems.append(str(error))
    audit.totals()
    known = store.digest_at(store.applied_index)
    if known is not None and known != store.digest:
        audit.problems.append(f"digest_at says {known} for the applied index, not {store.digest}")
    return audit.problems


class _Audit:
    """Gathers what a walk over all rows shows."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.problems: list[str] = []
        self._last = b""
        self._digest = 0
        self._rows = dict.fromkeys(sorted(TABLES), 0)
        self._graves: dict[bytes, int] = {}
        self._order: dict[bytes, int] = {}
        self._sessions: set[str] = set()
        self._held: set[tuple[str, bytes]] = set()
        self._locked: set[tuple[str, bytes]] = set()
        self._delays: dict[bytes, int] = {}
        self._delay_order: dict[bytes, int] = {}
        self._restore: dict[bytes, bytes] = {}
        self._changes: set[tuple[bytes, int, int]] = set()
        self._revisions: set[tuple[bytes, int, int]] = set()
        self._change_bytes = 0
        self._timed: dict[bytes, bytes] = {}
        self._ttls: dict[bytes, bytes] = {}
        self._once: dict[bytes, int] = {}
        self._once_order: dict[bytes, int] = {}
        self._once_count = (0, 0)
        self._registry = RegistryAudit(meta)

    def row(self, raw: bytes, record: bytes) -> None:
        if raw <= self._last:
            self.problems.append(f"row {raw!r} is out of order")
        self._last = raw
        if raw == META_KEY:
            return
        table = raw[:1]
        if table not in self._rows:
            self.problems.append(f"row {raw!r} is of no known table")
            return
        self._rows[table] += 1
        if table in MARKED:
            mark = record[:MARK_BYTES]
            if mark_of(raw, record[MARK_BYTES:]) != mark:
                self.problems.append(f"row {raw!r} does not match its mark")
            self._digest += int.from_bytes(mark, "big")
        if table == KV:
            self._key(raw, record)
        elif table in (GRAVES, TREE_GRAVES):
            self._grave(raw, decode_grave(raw, record))
        elif table == SESSIONS:
            self._session(raw, record)
        elif table == HELD:
            at = 1 + SESSION_ID_CHARACTERS
            self._held.add((raw[1:at].decode("ascii", "replace"), raw[at:]))
        elif table == DELAYS:
            self._delay(raw, record)
        elif table == PARAMETERS:
            decode_autopilot(record)
        elif table == EVENTS:
            self._event(decode_event(raw, record))
        elif table == CHANGES:
            self._change(raw, record)
        elif table == REVISIONS:
            self._revision(raw, record)
        elif table == TTLS:
            self._ttls[raw[1:]] = record
        elif table == ONCE:
            self._once[raw] = decode_kept(raw, record).index
        elif table == ONCE_COUNT:
            self._once_count = decode_count(record)
        elif table == ONCE_ORDER:
            index, ordered = decode_order_key(raw)
            self._once_order[ordered] = index
        elif table in _REGISTRY:
            self._registry.row(raw, record)
        elif table == RESTORE:
            self._restore[raw] = record
        else:
            index, ordered = decode_order_key(raw)
            (self._order if table == GRAVE_ORDER else self._delay_order)[ordered] = index

    def _key(self, raw: bytes, record: bytes) -> None:
        pair = decode_key(raw, record)
        if not 0 < pair.create_index <= pair.modify_index <= self.meta.kv_index:
            self.problems.append(
                f"key {pair.key!r} was created at {pair.create_index}, changed at "
                f"{pair.modify_index}, and the table at {self.meta.kv_index}"
            )

        ttl = ttl_of(record)
        if ttl is not None:
            self._timed[pair.key] = KEY_TTL.pack(*ttl)
            if not pair.create_index <= ttl[0] <= self.meta.applied_index or not ttl[1]:
                self.problems.append(f"key {pair.key!r} expires {ttl[1]} ns after {ttl[0]}")
        if pair.session:
            self._locked.add((pair.session, pair.key))

    def _session(self, raw: bytes, record: bytes) -> None:
        session = decode_session(raw, record)
        self._sessions.add(session.session_id)
        self._registry.session(session)
        if not 0 < session.create_index <= session.modify_index <= self.meta.session_index:
            self.problems.append(
                f"session {session.session_id} was made at {session.create_index}, the last one "
                f"at {self.meta.session_index}"
            )

    def _event(self, event: Event) -> None:
        if not 0 < event.fired_at <= self.meta.applied_index:
            self.problems.append(
                f"event {event.event_id} is from {event.fired_at}: not applied yet"
            )

    def _delay(self, raw: bytes, record: bytes) -> None:
        index, _ = decode_delay(raw, record)
        self._delays[raw] = index
        if not 0 < index <= self.meta.session_index:
            self.problems.append(f"the lock-delay {raw!r} began at {index}, where no session ended")

    def _change(self, raw: bytes, row: bytes) -> None:
        index, key = decode_change_key(raw)
        size = decode_change(raw, row)
        self._changes.add((key, index, size))
        self._change_bytes += change_bytes(raw, size)
        if not self.meta.history_base < index <= self.meta.kv_index:
            self.problems.append(f"the change of {key!r} at {index} is outside of the window")

    def _revision(self, raw: bytes, row: bytes) -> None:
        key, index = decode_revision_key(raw)
        self._revisions.add((key, index, len(row)))
        old = decode_revision(raw, row)[1]
        if old and mark_of(KV + key, old[MARK_BYTES:]) != old[:MARK_BYTES]:
            self.problems.append(f"the old record of {key!r} at {index} does not match its mark")
        if old and decode_key(KV + key, old).modify_index >= index:
            self.problems.append(f"the old record of {key!r} at {index} is not older")

    def _grave(self, raw: bytes, index: int) -> None:
        self._graves[raw] = index
        if not 0 < index <= self.meta.graves_index:
            self.problems.append(
                f"tombstone {raw!r} is from {index}, the last one from {self.meta.graves_index}"
            )

    def totals(self) -> None:
        meta = self.meta
        if not meta.graves_index <= meta.kv_index <= meta.applied_index >= meta.session_index:
            self.problems.append(f"indexes contradict each other: {meta}")
        for name, expected, found in (
            ("keys", meta.count, self._rows[KV]),
            ("tombstones of trees", meta.tree_graves, self._rows[TREE_GRAVES]),
            ("ordered tombstones", len(self._graves), self._rows[GRAVE_ORDER]),
            ("sessions", meta.sessions, self._rows[SESSIONS]),
            ("ordered lock-delays", len(self._delays), self._rows[DELAY_ORDER]),
            ("events", min(self._rows[EVENTS], EVENTS_KEPT), self._rows[EVENTS]),
            ("changes", meta.history_rows, self._rows[CHANGES]),
        ):
            if expected != found:
                self.problems.append(f"{found} {name} where {expected} should be")
        head = read_note(self._restore.get, HEAD_KEY)
        done = read_note(self._restore.get, DONE_KEY)
        pieces = sum(raw.startswith(PIECES) for raw in self._restore)
        if pieces != (head.number if head is not None else 0):
            self.problems.append(f"{pieces} pieces of a restore are not what is noted: {head}")
        if done is not None and not 0 < done.number <= meta.kv_index:
            self.problems.append(f"the last restore was at {done.number}, after the last change")
        if self._order != self._graves:
            self.problems.append("the tombstones' order does not agree with the tombstones")
        if self._delay_order != self._delays:
            self.problems.append("the lock-delays' order does not agree with the lock-delays")
        if self._changes != self._revisions:
            self.problems.append("the changes by key do not agree with the changes")
        if self._change_bytes != meta.history_bytes:
            self.problems.append(
                f"the history takes {self._change_bytes} bytes, not {meta.history_bytes}"
            )
        if self._ttls != self._timed:
            self.problems.append("the list of keys that expire does not agree with the keys")
        if self._once_order != self._once:
            self.problems.append("the idempotency keys' order does not agree with them")
        count, floor = self._once_count
        if count != len(self._once) or min(self._once.values(), default=floor) < floor:
            self.problems.append(
                f"{len(self._once)} idempotency keys where {count} should be, none below {floor}"
            )
        if self._held != self._locked:
            self.problems.append("what sessions hold does not agree with the keys' locks")
        for session_id, key in sorted(self._locked):
            if session_id not in self._sessions:
                self.problems.append(f"key {key!r} is held by {session_id}, which does not exist")
        self.problems += self._registry.problems()
        if self._digest & DIGEST_MASK != meta.digest:
            self.problems.append(
                f"the rows add up to {self._digest & DIGEST_MASK:032x}, not {meta.digest:032x}"
            )
