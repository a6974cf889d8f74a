"""The store's whole content as a stream of chunks, and back (RC-36).

A chunk is a header and rows: ``magic, kind, number of rows, CRC-32 of the rest``, then for each row
``length of key, length of value, key, value``; all numbers little-endian. The rows are the engine's
own, in byte order. The last chunk is of another kind and has one row: the meta record, with the total
of rows as its key, so that a stream that broke off cannot be taken for a complete one. Nothing in
here is trusted on the way in: every chunk, every mark, the order, the number of keys and the digest
are checked before the meta record is written, and without that record an engine is not a store.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from struct import Struct
from typing import Final
from zlib import crc32

from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store.change_records import (
    change_bytes,
    decode_change,
    decode_change_key,
    decode_revision,
    decode_revision_key,
)
from kvnode.store.engine import Engine, EngineSnapshot, Write
from kvnode.store.records import (
    BOUND,
    BY_NAME,
    BY_SERVICE,
    CHANGES,
    CHECKS,
    DELAY_ORDER,
    DELAYS,
    DIGEST_MASK,
    GRAVE_ORDER,
    GRAVES,
    HELD,
    KEY_SESSION_SIZE_AT,
    KEY_TIMED,
    KEY_VERSION_AT,
    KV,
    MARK_BYTES,
    MARKED,
    META_KEY,
    ONCE,
    ONCE_ORDER,
    REVISIONS,
    SERVICES,
    SESSIONS,
    TABLES,
    TREE_GRAVES,
    TTLS,
    Meta,
    decode_meta,
    decode_session,
    encode_meta,
    mark_of,
)
from kvnode.store.registry_records import bound_keys

CHUNK_BYTES: Final = 256 * 1024
"""A chunk is closed once its rows have reached this size; one large row can make it larger."""

LOAD_ROWS_MAX: Final = 200
"""Rows in one engine batch while loading: larger batches hold the interpreter for too long."""

LOAD_BYTES_MAX: Final = 1024 * 1024

_HEADER: Final = Struct("<4sBII")
_ROW: Final = Struct("<II")
_TOTAL: Final = Struct("<Q")
_MAGIC: Final = b"kvs1"
_ROWS: Final = 1
_END: Final = 2

Row = tuple[bytes, bytes]


class Dump(Iterator[bytes]):
    """The chunks of one engine snapshot, read as they are asked for, in any one thread.

    Must be closed, also when it was read to its end. A chunk takes a few milliseconds.

    Attributes:
        meta: The counters at the moment of the snapshot, the applied index among them.
    """

    __slots__ = ("_chunks", "_snapshot", "meta")

    def __init__(self, snapshot: EngineSnapshot) -> None:
        """Take over ``snapshot``: it is closed by ``close``.

        Raises:
            CorruptLog: It holds no state.
        """
        self._snapshot = snapshot
        try:
            found = list(snapshot.scan(META_KEY, META_KEY + b"\0"))
            self.meta = decode_meta(found[0][1]) if found else Meta()
        except BaseException:
            snapshot.close()
            raise
        self._chunks = _chunks(snapshot, found)

    def __next__(self) -> bytes:
        """Return the next chunk; the last one ends the stream."""
        return next(self._chunks)

    def close(self) -> None:
        """Release the snapshot. Idempotent. Never while another thread is inside ``next``."""
        self._chunks.close()
        self._snapshot.close()


def _chunks(snapshot: EngineSnapshot, meta: list[Row]) -> Generator[bytes, None, None]:
    total = 0
    parts: list[bytes] = []
    size = 0
    with closing(snapshot.scan(b"", None)) as rows:
        for key, value in rows:
            if key == META_KEY:
                continue
            parts += (_ROW.pack(len(key), len(value)), key, value)
            size += 8 + len(key) + len(value)
            if size >= CHUNK_BYTES:
                total += len(parts) // 3
                yield _chunk(_ROWS, parts)
                parts, size = [], 0
    if parts:
        total += len(parts) // 3
        yield _chunk(_ROWS, parts)
    end = _TOTAL.pack(total)
    record = meta[0][1] if meta else encode_meta(Meta())
    yield _chunk(_END, [_ROW.pack(len(end), len(record)), end, record])


def _chunk(kind: int, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return _HEADER.pack(_MAGIC, kind, len(parts) // 3, crc32(body)) + body


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Put rows into a chunk of their own; ``read_chunk`` takes it apart."""
    parts: list[bytes] = []
    for key, value in rows:
        parts += (_ROW.pack(len(key), len(value)), key, value)
    return _chunk(_ROWS, parts)


