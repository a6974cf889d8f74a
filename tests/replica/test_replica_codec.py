"""Commands as bytes: one spelling, and nothing from a peer that could stop a node (RC-28, RC-29)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import InvariantBroken, RemoteProtocolError
from kvnode.replica.codec import decode, decode_foreign, decode_result, encode
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, ReapGraves, Result
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store

UINT64 = st.integers(0, 2**64 - 1)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(KvSet, st.binary(), st.binary(), UINT64, st.none() | UINT64),
    st.builds(KvDelete, st.binary(), st.none() | UINT64),
    st.builds(KvDeleteTree, st.binary()),
    st.builds(ReapGraves, UINT64),
)


@given(COMMANDS)
def test_a_command_comes_back_as_it_went(command: Command) -> None:
    assert decode(encode(command)) == command
    assert decode_foreign(encode(command), 1 << 20) == command


def test_an_unknown_command_in_the_log_stops_the_node() -> None:
    """RC-29: it is never skipped."""
    with pytest.raises(InvariantBroken, match="upgrade this node"):
        decode(msgpack.packb((200, b"x")))


ANYTHING = st.recursive(
    st.none() | st.integers() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(), inner, max_size=2),
)


@given(st.binary(max_size=40) | ANYTHING)
def test_whatever_a_peer_sends_is_a_command_that_can_be_applied_or_is_refused(value: Any) -> None:
    """An entry that cannot be applied would stop every node for good."""
    try:
        data = value if isinstance(value, bytes) else msgpack.packb(value)
    except OverflowError:
        return
    try:
        command = decode_foreign(data, 1 << 20)
    except RemoteProtocolError:
        return
    Store(MemoryEngine()).apply_batch([(1, command)])


@pytest.mark.parametrize(
    "fields",
    [
        (1, "text", b"", 0, None),
        (1, b"k", b"v", -1, None),
        (1, b"k", b"v", 0, -5),
        (1, b"k", b"v", 0.5, None),
        (1, b"k", None, 0, None),
        (2, [b"k"], None),
        (3, 5),
        (4, b"x"),
        (4, True),
        (1, b"k", b"v", 0, None, 1, 2, 3, 4),
        (1,),
        ([1], b"k"),
        ({}, b"k"),
    ],
)
def test_a_command_with_wrong_fields_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_foreign(msgpack.packb(fields), 1000)


def test_a_second_spelling_and_an_oversized_command_are_refused() -> None:
    data = encode(KvSet(b"k", b"v"))
    with pytest.raises(RemoteProtocolError):
        decode_foreign(data, len(data) - 1)
    with pytest.raises(RemoteProtocolError):
        decode_foreign(data + b"\xc0", 1000)
    with pytest.raises(RemoteProtocolError):
        decode_foreign(msgpack.packb((1, b"k", b"v")), 1000)
    with pytest.raises(RemoteProtocolError):
        decode_foreign("text", 1000)


def test_a_result_comes_back_as_it_went_or_not_at_all() -> None:
    assert decode_result([True, 7, 5]) == Result(True, 7, 5)
    assert decode_result((12, 7, 0)) == Result(12, 7, 0)
    for value in (
        None,
        [],
        [True, 7],
        ["x", 7, 5],
        [True, "7", 5],
        [True, 7, None],
        {},
        [1.5, 7, 5],
    ):
        with pytest.raises(RemoteProtocolError):
            decode_result(value)
