"""The self-check finds every kind of damage that it claims to find."""

from __future__ import annotations

import pytest

from kvnode.store.checks import check
from kvnode.store.commands import (
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import (
    DELAY_ORDER,
    META_KEY,
    RELEASE,
    Meta,
    encode_delay,
    encode_grave,
    encode_meta,
    order_key,
)
from kvnode.store.store import Store

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"


def sound() -> tuple[MemoryEngine, Store]:
    engine = MemoryEngine()
    store = Store(engine)
    store.apply_batch(
        [
            (1, KvSet(b"a", b"1")),
            (2, KvSet(b"b", b"1")),
            (3, KvDelete(b"b")),
            (4, KvSet(b"t/x", b"")),
            (5, KvDeleteTree(b"t/")),
            (6, SessionCreate(A, "", "n", 10**9, RELEASE, "", 0, (), ())),
            (7, SessionCreate(B, "", "n", 10**9, RELEASE, "", 0, (), ())),
            (8, KvLock(b"l", b"", A)),
            (9, KvLock(b"d", b"", B)),
            (10, SessionDestroy(B)),
        ]
    )
    assert check(store) == []
    return engine, store


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ((b"ka", None), "keys"),
        ((b"kz", b"short"), "mark"),
        ((b"zz", b""), "no known table"),
        ((b"gb", None), "order"),
        ((b"gb", encode_grave(b"gb", 99)), "last one from 5"),
        ((order_key(3, b"gb"), None), "order"),
        ((order_key(4, b"ga"), b""), "order"),
        ((b"tt/", None), "trees"),
        ((b"s" + A.encode(), None), "which does not exist"),
        ((b"s" + A.encode(), None), "sessions where 1 should be"),
        ((b"h" + A.encode() + b"l", None), "hold"),
        ((b"h" + A.encode() + b"a", b""), "hold"),
        ((b"dd", None), "lock-delays"),
        ((b"dd", encode_delay(b"dd", 99, 1)), "no session ended"),
        ((order_key(10, b"dd", DELAY_ORDER), None), "order"),
        ((order_key(9, b"dl", DELAY_ORDER), b""), "order"),
        ((META_KEY, encode_meta(Meta(9, 5, 5, 1, 1))), "meta"),
    ],
)
def test_each_kind_of_damage_is_found(row: tuple[bytes, bytes | None], found: str) -> None:
    engine, store = sound()
    engine.write([row])
    assert any(found in problem for problem in check(store)), check(store)


def test_every_changed_byte_of_a_record_is_found() -> None:
    engine, store = sound()
    for key, value in list(engine.scan(b"", None)):
        for at in range(len(value)):
            bad = bytearray(value)
            bad[at] ^= 1
            engine.write([(key, bytes(bad))])
            assert check(store), (key, at)
        engine.write([(key, value)])
    assert check(store) == []
