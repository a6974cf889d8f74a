"""The bytes on disk: they must not change by accident, and damage must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import CorruptLog
from kvnode.store.commands import KvDelete, KvSet
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import (
    Meta,
    decode_grave,
    decode_key,
    decode_meta,
    decode_order_key,
    encode_grave,
    encode_meta,
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
    index_1, index_3, none = "0100000000000000", "0300000000000000", "0000000000000000"
    assert rows == {
        # Mark; version, index.
        b"gb": "c63f3c0c4a37bf4fb9964d9139d0303a" + "01" + index_3,
        # Mark; version, length of session, create, modify, lock, flags; value.
        b"ka": "d9582884506b14ee9ec5e8c7a3b8239f"
        + ("0100" + index_1 + index_1 + none + "0201000000000000")
        + "7879",
        # Version, applied, last change, last grave, keys, graves of trees, digest.
        b"m": ("01" + index_3 + index_3 + index_3 + index_1 + none)
        + "9f9764909aa2d43e585c3658dd8853d9",
        b"o" + bytes(7) + b"\x03gb": "",
    }
    assert int("c63f3c0c4a37bf4fb9964d9139d0303a", 16) + int(
        "d9582884506b14ee9ec5e8c7a3b8239f", 16
    ) == 2**128 + int("9f9764909aa2d43e585c3658dd8853d9", 16), "the digest is the sum of the marks"


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
    meta = Meta(applied, kv, graves, count, trees, digest)
    assert decode_meta(encode_meta(meta)) == meta


def test_a_meta_record_that_contradicts_itself_is_refused() -> None:
    for meta in (Meta(1, 2, 0), Meta(5, 2, 3)):
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
