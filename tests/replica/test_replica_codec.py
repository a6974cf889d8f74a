"""Commands and results as bytes: every kind comes back as it was, and nothing else gets in."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import BadRequest, InvariantBroken, RemoteProtocolError
from kvnode.replica.codec import decode, decode_foreign, decode_result, encode, encode_result
from kvnode.store.commands import (
    KINDS,
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    Problem,
    ReapGraves,
    ReapLockDelays,
    RestoreDrop,
    RestoreFinish,
    RestorePiece,
    Result,
    SessionCreate,
    SessionDestroy,
    TrimHistory,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
    adds_data,
    check_command,
)
from kvnode.store.control_commands import AutopilotSet, EventFire
from kvnode.store.own_commands import (
    KvAdd,
    KvCopy,
    KvExpire,
    KvPut,
    Mode,
    Once,
    ReapOnce,
    Refused,
    Why,
)
from kvnode.store.records import KVPair
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import Check, CheckDefinition, Node, Service

ID = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
COMMANDS: list[Command] = [
    KvSet(b"k", b"v", 2**64 - 1, 0),
    KvDelete(b"k", 7),
    KvDeleteTree(b""),
    ReapGraves(9),
    TrimHistory(9),
    TrimHistory(2**64 - 1, recording=False),
    KvLock(b"k", b"v", ID, 3, 12),
    KvUnlock(b"k", b"v", "any text", 3),
    SessionCreate(ID, "ç", "n", -5, 1, "15s", 15, ("serfHealth",), (("web", ""),)),
    SessionDestroy(ID),
    ReapLockDelays(9),
    Txn((TxnOp(Verb.SET, b"k", b"v", 1, 2, ID), TxnOp(Verb.GET, b"k")), 4096, 7),
    Txn((), 0),
    AutopilotSet(True, 200, 250, 3, -1, "zone", False, "ç", 7),
    EventFire(ID, "deploy", b"\xff", "web.*", "", "v1"),
    KvPut(b"k", b"v", 3, 0, ID, Mode.LOCK, True, 30 * 10**9, 12),
    KvAdd(b"k", -(2**63), 7, 10**9),
    KvExpire(((b"k", 7), (b"l", 8))),
    KvCopy(b"a/", b"b/", True, True, False, None, 10, 2**20, 4096),
    *[
        Once(b"key", bytes(16), 100, 4096, command)
        for command in (
            KvSet(b"k", b"v", 2**64 - 1, 0),
            SessionCreate(ID, "ç", "n", -5, 1, "15s", 15, ("serfHealth",), (("web", ""),)),
            Txn((TxnOp(Verb.SET, b"k", b"v", 1, 2, ID), TxnOp(Verb.GET, b"k")), 4096, 7),
            KvAdd(b"k", 1),
        )
    ],
    ReapOnce(9),
    Register("n"),
    Register(
        "n",
        Node(ID, "n", "10.0.0.1", (("lan", "10.0.0.1"),), (("k", "v"),)),
        Service("n", "w", "web", ("a",), "", (("lan", "h", 1),), (("k", "v"),), 80, (3, 2), True),
        (Check("n", "c", "c", definition=CheckDefinition(header=(("h", ("v",)),), ttl_ns=9)),),
        forced=True,
    ),
    Deregister("n", "w", keeps_unbound=True),
    UpdateCheck("n", "c", "ttl", "passing", "ç"),
    RestorePiece(ID, 3, b"kvs1"),
    RestoreFinish(ID, 4),
    RestoreDrop(ID),
]


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_every_command_comes_back_as_it_was(command: Command) -> None:
    data = encode(command)
    for decoded in (decode(data), decode_foreign(data, 10_000)):
        assert decoded == command
        assert type(decoded) is type(command)
    check_command(command)


def test_every_kind_is_tried() -> None:
    assert {type(command) for command in COMMANDS} == set(KINDS.values())


def test_numbers_on_disk_are_never_used_again() -> None:
    """They are in logs that outlive versions (RC-29)."""
    names = {number: kind.__name__ for number, kind in KINDS.items()}
    assert names == {
        1: "KvSet",
        2: "KvDelete",
        3: "KvDeleteTree",
        4: "ReapGraves",
        5: "KvLock",
        6: "KvUnlock",
        7: "SessionCreate",
        8: "SessionDestroy",
        9: "ReapLockDelays",
        10: "Txn",
        20: "AutopilotSet",
        21: "EventFire",
        25: "TrimHistory",
        30: "KvPut",
        31: "KvAdd",
        32: "KvExpire",
        33: "KvCopy",
        34: "Once",
        35: "ReapOnce",
        11: "Register",
        12: "Deregister",
        13: "UpdateCheck",
        70: "RestorePiece",
        71: "RestoreFinish",
        72: "RestoreDrop",
    }
    assert [verb.value for verb in Verb] == list(range(14))


def test_the_form_of_an_entry_is_what_it_was() -> None:
    """Logs written before ``as_of`` or later fields existed still decode."""
    data = msgpack.packb((5, b"k", b"v", ID, 3))
    assert decode(data) == KvLock(b"k", b"v", ID, 3, 0)
    assert decode(msgpack.packb((10, [(1, b"k")], 5))) == Txn((TxnOp(1, b"k"),), 5)
    with pytest.raises(InvariantBroken, match="upgrade"):
        decode(msgpack.packb((99, b"k")))


BAD: list[tuple[Any, ...]] = [
    (99, b"k"),
    (1, "text", b""),
    (5, b"k", b"v", b"bytes"),
    (5, b"k", b"v", "\ud800".encode("utf-16-le", "surrogatepass"), 0),
    (5, b"k", b"v", ID, -1),
    (6, b"k", b"v", None, 0),
    (20, 1, 0, 0, 0, 0, "", False, "", None),
    (20, True, 0, -1, 0, 0, "", False, "", None),
    (21, "short", "deploy", b"", "", "", ""),
    (21, ID, b"deploy", b"", "", "", ""),
    (7, "short", "", "", 0, 0, "", 0, (), ()),
    (7, ID, "", "", 0, 2, "", 0, (), ()),
    (7, ID, "", "", 2**63, 0, "", 0, (), ()),
    (7, ID, "", "", 0, 0, "", -1, (), ()),
    (7, ID, "", "", 0, 0, "", 0, (1,), ()),
    (7, ID, "", "", 0, 0, "", 0, (), (("one",),)),
    (7, ID, "", "", 0, 0, "", 0, ("c",) * 65_536, ()),
    (8, "short"),
    (9, True),
    (10, 5, 5, 0),
    (10, (5,), 5, 0),
    (10, ((0, b"k", b"", 0, 0, ""),), 5, 0),
    (10, ((99, b"k", b"", 0, 0, ""),), 5, 0),
    (10, ((True, b"k", b"", 0, 0, ""),), 5, 0),
    (10, ((1, "k", b"", 0, 0, ""),), 5, 0),
    (10, ((1, b"k", b"", 0, 0, "", 1),), 5, 0),
    (10, ((1, b"k"),), 5, 0),
    (10, (), -1, 0),
    (30, b"k", "text"),
    (30, b"k", b"v", 0, None, "", 3),
    (30, b"k", b"v", 0, None, "ç", 1),
    (30, b"k", b"v", 0, None, "", 0, 1),
    (30, b"k", b"v", 0, None, "", 0, False, -1),
    (31, b"k", 2**63),
    (31, b"k", 1.0),
    (31, b"k", True),
    (32, ((b"k",),)),
    (32, ((b"k", -1),)),
    (32, (5,)),
    (32, ((b"k", 1),) * 1025),
    (33, b"a", b"b", 1, False, False, None, 1, 1, 1),
    (33, b"a", b"b", True, False, False, None, 1, -1, 1),
    (34, b"", bytes(16), 1, 1, (1, b"k", b"v")),
    (34, b"k" * 256, bytes(16), 1, 1, (1, b"k", b"v")),
    (34, b"k", bytes(15), 1, 1, (1, b"k", b"v")),
    (34, b"k", bytes(16), 0, 1, (1, b"k", b"v")),
    (34, b"k", bytes(16), 1, 1, (4, 9)),
    (34, b"k", bytes(16), 1, 1, (1, "k", b"v")),
    (34, b"k", bytes(16), 1, 1, ()),
    (34, b"k", bytes(16), 1, 1, 7),
    (34, b"k", bytes(16), 1, 1, (34, b"k", bytes(16), 1, 1, (1, b"k", b"v"))),
    (35, -1),
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: repr(fields)[:40])
def test_what_no_node_could_apply_is_refused_at_the_door(fields: tuple[Any, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_foreign(msgpack.packb(fields), 1 << 20)


def test_text_that_is_no_utf8_is_refused_before_it_is_encoded() -> None:
    for command in (KvLock(b"k", b"", "\ud800"), SessionDestroy("\ud800" * 36)):
        with pytest.raises(BadRequest):
            check_command(command)


PAIR = KVPair(b"k", b"v", 1, 2, 3, 4, ID)
RESULTS = [
    Result(True, 7, 3),
    Result(False, 7),
    Result(None, 7),
    Result(12, 7),
    Result(-(2**63), 7, 7),
    Result(ID, 7),
    Result(Refused(Why.TARGET_EXISTS, 0, b"k"), 7),
    Result(TxnOutcome((PAIR, PAIR), ()), 7),
    Result(TxnOutcome((), (Problem(2, Trouble.OTHER_SESSION, ID), Problem(3, 9, 5))), 7),
]


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_every_result_comes_back_as_it_was(result: Result) -> None:
    wire = msgpack.unpackb(msgpack.packb(encode_result(result)), use_list=False)
    decoded = decode_result(wire)
    assert decoded == result
    assert type(decoded.value) is type(result.value)


def test_an_outcome_larger_than_a_frames_arrays_travels() -> None:
    outcome = TxnOutcome((PAIR,) * 20_000, ())
    assert decode_result(encode_result(Result(outcome, 7))).value == outcome


@pytest.mark.parametrize(
    "value",
    [
        None,
        (True, 7),
        (True, "7", 0),
        ("yes", 7, 0),
        (b"", 7, 0),
        ((1, 2), 7, 0),
        ((1, 2, "k"), 7, 0),
        (msgpack.packb(((), ())) + b"x", 7, 0),
        (msgpack.packb((((1,),), ())), 7, 0),
        (msgpack.packb(((("k", b"v", 1, 2, 3, 4, ""),), ())), 7, 0),
        (msgpack.packb(((), ((0, "x", 0),))), 7, 0),
        (msgpack.packb(((), ((0, 1, b""),))), 7, 0),
    ],
    ids=repr,
)
def test_what_is_no_result_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_result(value)


@given(st.binary(max_size=60))
def test_no_bytes_get_past_the_door_as_anything_else(data: bytes) -> None:
    try:
        command = decode_foreign(data, 100)
    except RemoteProtocolError:
        return
    assert encode(command) == data


def test_what_may_go_on_while_there_is_no_room() -> None:
    """RC-70: deletions, releases and ends are the way out."""
    adding = {type(command) for command in COMMANDS if adds_data(command)}
    assert adding == {
        *(KvSet, KvLock, SessionCreate, Txn, EventFire, KvPut, KvAdd, KvCopy, Once),
        Register,
    }
    assert not adds_data(Txn((TxnOp(Verb.DELETE, b"k"), TxnOp(Verb.UNLOCK, b"k")), 0))
