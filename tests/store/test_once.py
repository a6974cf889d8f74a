"""Writes with a key of their own are executed once (RC-58), and are remembered within bounds."""

from __future__ import annotations

import random

import pytest

from kvnode.errors import CorruptLog
from kvnode.store import once
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvSet,
    Result,
    SessionCreate,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
)
from kvnode.store.own_commands import KvAdd, KvCopy, Once, ReapOnce, Refused, Why
from kvnode.store.packing import pack, unpack
from kvnode.store.records import RELEASE, KVPair
from kvnode.store.store import Store

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
PRINT = b"sixteen bytes..."


def apply(store: Store, command: Command) -> Result:
    [result] = store.apply_batch([(store.applied_index + 1, command)])
    assert check(store) == []
    return result


def written(key: bytes, command: Command, print_: bytes = PRINT, keys_max: int = 1000) -> Once:
    return Once(key, print_, keys_max, 4096, command)


def test_the_second_write_with_a_key_gets_the_first_ones_result(store: Store) -> None:
    first = apply(store, written(b"k", KvAdd(b"n", 5)))
    assert first == Result(5, 1, 1)
    apply(store, KvAdd(b"n", 1))
    assert apply(store, written(b"k", KvAdd(b"n", 5))) == first
    pair = store.get(b"n")
    assert pair is not None
    assert pair.value == b"6"


@pytest.mark.parametrize(
    "command",
    [
        KvSet(b"a", b"1", 0, 7),
        KvDelete(b"a"),
        KvAdd(b"word", 1),
        KvCopy(b"none", b"x", True, False, False, None, 1, 1, 1),
        Txn((TxnOp(Verb.GET, b"word"), TxnOp(Verb.SET, b"b", b"2")), 4096),
        Txn((TxnOp(Verb.GET, b"none"),), 4096),
    ],
    ids=repr,
)
def test_whatever_came_of_it_is_what_is_told_again(store: Store, command: Command) -> None:
    apply(store, KvSet(b"word", b"five"))
    first = apply(store, written(b"k", command))
    digest = store.digest
    again = apply(store, written(b"k", command))
    assert again == first
    assert type(again.value) is type(first.value)
    assert store.digest == digest


def test_a_session_that_was_made_is_named_again(store: Store) -> None:
    """Each try makes up an id of its own; the first one's session is the one that exists."""

    def create(session_id: str) -> Once:
        return written(b"k", SessionCreate(session_id, "", "n", 0, RELEASE, "", 0, (), ()))

    assert apply(store, create(A)) == Result(A, 1)
    assert apply(store, create(B)) == Result(A, 1)
    assert [session.session_id for session in store.sessions()] == [A]


def test_another_request_with_the_same_key_is_refused(store: Store) -> None:
    apply(store, written(b"k", KvSet(b"a", b"1")))
    other = apply(store, written(b"k", KvSet(b"a", b"2"), b"another sixteen."))
    assert other == Result(Refused(Why.OTHER_REQUEST, 1), 2)
    pair = store.get(b"a")
    assert pair is not None
    assert pair.value == b"1"


def test_a_result_too_large_to_keep_is_told_and_the_write_not_repeated(store: Store) -> None:
    apply(store, KvSet(b"big", bytes(5000)))
    txn = Txn((TxnOp(Verb.GET, b"big"), TxnOp(Verb.SET, b"a", b"1")), 1 << 20)
    first = apply(store, written(b"k", txn))
    assert isinstance(first.value, TxnOutcome)
    assert apply(store, written(b"k", txn)) == Result(Refused(Why.NOT_KEPT, 2), 2)


def test_the_oldest_keys_go_first_and_the_bound_is_kept(store: Store) -> None:
    for number in range(700):
        entry = written(b"%d" % number, KvAdd(b"n", 1), keys_max=300)
        store.apply_batch([(store.applied_index + 1, entry)])
        assert store.once_count() <= 300
    assert check(store) == []
    assert apply(store, written(b"699", KvAdd(b"n", 1))).value == 700
    assert apply(store, written(b"0", KvAdd(b"n", 1))).value == 701, "it is forgotten"


def test_keys_are_forgotten_by_age(store: Store) -> None:
    for number in range(5):
        apply(store, written(b"%d" % number, KvAdd(b"n", 1)))
    assert store.once_bound(3, 2) == 2
    assert apply(store, ReapOnce(3)) == Result(3, 6)
    assert store.once_count() == 2
    assert apply(store, written(b"4", KvAdd(b"n", 1))).value == 5
    assert apply(store, written(b"2", KvAdd(b"n", 1))).value == 6
    assert apply(store, ReapOnce(3)).value == 0


VALUES = [
    None,
    True,
    False,
    0,
    -(2**63),
    "ç",
    b"\0",
    (),
    (1, (b"k", None), "x"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_packed_comes_back(value: object) -> None:
    back = unpack(pack(value))
    assert back == value
    assert type(back) is type(value)


def test_what_was_not_packed_is_refused() -> None:
    good = pack((1, "text", (b"bytes",)))
    for size in range(len(good)):
        with pytest.raises(CorruptLog):
            unpack(good[:size])
    for bad in (b"", b"?", good + b"N", b"I\x01\0\0\0x", b"S\x01\0\0\0\xff", b"Z\0\0\0\0"):
        with pytest.raises(CorruptLog):
            unpack(bad)
    with pytest.raises(TypeError):
        pack(1.5)


def test_damaged_results_are_refused_or_are_values() -> None:
    rng = random.Random(5)
    pair = KVPair(b"k", b"v" * 9, 1, 2, 3, 4, "s")
    good = [
        once.encode_kept(b"ik", once.Kept(7, 3, PRINT, value), 4096)
        for value in (
            TxnOutcome((pair, pair), ()),
            Refused(Why.OVERFLOW, 5, b"x"),
            -5,
            "text",
            None,
        )
    ]
    refused = 0
    for _ in range(5000):
        record = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 4)):
            record[rng.randrange(len(record))] = rng.randrange(256)
        del record[rng.randrange(len(record) // 2, len(record) + 1) :]
        try:
            once.decode_kept(b"ik", bytes(record))
        except CorruptLog:
            refused += 1
    assert refused > 2000


def test_a_record_of_an_unknown_form_is_refused() -> None:
    pair = KVPair(b"k", b"v", 1, 2, 3, 4, "")
    kept = once.Kept(7, 3, PRINT, TxnOutcome((pair,), ()))
    record = once.encode_kept(b"ik", kept, 4096)
    assert once.decode_kept(b"ik", record) == kept
    for bad in (record[:20], record[:16] + b"\x09" + record[17:], record[:-3]):
        with pytest.raises(CorruptLog):
            once.decode_kept(b"ik", bad)
    assert once.decode_count(None) == (0, 0)
    with pytest.raises(CorruptLog):
        once.decode_count(record)
