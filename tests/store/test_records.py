"""The bytes on disk: they must not change by accident, and damage must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import CorruptLog
from kvnode.store.commands import (
    KvDelete,
    KvLock,
    KvSet,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import (
    DELETE,
    RELEASE,
    SESSIONS,
    Meta,
    Session,
    decode_delay,
    decode_grave,
    decode_key,
    decode_meta,
    decode_order_key,
    decode_session,
    encode_delay,
    encode_grave,
    encode_meta,
    encode_session,
    order_key,
    order_stop,
    successor,
)
from kvnode.store.store import Store

uint64 = st.integers(0, 2**64 - 1)


def test_the_form_on_disk_is_what_it_was() -> None:
    """Data directories outlive versions: whoever changes this adds a version and an upgrade test."""
    engine = MemoryEngine()
    Store(engine).apply_batch(
        [(1, KvSet(b"a", b"xy", 258)), (2, KvSet(b"b", b"")), (3, KvDelete(b"b"))]
    )
    rows = {key: value.hex() for key, value in engine.scan(b"", None)}
    index_1, index_2, index_3, none = (f"{number:02x}" + "00" * 7 for number in (1, 2, 3, 0))
    assert rows == {
        # Mark; version, index.
        b"gb": "c63f3c0c4a37bf4fb9964d9139d0303a" + "01" + index_3,
        # Mark; version, length of session, create, modify, lock, flags; value.
        b"ka": "d9582884506b14ee9ec5e8c7a3b8239f"
        + ("0100" + index_1 + index_1 + none + "0201000000000000")
        + "7879",
        # Version, applied, last change, last grave, keys, graves of trees, digest; last change of a
        # session, sessions; recording, floor, rows and bytes of the history.
        b"m": ("03" + index_3 + index_3 + index_3 + index_1 + none)
        + "9f9764909aa2d43e585c3658dd8853d9"
        + (none + none)
        + ("01" + none + index_3 + "9800000000000000" + none + "0000000400000000"),
        # Version, cause, checksum; the record before.
        b"r" + bytes(3) + b"\x01a" + bytes(7) + b"\x01": "0101" + "16216894",
        b"r" + bytes(3) + b"\x01b" + bytes(7) + b"\x02": "0101" + "694cec34",
        b"r" + bytes(3) + b"\x01b" + bytes(7) + b"\x03": "0104"
        + "f64a6da0"
        + "b55e7a71f3dbb010a4739bf25d916d3e"
        + ("0100" + index_2 + index_2 + none + none),
        # Size of the revision.
        b"c" + bytes(7) + b"\x01a": "06000000",
        b"c" + bytes(7) + b"\x02b": "06000000",
        b"c" + bytes(7) + b"\x03b": "38000000",
        b"o" + bytes(7) + b"\x03gb": "",
    }
    assert int("c63f3c0c4a37bf4fb9964d9139d0303a", 16) + int(
        "d9582884506b14ee9ec5e8c7a3b8239f", 16
    ) == 2**128 + int("9f9764909aa2d43e585c3658dd8853d9", 16), "the digest is the sum of the marks"


def test_the_form_of_sessions_and_locks_on_disk_is_what_it_was() -> None:
    engine = MemoryEngine()
    one, two = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77", "8a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
    Store(engine).apply_batch(
        [
            (1, SessionCreate(one, "ç", "n1", 15 * 10**9, DELETE, "15s", 15 * 10**9, ("c",), ())),
            (2, SessionCreate(two, "", "n", 10**9, RELEASE, "", 0, (), (("s", "ns"),))),
            (3, KvLock(b"a", b"x", one)),
            (4, KvLock(b"b", b"", two)),
            (5, SessionDestroy(two)),
        ]
    )
    rows = {
        key: value.hex() for key, value in engine.scan(b"", None) if key[:1] not in (b"c", b"r")
    }
    marks = {key: rows[key][:32] for key in (b"db", b"ka", b"kb", b"s" + one.encode())}
    assert marks == {
        b"db": "f6b256c2d4c211e401e9868b3251ac41",
        b"ka": "84babed615de0ab00c34de1bfafc65f6",
        b"kb": "c11a2f909116b56f88675aa55c0fbfb4",
        b"s" + one.encode(): "fe5f766f0919a41825aa529d1cfacf1f",
    }
    number = "%02x00000000000000"
    assert {key: value[32:] or value for key, value in rows.items()} == {
        # What binds a session to its node, and to its check there.
        b"Bn1\0\0" + one.encode(): "",
        b"Bn1\0c\0" + one.encode(): "",
        # Version, index, nanoseconds.
        b"db": "01" + number % 5 + "00ca9a3b00000000",
        b"e" + bytes(7) + b"\x05db": "",
        b"h" + one.encode() + b"a": "",
        b"ka": "0124" + number % 3 * 2 + number % 1 + number % 0 + one.encode().hex() + "78",
        b"kb": "0100" + number % 4 + number % 5 + number % 1 + number % 0,
        # Version, behaviour, create, modify, lock-delay, TTL, counts of checks; texts.
        b"s" + one.encode(): "0101" + number % 1 * 2 + "00d6117e03000000" * 2 + "01000000"
        + "02000000c3a7" + "020000006e31" + "03000000313573" + "0100000063",
        b"m": rows[b"m"][32:],
    }  # fmt: skip


def test_a_meta_record_from_before_there_were_sessions_is_read() -> None:
    """Version 1 had neither their index nor their number."""
    new = encode_meta(Meta(9, 7, 5, 3, 2, 1))
    assert decode_meta(b"\x01" + new[1:-57]) == Meta(
        9, 7, 5, 3, 2, 1, history_floor=9, history_base=9
    )


def test_a_meta_record_from_before_there_was_a_history_is_read() -> None:
    """Version 2: the history begins where the version was changed."""
    new = encode_meta(Meta(9, 7, 5, 3, 2, 1, 8, 4))
    upgraded = decode_meta(b"\x02" + new[1:-41])
    assert upgraded == Meta(9, 7, 5, 3, 2, 1, 8, 4, history_floor=9, history_base=9)


@given(prefix=st.binary(max_size=4), key=st.binary(max_size=6))
def test_the_successor_of_a_prefix_bounds_exactly_the_keys_under_it(
    prefix: bytes, key: bytes
) -> None:
    stop = successor(prefix)
    inside = key >= prefix and (stop is None or key < stop)
    assert inside == key.startswith(prefix)


@given(index=uint64, raw=st.binary(min_size=1, max_size=9))
def test_graves_and_their_order_round_trip(index: int, raw: bytes) -> None:
    assert decode_grave(raw, encode_grave(raw, index)) == index
    assert decode_order_key(order_key(index, raw)) == (index, raw)


@given(a=uint64, b=uint64)
def test_the_order_of_graves_is_the_order_of_their_indexes(a: int, b: int) -> None:
    assert (order_key(a, b"gz") < order_key(b, b"ga")) == (a < b)
    if a < 2**64 - 1:
        assert (order_key(a, b"g\xff") < order_stop(b)) == (a <= b)


@given(
    st.lists(uint64, min_size=3, max_size=3).map(sorted), uint64, uint64, st.integers(0, 2**128 - 1)
)
def test_the_meta_record_round_trips(
    indexes: list[int], count: int, trees: int, digest: int
) -> None:
    graves, kv, applied = indexes
    meta = Meta(applied, kv, graves, count, trees, digest, kv, trees)
    assert decode_meta(encode_meta(meta)) == meta


def test_a_meta_record_that_contradicts_itself_is_refused() -> None:
    for meta in (Meta(1, 2, 0), Meta(5, 2, 3), Meta(5, 2, 1, session_index=6)):
        with pytest.raises(CorruptLog):
            decode_meta(encode_meta(meta))


@pytest.mark.parametrize("record", [b"", bytes(49), bytes(60), bytes(16) + b"\x01\x05" + bytes(34)])
def test_a_key_record_of_an_unknown_form_is_refused(record: bytes) -> None:
    with pytest.raises(CorruptLog):
        decode_key(b"ka", record)


@pytest.mark.parametrize("record", [b"", bytes(25), bytes(16) + b"\x02" + bytes(8)])
def test_a_grave_of_an_unknown_form_is_refused(record: bytes) -> None:
    with pytest.raises(CorruptLog):
        decode_grave(b"ga", record)
    with pytest.raises(CorruptLog):
        decode_order_key(b"o" + bytes(8))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


@given(
    st.builds(
        Session,
        st.just("7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"),
        TEXTS,
        TEXTS,
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([RELEASE, DELETE]),
        TEXTS,
        uint64,
        st.lists(TEXTS, max_size=3).map(tuple),
        st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
        uint64,
        uint64,
    )
)
def test_session_records_round_trip(session: Session) -> None:
    raw = SESSIONS + session.session_id.encode()
    record = encode_session(raw, session)
    assert decode_session(raw, record) == session
    for bad in (record[:-1], record + b"x", record[:16] + b"\x09" + record[17:], b""):
        with pytest.raises(CorruptLog):
            decode_session(raw, bad)


@given(index=uint64, delay_ns=uint64)
def test_delay_records_round_trip(index: int, delay_ns: int) -> None:
    record = encode_delay(b"da", index, delay_ns)
    assert decode_delay(b"da", record) == (index, delay_ns)
    for bad in (record[:-1], record + b"x", record[:16] + b"\x09" + record[17:]):
        with pytest.raises(CorruptLog):
            decode_delay(b"da", bad)