def read_chunk(chunk: bytes) -> tuple[bool, list[Row]]:
    """Take a chunk apart; return whether it is the last one, and its rows.

    Raises:
        CorruptLog: It is not what ``Dump`` made.
    """
    if len(chunk) < _HEADER.size:
        raise CorruptLog("a snapshot chunk is shorter than its header")
    magic, kind, count, crc = _HEADER.unpack_from(chunk)
    if magic != _MAGIC or kind not in (_ROWS, _END):
        raise CorruptLog("a snapshot chunk has an unknown form")
    if crc32(memoryview(chunk)[_HEADER.size :]) != crc:
        raise CorruptLog("a snapshot chunk does not match its checksum")
    rows: list[Row] = []
    at, end = _HEADER.size, len(chunk)
    for _ in range(count):
        if at + 8 > end:
            raise CorruptLog("a snapshot chunk is shorter than it says")
        key_size, value_size = _ROW.unpack_from(chunk, at)
        at += 8
        rows.append((chunk[at : at + key_size], chunk[at + key_size : at + key_size + value_size]))
        at += key_size + value_size
    if at != end:
        raise CorruptLog("a snapshot chunk is not as long as it says")
    return kind == _END, rows


class Batches:
    """Writes to an engine that nobody reads yet, in small batches."""

    def __init__(self, engine: Engine) -> None:
        """Start with none."""
        self._engine = engine
        self._batch: list[Write] = []
        self._batch_bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Write a row, with others later on."""
        self._batch.append((key, value))
        self._batch_bytes += len(key) + len(value)
        if len(self._batch) >= LOAD_ROWS_MAX or self._batch_bytes >= LOAD_BYTES_MAX:
            self._write()

    def finish(self, meta: Meta) -> None:
        """Write the meta record, and with it everything that is left."""
        self._batch.append((META_KEY, encode_meta(meta)))
        self._write()

    def _write(self) -> None:
        self._engine.write(self._batch)
        self._batch = []
        self._batch_bytes = 0


class _Loader:
    """Checks rows and writes them."""

    def __init__(self, engine: Engine) -> None:
        self._batches = Batches(engine)
        self._last = b""
        self._tables = dict.fromkeys(sorted(TABLES), 0)
        self._digest = 0
        self._locked = 0
        self._changed = self._revision_bytes = 0
        self._oldest = 1 << 64
        self._timed = 0
        self._bound = 0

    def add(self, key: bytes, value: bytes) -> None:
        table = key[:1]
        if table not in self._tables:
            raise CorruptLog(f"the snapshot holds a row of an unknown table: {key[:40]!r}")
        if key <= self._last:
            raise CorruptLog(f"the snapshot's rows are out of order at {key[:40]!r}")
        self._last = key
        if table in MARKED:
            mark = value[:MARK_BYTES]
            if mark_of(key, value[MARK_BYTES:]) != mark:
                raise CorruptLog(f"the snapshot's row {key[:40]!r} does not match its mark")
            self._digest += int.from_bytes(mark, "big")
            if table == KV:
                self._locked += value[KEY_SESSION_SIZE_AT] > 0
                self._timed += value[KEY_VERSION_AT] == KEY_TIMED
            elif table == SESSIONS:
                self._bound += len(bound_keys(decode_session(key, value)))
        elif table == CHANGES:
            size = decode_change(key, value)
            self._revision_bytes -= size
            self._changed += change_bytes(key, size)
            self._oldest = min(self._oldest, decode_change_key(key)[0])
        elif table == REVISIONS:
            self._revision_bytes += len(value)
            name, record = decode_revision_key(key)[0], decode_revision(key, value)[1]
            if record and mark_of(KV + name, record[MARK_BYTES:]) != record[:MARK_BYTES]:
                raise CorruptLog(f"the old record of {name[:40]!r} does not match its mark")
        self._tables[table] += 1
        self._batches.put(key, value)

    def verify(self, total: int, meta: Meta) -> None:
        tables = self._tables
        graves = tables[GRAVES] + tables[TREE_GRAVES]
        for name, expected, found in (
            ("rows", total, sum(tables.values())),
            ("keys", meta.count, tables[KV]),
            ("tombstones of trees", meta.tree_graves, tables[TREE_GRAVES]),
            ("ordered tombstones", graves, tables[GRAVE_ORDER]),
            ("sessions", meta.sessions, tables[SESSIONS]),
            ("keys held", self._locked, tables[HELD]),
            ("keys that expire", self._timed, tables[TTLS]),
            ("ordered idempotency keys", tables[ONCE], tables[ONCE_ORDER]),
            ("ordered lock-delays", tables[DELAYS], tables[DELAY_ORDER]),
            ("changes", meta.history_rows, tables[CHANGES]),
            ("changes by key", meta.history_rows, tables[REVISIONS]),
            ("services by name", tables[SERVICES], tables[BY_NAME]),
            ("checks by service", tables[CHECKS], tables[BY_SERVICE]),
            # None at all: from before there was a registry; made when the store is opened.
            ("bound sessions", self._bound, tables[BOUND] or self._bound),
        ):
            if expected != found:
                raise CorruptLog(f"the snapshot should hold {expected} {name} and holds {found}")
        if self._oldest <= meta.history_base:
            raise CorruptLog("the snapshot's history begins before it says")
        if self._changed != meta.history_bytes or self._revision_bytes:
            raise CorruptLog("the snapshot's history is not as long as it says")
        if self._digest & DIGEST_MASK != meta.digest:
            raise CorruptLog("the snapshot's rows do not add up to its digest")

    def finish(self, meta: Meta) -> None:
        self._batches.finish(meta)


def check_empty(engine: Engine) -> None:
    """Make sure that an engine may be filled.

    Raises:
        InvariantBroken: It holds something.
    """
    with closing(engine.scan(b"", None)) as found:
        if next(found, None) is not None:
            raise InvariantBroken("a snapshot is loaded into an empty engine only")


def load(engine: Engine, chunks: Iterable[bytes]) -> Meta:
    """Fill an empty engine with a dumped snapshot; runs in a worker thread, in small batches.

    The meta record is written in the last batch, after everything has been checked. The caller
    flushes the engine before it makes it current. After an error the engine holds rows without a
    meta record and is to be thrown away.

    Returns:
        The counters of the loaded state, its applied index among them.

    Raises:
        CorruptLog: A chunk, a row, the order, a number or the digest is wrong, or the end is missing.
        DiskFailed: The engine refused.
        InvariantBroken: The engine is not empty.
    """
    check_empty(engine)
    loader = _Loader(engine)
    meta: Meta | None = None
    for chunk in chunks:
        if meta is not None:
            raise CorruptLog("the snapshot goes on behind its end")
        last, rows = read_chunk(chunk)
        if not last:
            for key, value in rows:
                loader.add(key, value)
            continue
        if len(rows) != 1 or len(rows[0][0]) != _TOTAL.size:
            raise CorruptLog("the snapshot's last chunk has an unknown form")
        meta = decode_meta(rows[0][1])
        loader.verify(_TOTAL.unpack(rows[0][0])[0], meta)
    if meta is None:
        raise CorruptLog("the snapshot breaks off: its end is missing")
    loader.finish(meta)
    return meta
