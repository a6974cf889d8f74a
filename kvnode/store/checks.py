"""A store can check itself: for tests, for the simulator, and for an operator in doubt."""

from __future__ import annotations

from contextlib import closing

from kvnode.errors import CorruptLog
from kvnode.store.records import (
    DIGEST_MASK,
    GRAVE_ORDER,
    KV,
    MARK_BYTES,
    MARKED,
    META_KEY,
    TABLES,
    TREE_GRAVES,
    Meta,
    decode_grave,
    decode_key,
    decode_order_key,
    mark_of,
)
from kvnode.store.store import Store, read_meta


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
        elif table == GRAVE_ORDER:
            index, grave = decode_order_key(raw)
            self._order[grave] = index
        else:
            self._grave(raw, decode_grave(raw, record))

    def _key(self, raw: bytes, record: bytes) -> None:
        pair = decode_key(raw, record)
        if not 0 < pair.create_index <= pair.modify_index <= self.meta.kv_index:
            self.problems.append(
                f"key {pair.key!r} was created at {pair.create_index}, changed at "
                f"{pair.modify_index}, and the table at {self.meta.kv_index}"
            )

    def _grave(self, raw: bytes, index: int) -> None:
        self._graves[raw] = index
        if not 0 < index <= self.meta.graves_index:
            self.problems.append(
                f"tombstone {raw!r} is from {index}, the last one from {self.meta.graves_index}"
            )

    def totals(self) -> None:
        meta = self.meta
        if not meta.graves_index <= meta.kv_index <= meta.applied_index:
            self.problems.append(f"indexes contradict each other: {meta}")
        for name, expected, found in (
            ("keys", meta.count, self._rows[KV]),
            ("tombstones of trees", meta.tree_graves, self._rows[TREE_GRAVES]),
            ("ordered tombstones", len(self._graves), self._rows[GRAVE_ORDER]),
        ):
            if expected != found:
                self.problems.append(f"{found} {name} where {expected} should be")
        if self._order != self._graves:
            self.problems.append("the tombstones' order does not agree with the tombstones")
        if self._digest & DIGEST_MASK != meta.digest:
            self.problems.append(
                f"the rows add up to {self._digest & DIGEST_MASK:032x}, not {meta.digest:032x}"
            )
