"""The view through which one batch of entries reads and writes.

Writes gather in an overlay above the engine; reads look there first, so that entries of one batch see
each other. The digest and the counters are kept here while the batch runs, and nothing is visible
outside before the store has written everything in one engine batch (RC-6): a batch that fails leaves
the store as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from heapq import merge
from struct import Struct
from zlib import crc32

from kvnode.store.change_records import (
    CHANGE_OVERHEAD,
    REVISION_HEAD,
    REVISION_VERSION,
    change_bytes,
    decode_change,
    encode_revision,
)
from kvnode.store.engine import Engine, Rows, Write
from kvnode.store.records import (
    DELAY_ORDER,
    DELAYS,
    DIGEST_MASK,
    GRAVES,
    KEY_TTL,
    MARK_BYTES,
    META_KEY,
    SESSIONS,
    TREE_GRAVES,
    TTLS,
    Meta,
    Session,
    decode_delay,
    decode_grave,
    decode_session,
    encode_delay,
    encode_grave,
    encode_meta,
    order_key,
)
from kvnode.store.registry_records import Check

Change = tuple[int, bytes, bool]
"""Index, key or prefix, whether it is a prefix that was deleted."""

TtlChange = tuple[bytes, int, int]
"""Key, index at which its time began, nanoseconds; both 0: it does not expire any more."""

SessionChange = tuple[int, str, Session | None]
"""Index, id, and the session when it began, None when it ended."""

CheckChange = tuple[int, Check]
"""Index, and a check that was written, be it the same; one without a status was removed."""

Touch = tuple[int, bytes]
"""Index, and the folded name of an index of the registry that has moved."""

_COUNTED = tuple(name for name in Meta._fields if name != "applied_index")
"""What a part of a batch hands back when it is merged."""

_from_bytes = int.from_bytes
_order = Struct(">Q").pack
_width = Struct(">I").pack
_size = Struct("<I").pack
_revision_head = REVISION_HEAD.pack


class Transaction:
    """One batch under way, or a part of it that may still be given up. Used once, then thrown away."""

    __slots__ = (
        "_engine_scan",
        "_history_stop",
        "changes",
        "check_changes",
        "count",
        "digest",
        "engine_get",
        "event_fired",
        "graves_index",
        "history_base",
        "history_bytes",
        "history_floor",
        "history_limit",
        "history_rows",
        "kv_index",
        "overlay",
        "recording",
        "session_changes",
        "session_index",
        "sessions",
        "touched",
        "tree_graves",
        "ttl_changes",
    )

    def __init__(self, below: Engine | Transaction, meta: Meta, *, watched: bool) -> None:
        """Start on the state that ``meta`` describes; ``watched`` collects changes."""
        self.engine_get: Callable[[bytes], bytes | None] = below.get
        """The engine's own ``get``, for the hot path."""
        self._engine_scan: Callable[[bytes, bytes], Rows] = below.scan
        self.overlay: dict[bytes, bytes | None] = {}
        """Raw keys written by this batch; None is a deletion."""
        (
            _,
            self.kv_index,
            self.graves_index,
            self.count,
            self.tree_graves,
            self.digest,
            self.session_index,
            self.sessions,
            self.recording,
            self.history_floor,
            self.history_rows,
            self.history_bytes,
            self.history_base,
            self.history_limit,
        ) = meta
        self._history_stop = 2 * self.history_limit
        self.changes: list[Change] | None = [] if watched else None
        self.session_changes: list[SessionChange] = []
        self.event_fired = 0
        """Index of the last event of this batch; 0: there was none."""
        self.ttl_changes: list[TtlChange] = []
        self.check_changes: list[CheckChange] = []
        self.touched: list[Touch] = []

    def fork(self) -> Transaction:
        """Start a part of this batch, which sees it, and of which nothing remains unless it is merged."""
        return Transaction(self, self.meta(0), watched=self.changes is not None)

    def merge(self, part: Transaction) -> None:
        """Take over everything that a part changed."""
        self.overlay.update(part.overlay)
        for name in _COUNTED:
            setattr(self, name, getattr(part, name))
        if self.changes is not None and part.changes:
            self.changes += part.changes
        self.ttl_changes += part.ttl_changes
        self.session_changes += part.session_changes
        self.check_changes += part.check_changes
        self.touched += part.touched

    def get(self, raw: bytes) -> bytes | None:
        """Return a record as this batch sees it, or None."""
        overlay = self.overlay
        if raw in overlay:
            return overlay[raw]
        return self.engine_get(raw)

    def scan(self, start: bytes, stop: bytes) -> Rows:
        """Yield this batch's view of ``[start, stop)``: first what the batch itself wrote, then what
        the engine holds unchanged, each in byte order.

        The batch may change rows that it was given while the iterator is open; rows that it adds
        meanwhile may or may not be seen. The iterator must be exhausted or closed before the batch ends.
        """
        overlay = self.overlay
        for raw in sorted(raw for raw in overlay if start <= raw < stop):
            record = overlay[raw]
            if record is not None:
                yield raw, record
        with closing(self._engine_scan(start, stop)) as rows:
            for pair in rows:
                if pair[0] not in overlay:
                    yield pair

    def put(self, raw: bytes, record: bytes, old: bytes | None) -> None:
        """Write a marked record in the place of ``old``, which ``get`` gave."""
        digest = self.digest + _from_bytes(record[:MARK_BYTES], "big")
        if old is not None:
            digest -= _from_bytes(old[:MARK_BYTES], "big")
        self.digest = digest & DIGEST_MASK
        self.overlay[raw] = record

    def remove(self, raw: bytes, old: bytes) -> None:
        """Delete a marked record, which ``get`` or ``scan`` gave as ``old``."""
        self.digest = (self.digest - _from_bytes(old[:MARK_BYTES], "big")) & DIGEST_MASK
        self.overlay[raw] = None

    def changed(self, index: int, key: bytes, old: bytes | None, cause: int) -> None:
        """Note that the entry ``index`` changes a key: for the history, the index, and who waits.

        Whoever writes or removes a key's record says so here, or by ``record`` for one of many keys.

        Args:
            index: Of the entry.
            key: The key.
            old: Its record before the change; None: there was none.
            cause: See ``records.Cause``.
        """
        if self.recording:
            self.record(index, key, old, cause)
        self.kv_index = index
        if self.changes is not None:
            self.changes.append((index, key, False))

    def record(self, index: int, key: bytes, old: bytes | None, cause: int) -> None:
        """Keep a key's former record as history, only while ``recording``.

        What one entry does to a key is one change: the record before the first step counts, and the
        last cause.
        """
        overlay = self.overlay
        # Every write comes here: the functions of ``change_records``, without calls.
        at = _order(index)
        raw = b"r" + _width(len(key)) + key + at
        if raw in overlay:
            self._record_again(raw, cause)
            return
        if old is None:
            old = b""
        size = len(old)
        if self.history_bytes + size > self._history_stop or index <= self.history_floor:
            self._begin_anew(index)
            return
        checksum = crc32(raw, (size << 8 | cause) & 0xFFFFFFFF)
        overlay[raw] = _revision_head(REVISION_VERSION, cause, checksum) + old
        size += REVISION_HEAD.size
        overlay[b"c" + at + key] = _size(size)
        self.history_rows += 1
        self.history_bytes += 2 * (9 + len(key)) + size + CHANGE_OVERHEAD

    def _record_again(self, raw: bytes, cause: int) -> None:
        known = self.overlay[raw]
        assert known is not None, "nothing is forgotten in the entry that did it"
        self.overlay[raw] = encode_revision(raw, cause, known[REVISION_HEAD.size :])

    def _begin_anew(self, index: int) -> None:
        """There is no room for what this entry does: the window begins behind it.

        What it has recorded is dropped; what is older is trimmed by entries, a little at a time.
        """
        if self.history_floor < index:
            start = b"c" + _order(index)
            for raw in [raw for raw in self.overlay if raw.startswith(start)]:
                row = self.overlay.pop(raw)
                assert row is not None, "nothing is forgotten in the entry that did it"
                del self.overlay[b"r" + _width(len(raw) - 9) + raw[9:] + raw[1:9]]
                self.history_rows -= 1
                self.history_bytes -= change_bytes(raw, decode_change(raw, row))
            self.history_floor = index

    def limit_history(self, recording: bool, limit: int) -> None:
        """From now on keep changes, or not, and this many bytes of them."""
        self.recording = recording
        self.history_limit = limit
        self._history_stop = 2 * limit

    def forget(self, rows: Rows) -> int:
        """Drop changes, given as ``scan`` gives them; return their number."""
        overlay = self.overlay
        forgotten = size = 0
        for raw, row in rows:
            overlay[raw] = None
            overlay[b"r" + _width(len(raw) - 9) + raw[9:] + raw[1:9]] = None
            size += change_bytes(raw, decode_change(raw, row))
            forgotten += 1
        self.history_rows -= forgotten
        self.history_bytes -= size
        return forgotten

    def bury(self, table: bytes, key: bytes, index: int) -> None:
        """Leave a tombstone, in the place of an older one (spec §2.3)."""
        raw = table + key
        old = self.get(raw)
        if old is not None:
            self.overlay[order_key(decode_grave(raw, old), raw)] = None
        elif table == TREE_GRAVES:
            self.tree_graves += 1
        self.put(raw, encode_grave(raw, index), old)
        self.overlay[order_key(index, raw)] = b""
        self.graves_index = index

    def unbury(self, raw: bytes, index: int) -> bool:
        """Forget the tombstone with this raw key and index. False: it is not there."""
        old = self.get(raw)
        if old is None or decode_grave(raw, old) != index:
            return False
        self.remove(raw, old)
        self.overlay[order_key(index, raw)] = None
        if raw[:1] != GRAVES:
            self.tree_graves -= 1
        return True

    def session(self, session_id: bytes) -> Session | None:
        """Return a session, or None."""
        raw = SESSIONS + session_id
        record = self.get(raw)
        return None if record is None else decode_session(raw, record)

    def delay(self, key: bytes, index: int, delay_ns: int) -> None:
        """Begin a lock-delay, in the place of an older one."""
        raw = DELAYS + key
        old = self.get(raw)
        if old is not None:
            self.overlay[order_key(decode_delay(raw, old)[0], raw, DELAY_ORDER)] = None
        self.put(raw, encode_delay(raw, index, delay_ns), old)
        self.overlay[order_key(index, raw, DELAY_ORDER)] = b""

    def end_delay(self, raw: bytes, old: bytes) -> None:
        """Forget a lock-delay; ``old`` is its record."""
        self.remove(raw, old)
        self.overlay[order_key(decode_delay(raw, old)[0], raw, DELAY_ORDER)] = None

    def begin_ttl(self, key: bytes, index: int, ttl_ns: int) -> None:
        """Note that a key expires; its record says the same."""
        self.overlay[TTLS + key] = KEY_TTL.pack(index, ttl_ns)
        self.ttl_changes.append((key, index, ttl_ns))

    def end_ttl(self, key: bytes) -> None:
        """Note that a key does not expire any more, or is gone."""
        self.overlay[TTLS + key] = None
        self.ttl_changes.append((key, 0, 0))

    def scan_in_order(self, start: bytes, stop: bytes) -> Rows:
        """``scan``, in byte order throughout. Not on a part of a batch."""
        overlay = self.overlay
        mine = [
            (raw, record)
            for raw in sorted(raw for raw in overlay if start <= raw < stop)
            if (record := overlay[raw]) is not None
        ]
        with closing(self._engine_scan(start, stop)) as rows:
            yield from merge(mine, (pair for pair in rows if pair[0] not in overlay))

    def meta(self, applied_index: int) -> Meta:
        """The meta record's content after this batch."""
        return Meta(
            applied_index,
            self.kv_index,
            self.graves_index,
            self.count,
            self.tree_graves,
            self.digest,
            self.session_index,
            self.sessions,
            self.recording,
            self.history_floor,
            self.history_rows,
            self.history_bytes,
            self.history_base,
            self.history_limit,
        )

    def writes(self, meta: Meta) -> list[Write]:
        """Everything to hand to the engine, the meta record last."""
        self.overlay[META_KEY] = encode_meta(meta)
        return list(self.overlay.items())
