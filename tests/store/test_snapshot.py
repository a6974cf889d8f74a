"""Dump and load: round trips, while the store is written, and everything that can be wrong (RC-36)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from struct import Struct
from zlib import crc32

import pytest

from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.engine import Engine, Write
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import META_KEY, RELEASE
from kvnode.store.snapshot import CHUNK_BYTES, LOAD_ROWS_MAX, Dump, load, read_chunk
from kvnode.store.store import Store

ONE = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
TWO = "8a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
HEADER = Struct("<4sBII")


def filled(engine: Engine, keys: int = 300) -> Store:
    store = Store(engine)
    commands: list[Command] = [KvSet(b"k/%05d" % i, bytes([i % 256]) * 100, i) for i in range(keys)]
    commands += [KvDelete(b"k/%05d" % i) for i in range(0, keys, 7)]
    commands += [KvSet(b"t/x", b""), KvDeleteTree(b"t/")]
    for session_id in (ONE, TWO):
        commands += [
            SessionCreate(session_id, "n", "n1", 10**9, RELEASE, "15s", 15 * 10**9, ("c",), ()),
            KvLock(b"l/" + session_id.encode(), b"", session_id),
            KvLock(b"k/00001", b"", session_id),
        ]
    commands.append(SessionDestroy(TWO))
    store.apply_batch(list(enumerate(commands, 1)))
    return store


def chunks_of(store: Store) -> list[bytes]:
    dump = store.dump()
    try:
        return list(dump)
    finally:
        dump.close()


def rows_of(engine: Engine) -> list[tuple[bytes, bytes]]:
    return list(engine.scan(b"", None))


@pytest.mark.parametrize("keys", [0, 1, 300])
def test_a_loaded_store_is_the_dumped_one(new_engine: Callable[[], Engine], keys: int) -> None:
    source = filled(new_engine(), keys)
    target = new_engine()
    meta = load(target, chunks_of(source))
    loaded = Store(target)
    assert meta == loaded.meta == source.meta
    assert rows_of(target) == rows_of(source.engine)
    assert loaded.digest == source.digest
    assert check(loaded) == []


def test_a_store_that_never_applied_anything_round_trips(new_engine: Callable[[], Engine]) -> None:
    target = new_engine()
    load(target, chunks_of(Store(new_engine())))
    assert Store(target).applied_index == 0


def test_a_dump_is_of_its_moment_while_the_store_is_written(
    new_engine: Callable[[], Engine],
) -> None:
    """Writers are not stopped; the dump is read in another thread, as the replica does."""
    store = filled(new_engine(), 2000)
    expected, meta = rows_of(store.engine), store.meta
    dump = store.dump()
    chunks: list[bytes] = []
    reader = threading.Thread(target=lambda: chunks.extend(dump))
    reader.start()
    for i in range(200):
        first = store.applied_index + 1
        store.apply_batch(
            [(first, KvSet(b"k/%05d" % i, b"new")), (first + 1, KvDelete(b"k/%05d" % (i * 9)))]
        )
    reader.join()
    dump.close()
    assert dump.meta == meta
    target = new_engine()
    assert load(target, chunks) == meta
    assert rows_of(target) == expected


def test_chunks_are_of_about_the_stated_size_and_one_large_row_is_one_chunk() -> None:
    store = Store(MemoryEngine())
    commands: list[Command] = [KvSet(b"%04d" % i, bytes(1000)) for i in range(1000)]
    commands.append(KvSet(b"big", bytes(2 * CHUNK_BYTES)))
    store.apply_batch(list(enumerate(commands, 1)))
    sizes = [len(chunk) for chunk in chunks_of(store)]
    assert all(size <= CHUNK_BYTES + 2000 for size in sizes[:-2]) or max(sizes) > 2 * CHUNK_BYTES
    assert sorted(sizes)[-2] <= CHUNK_BYTES + 2000
    assert len(sizes) >= 5


def test_loading_writes_small_batches_and_the_applied_index_in_the_last() -> None:
    """Large batches hold the interpreter; an unfinished load must not look like a store."""

    class Recording(MemoryEngine):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[Sequence[Write]] = []

        def write(self, batch: Sequence[Write]) -> None:
            self.batches.append(list(batch))
            super().write(batch)

    target = Recording()
    load(target, chunks_of(filled(MemoryEngine(), 1000)))
    assert all(len(batch) <= LOAD_ROWS_MAX + 1 for batch in target.batches)
    assert [META_KEY in dict(batch) for batch in target.batches].index(True) == len(
        target.batches
    ) - 1


def test_an_engine_that_is_not_empty_is_not_loaded_into(engine: Engine) -> None:
    source = filled(MemoryEngine())
    engine.write([(b"kx", b"")])
    with pytest.raises(InvariantBroken):
        load(engine, chunks_of(source))


def refused(chunks: list[bytes]) -> str:
    """Load, expect a refusal, and expect that nothing was left that opens as a store."""
    target = MemoryEngine()
    with pytest.raises(CorruptLog) as caught:
        load(target, chunks)
    assert target.get(META_KEY) is None
    return str(caught.value)


def several() -> list[bytes]:
    return chunks_of(filled(MemoryEngine(), 6000))


def test_any_missing_doubled_or_exchanged_chunk_is_refused() -> None:
    good = several()
    assert len(good) >= 4
    for i in range(len(good)):
        refused(good[:i] + good[i + 1 :])
        refused(good[: i + 1] + good[i:])
    refused([good[1], good[0], *good[2:]])
    refused([*good[:-2], good[-1], good[-2]])
    refused([*good, good[0]])
    refused([])


def test_any_flipped_bit_is_refused() -> None:
    """RC-71. Every byte of a small dump, all of it."""
    chunks = chunks_of(filled(MemoryEngine(), 4))
    for number, chunk in enumerate(chunks):
        for at in range(len(chunk)):
            bad = bytearray(chunk)
            bad[at] ^= 0x10
            refused([*chunks[:number], bytes(bad), *chunks[number + 1 :]])


def test_a_cut_chunk_is_refused() -> None:
    [rows, end] = chunks_of(filled(MemoryEngine(), 3))
    for size in range(len(rows)):
        refused([rows[:size], end])
    for size in range(len(end)):
        refused([rows, end[:size]])
    refused([rows + b"x", end])


def forged(rows: list[tuple[bytes, bytes]], kind: int = 1) -> bytes:
    body = b"".join(Struct("<II").pack(len(k), len(v)) + k + v for k, v in rows)
    return HEADER.pack(b"kvs1", kind, len(rows), crc32(body)) + body


def test_rows_that_do_not_belong_are_refused_although_the_checksum_is_right() -> None:
    chunks = chunks_of(filled(MemoryEngine(), 4))
    end = chunks[-1]
    _, rows = read_chunk(chunks[0])
    assert "unknown table" in refused([forged([*rows, (b"zfuture", b"")]), end])
    assert "out of order" in refused([forged([rows[1], rows[0], *rows[2:]]), end])
    at = next(number for number, (raw, _) in enumerate(rows) if raw.startswith(b"k"))
    exchanged = [*rows[:at], (rows[at][0], rows[at + 1][1]), *rows[at + 1 :]]
    assert "mark" in refused([forged(exchanged), end])
    at = next(number for number, (raw, _) in enumerate(rows) if raw.startswith(b"r"))
    exchanged = [*rows[:at], (rows[at][0], rows[at + 1][1]), *rows[at + 1 :]]
    assert "checksum" in refused([forged(exchanged), end])
    at = next(number for number, (raw, _) in enumerate(rows) if raw.startswith(b"c"))
    longer = [*rows[:at], (rows[at][0], b"9999"), *rows[at + 1 :]]
    assert "not as long" in refused([forged(longer), end])
    assert "rows" in refused([forged(rows[1:]), end])
    assert "form" in refused([chunks[0], forged([], 2)])
    assert "meta" in refused([chunks[0], forged([(bytes(8), b"nonsense")], 2)])
    assert "unknown table" in refused([forged([(META_KEY, b"x")]), end])


def test_a_wrong_count_or_digest_is_refused() -> None:
    chunks = chunks_of(filled(MemoryEngine(), 4))
    _, [(total, record)] = read_chunk(chunks[-1])
    for at in range(1, len(record)):
        bad = bytearray(record)
        bad[at] ^= 1
        if at < 25 or 57 <= at < 65 or 73 <= at < 82 or at >= 106:
            continue  # indexes, and the switch: nothing in the rows says what they must be
        refused([chunks[0], forged([(total, bytes(bad))], 2)])
    refused([chunks[0], forged([(Struct("<Q").pack(99), record)], 2)])


def test_a_dump_can_be_given_up_at_any_point(engine: Engine) -> None:
    store = filled(engine, 6000)
    for taken in (0, 1, 2):
        dump = store.dump()
        for _ in range(taken):
            next(dump)
        dump.close()
        dump.close()
    store.apply_batch([(store.applied_index + 1, KvSet(b"a", b""))])


def test_a_dump_of_something_that_is_no_store_is_refused(engine: Engine) -> None:
    engine.write([(META_KEY, b"nonsense")])
    with pytest.raises(CorruptLog):
        Dump(engine.snapshot())
