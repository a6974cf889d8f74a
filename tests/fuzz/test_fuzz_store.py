"""Stored records and the chunks of snapshots.

Law: the value that was stored, or ``CorruptLog``. A snapshot that is not exactly what a store dumped
never becomes a store.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable
from functools import cache
from struct import pack_into, unpack_from
from typing import Any
from zlib import crc32

import pytest

from kvnode.errors import CorruptLog
from kvnode.store import change_records, records
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet
from kvnode.store.memory import MemoryEngine
from kvnode.store.snapshot import load
from kvnode.store.store import Store
from tests.fuzz.machinery import CASES, INTERESTING, QUICK_CASES, fuzz, mutate, seeds

DECODERS: list[Callable[..., Any]] = [
    function
    for module in (records, change_records)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if name.startswith("decode_")
]
"""Every decoder of the modules, also those still to come."""


@cache
def rows() -> tuple[tuple[bytes, bytes], ...]:
    """What an engine holds after a bit of everything."""
    engine = MemoryEngine()
    store = Store(engine)
    commands: list[Command] = [
        KvSet(b"k/%02d" % i, bytes([i]) * (i * 7 % 90), flags=i) for i in range(40)
    ]
    commands += [KvDelete(b"k/03"), KvDelete(b"k/04"), KvSet(b"t/a", b""), KvDeleteTree(b"t/")]
    store.apply_batch(list(enumerate(commands, 1)))
    return tuple(engine.scan(b"", None))


@cache
def chunks() -> tuple[bytes, ...]:
    """The same as a snapshot of several chunks."""
    engine = MemoryEngine()
    engine.write(rows())
    dump = Store(engine).dump()
    whole = list(dump)
    dump.close()
    assert len(whole) == 2
    body = list(unpack(whole[0]))
    third = len(body) // 3
    parts = [body[:third], body[third : 2 * third], body[2 * third :]]
    return (*(pack(1, part) for part in parts), whole[-1])


def unpack(chunk: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    at = 13
    while at < len(chunk):
        key, size = unpack_from("<II", chunk, at)
        found.append((chunk[at + 8 : at + 8 + key], chunk[at + 8 + key : at + 8 + key + size]))
        at += 8 + key + size
    return found


def pack(kind: int, part: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        len(k).to_bytes(4, "little") + len(v).to_bytes(4, "little") + k + v for k, v in part
    )
    head = b"kvs1" + bytes([kind]) + len(part).to_bytes(4, "little")
    return head + crc32(body).to_bytes(4, "little") + body


def test_the_chunks_are_what_a_store_dumps() -> None:
    """Else the cases below would all be refused for the wrong reason."""
    engine = MemoryEngine()
    load(engine, chunks())
    assert tuple(engine.scan(b"", None)) == rows()


def record_case(rng: random.Random) -> None:
    """Every decoder over every kind of row, damaged."""
    raw, record = rng.choice(rows())
    for decode in DECODERS:
        damaged_raw = mutate(rng, raw) if rng.random() < 0.5 else raw
        damaged = mutate(rng, record, [row[1] for row in rows()])
        arguments = {"raw": damaged_raw, "record": damaged}
        wanted = inspect.signature(decode).parameters
        with contextlib.suppress(CorruptLog):
            decode(**{name: arguments[name] for name in wanted})


def chunk_case(rng: random.Random) -> None:
    """Chunks lost, doubled, exchanged, damaged, or forged with a right checksum."""
    stream = list(chunks())
    has_forged = False
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(stream)) if stream else 0
        dice = rng.random()
        if not stream or dice < 0.1:
            stream.insert(at, rng.choice(chunks()))
        elif dice < 0.2:
            del stream[at]
        elif dice < 0.3:
            rng.shuffle(stream)
        else:
            has_forged |= dice < 0.6
            change = forged if dice < 0.6 else mutate
            stream[at] = change(rng, stream[at])
    engine = MemoryEngine()
    try:
        load(engine, stream)
    except CorruptLog:
        assert engine.get(records.META_KEY) is None, "what was refused must not be a store"
        return
    found = tuple(engine.scan(b"", None))
    if not has_forged:
        assert found == rows()
    # Whoever can forge checksums can forge what no mark covers: the derived tables and the counters.
    assert marked(found) == marked(rows()), "a row that no store ever wrote"


def marked(found: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    return [row for row in found if row[0][:1] in records.MARKED]


def forged(rng: random.Random, chunk: bytes) -> bytes:
    data = bytearray(mutate(rng, chunk[13:], [c[13:] for c in chunks()]))
    head = bytearray(chunk[:13].ljust(13, b"\0"))
    if rng.random() < 0.3:
        pack_into("<I", head, 5, rng.choice(INTERESTING) % 2**32)
    if rng.random() < 0.2:
        head[4] = rng.choice((1, 2, 3))
    pack_into("<I", head, 9, crc32(data))
    return bytes(head + data)


TARGETS = [record_case, chunk_case]


@pytest.mark.parametrize("case", TARGETS)
def test_what_an_engine_hands_back(case) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TARGETS)
def test_what_an_engine_hands_back_for_long(case) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)
