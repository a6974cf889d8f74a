"""Everything that a peer, or a stranger on the peer port, can send.

Law: a value that the rooms above may trust, or ``RemoteProtocolError``; memory in proportion to what
was received, whatever lengths it announces.
"""

from __future__ import annotations

import json
import random
from contextlib import suppress
from functools import cache
from typing import Any

import msgpack
import pytest

from kvnode.errors import LeadershipLost, NotLeader, Overloaded, RemoteProtocolError, Timeout
from kvnode.ports import Hello
from kvnode.raft import messages as raft
from kvnode.raft.types import (
    Entry,
    EntryKind,
    Index,
    LogId,
    Member,
    Membership,
    NodeId,
    SnapshotMeta,
    Term,
)
from kvnode.replica.codec import decode_foreign, decode_result, encode
from kvnode.replica.formation import Pledge
from kvnode.store.commands import KvDelete, KvDeleteTree, KvSet, ReapGraves, check_command
from kvnode.transport import framing
from kvnode.transport.codec import decode_error, decode_message, encode_error, encode_message
from kvnode.transport.framing import FrameDecoder, check_plain, pack_frame, unpack_frame
from kvnode.transport.handshake import Lane, Refusal, hello_frame, parse_hello, parse_refused
from tests.fuzz.machinery import CASES, INTERESTING, QUICK_CASES, fuzz, mutate, seeds, value

A, B = NodeId("a" * 36), NodeId("b" * 36)
AT = LogId(Index(7), Term(3))
MEMBERSHIP = Membership(
    voters=frozenset({A, B}),
    members=(Member(A, "n-0", "h:1"), Member(B, "n-1", "h:2")),
    removed=(NodeId("old"),),
)
ENTRIES = (
    Entry(Index(8), Term(3), EntryKind.COMMAND, b"x" * 50),
    Entry(Index(9), Term(4), EntryKind.MEMBERSHIP, MEMBERSHIP.encode()),
    Entry(Index(10), Term(4), EntryKind.NOOP, b""),
)
MESSAGES: tuple[raft.Message, ...] = (
    raft.PreVote(A, B, Term(4), AT),
    raft.PreVoteReply(A, B, Term(4), True),
    raft.Vote(A, B, Term(4), AT, False),
    raft.VoteReply(A, B, Term(4), False),
    raft.AppendEntries(A, B, Term(4), AT, ENTRIES, Index(9)),
    raft.AppendEntriesReply(A, B, Term(4), Index(7), False, Index(10), Term(0)),
    raft.Heartbeat(A, B, Term(4), Index(9), 17),
    raft.HeartbeatReply(A, B, Term(4), 17),
    raft.InstallSnapshot(A, B, Term(4), SnapshotMeta(AT, MEMBERSHIP)),
    raft.TimeoutNow(A, B, Term(4)),
)
HELLO = Hello(1, "cluster", A, "n-0", 3, "host:8300", "host:8500", 3)
COMMANDS = (
    KvSet(b"key", b"value", 7, None),
    KvSet(b"k" * 300, b"v" * 900, 2**64 - 1, 2**64 - 1),
    KvDelete(b"key", 5),
    KvDeleteTree(b""),
    ReapGraves(12),
)


@cache
def frames() -> tuple[bytes, ...]:
    """One valid frame of every kind."""
    made: list[tuple[Any, ...]] = [(framing.RAFT, encode_message(message)) for message in MESSAGES]
    made += [
        (framing.RAFT, *(encode_message(message) for message in MESSAGES)),
        hello_frame(HELLO, Lane.FAST, B),
        (framing.REFUSED, Refusal.REMOVED.value, "gone", "cluster"),
        (framing.REQUEST, 5, "write", [encode(command) for command in COMMANDS]),
        (framing.REQUEST, 6, "join", [A, "n-0", "h:1"]),
        (framing.ANSWER, 5, [["ok", [True, 9, 9]], ["timeout", "late", "unknown"]]),
        (framing.FAILURE, 5, *encode_error(NotLeader("b"))),
        (framing.PING,),
        (framing.SNAPSHOT_BEGIN, 4, 7, 3, MEMBERSHIP.encode()),
        (framing.SNAPSHOT_CHUNK, b"c" * 400),
    ]
    return tuple(pack_frame(frame) for frame in made)


def bomb(rng: random.Random) -> bytes:
    """Nested announcements of much more than there is: each level would reserve what it says."""
    kind = rng.choice((b"\xdd", b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"))
    levels = rng.choice((1, 3, 500, 1000))
    padding = rng.choice((0, 5000, 200_000, 3_000_000))
    size = rng.choice((16, 8192, padding, padding, 2**32 - 1))
    head = kind + size.to_bytes(4, "big") + (b"\x01" if kind == b"\xc9" else b"")
    if kind == b"\xdf":
        head += b"\xa1a"
    return head * levels + bytes(padding)


def packed(rng: random.Random) -> bytes:
    """Plain data of any shape."""
    return bytes(msgpack.packb(value(rng, 4), unicode_errors="surrogatepass"))


# -- frames -----------------------------------------------------------------------------------------


def framing_case(rng: random.Random) -> None:
    """A stream of frames, damaged, in pieces of any size: what comes out does not depend on the pieces."""
    stream = bytearray()
    for _ in range(rng.randrange(1, 5)):
        stream += rng.choice(frames())
    if rng.random() < 0.7:
        stream = bytearray(mutate(rng, bytes(stream), frames()))
    limit = rng.choice((100, 1000, framing.FRAME_BYTES_MAX))
    whole, whole_error = cut(bytes(stream), [len(stream)], limit)
    size = rng.choice((1, 3, 4, 5, 64, 1000))
    pieces, piece_error = cut(bytes(stream), range(size, len(stream) + size, size), limit)
    assert pieces == whole
    assert piece_error == whole_error
    for body in whole:
        read_frame(body)


def cut(stream: bytes, ends: Any, limit: int) -> tuple[list[bytes], bool]:
    decoder = FrameDecoder(limit)
    found: list[bytes] = []
    start = 0
    try:
        for end in ends:
            for body in decoder.feed(stream[start:end]):
                found.append(bytes(body))  # noqa: PERF401  # those before an error count too
            start = end
            assert decoder.pending_bytes() <= limit + framing.HEADER_BYTES + 1000
    except RemoteProtocolError:
        return found, True
    return found, False


def read_frame(body: bytes) -> None:
    """What a greeted connection does with a frame's body."""
    try:
        frame = unpack_frame(body)
        if frame[0] == framing.RAFT:
            for raw in frame[1:]:
                check_message(decode_message(raw))
        elif frame[0] == framing.REQUEST:
            check_plain(frame[3] if len(frame) > 3 else None)
        elif frame[0] == framing.FAILURE:
            decode_error(tuple(frame[2:6]))
    except RemoteProtocolError:
        return
    except IndexError:
        raise AssertionError(f"no length is taken on trust: {body!r:.200}") from None


def body_case(rng: random.Random) -> None:
    """The body of one frame: mutated, any plain data, or a bomb; read as a peer's and as a stranger's."""
    dice = rng.random()
    if dice < 0.6:
        body = mutate(rng, rng.choice(frames())[4:], [f[4:] for f in frames()])
    elif dice < 0.95:
        body = packed(rng)
    else:
        body = bomb(rng)
    read_frame(body)
    try:
        frame = framing.unpack_hello_frame(body[: framing.HELLO_BYTES_MAX])
        greeting = parse_hello(frame)
    except RemoteProtocolError:
        pass
    else:
        check_hello(greeting.hello)
    with suppress(RemoteProtocolError):
        parse_refused(unpack_frame(body))


def check_hello(hello: Hello) -> None:
    assert type(hello.node_id) is str
    assert 0 < len(hello.node_id) <= 64
    assert all(type(number) is int and 0 <= number < 2**63 for number in (hello.boot, hello.expect))


def message_case(rng: random.Random) -> None:
    """A Raft message with one field replaced by any value."""
    raw = list(encode_message(rng.choice(MESSAGES)))
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(raw))
        dice = rng.random()
        if dice < 0.4:
            raw[at] = as_tuples(value(rng))
        elif dice < 0.6 and isinstance(raw[at], tuple):
            inner = list(raw[at])
            if inner:
                inner[rng.randrange(len(inner))] = as_tuples(value(rng))
            raw[at] = tuple(inner)
        elif dice < 0.8:
            raw[at] = rng.choice((*INTERESTING, -1, True, 1.0, b"", "", None, ()))
        elif dice < 0.9:
            del raw[at]
        else:
            raw.insert(at, rng.choice(raw))
        if not raw:
            break
    with suppress(RemoteProtocolError):
        check_message(decode_message(tuple(raw)))


def as_tuples(item: Any) -> Any:
    """Arrays as msgpack gives them back here."""
    if isinstance(item, list):
        return tuple(as_tuples(part) for part in item)
    return item


def check_message(message: raft.Message) -> None:
    """What the core takes for granted."""
    assert type(message) in {type(known) for known in MESSAGES}
    assert type(message.term) is int
    assert 0 <= message.term < 2**63
    if isinstance(message, raft.AppendEntries):
        index, term = message.prev
        for entry in message.entries:
            index += 1
            assert type(entry.index) is int
            assert entry.index == index
            assert term <= entry.term <= message.term
            term = entry.term
            assert type(entry.data) is bytes
            assert isinstance(entry.kind, EntryKind)


# -- what is inside requests --------------------------------------------------------------------------


def command_case(rng: random.Random) -> None:
    """A forwarded command: an entry that no node could apply would stop them all."""
    dice = rng.random()
    valid = [encode(command) for command in COMMANDS]
    data: Any
    if dice < 0.5:
        data = mutate(rng, rng.choice(valid), valid)
    elif dice < 0.8:
        fields = list(msgpack.unpackb(rng.choice(valid)))
        fields[rng.randrange(len(fields))] = value(rng)
        data = msgpack.packb(fields)
    elif dice < 0.9:
        data = packed(rng)
    elif dice < 0.97:
        data = bomb(rng)
    else:
        data = value(rng)
    try:
        command = decode_foreign(data, 4 << 20)
    except RemoteProtocolError:
        return
    check_command(command)
    assert encode(command) == data


def answer_case(rng: random.Random) -> None:
    """The leader's answers and errors, and the texts of formation."""
    item = as_tuples(value(rng, 4))
    try:
        result = decode_result(item)
        assert type(result.index) is int
    except RemoteProtocolError:
        pass
    known = encode_error(rng.choice((Timeout("t"), Overloaded("o"), LeadershipLost("l"))))
    fields = [*known]
    fields[rng.randrange(len(fields))] = value(rng)
    for raw in (tuple(fields), item if isinstance(item, tuple) else (item,)):
        try:
            error = decode_error(raw)
            assert isinstance(error, Exception)
        except RemoteProtocolError:
            pass
    pledge = Pledge("c", A, MEMBERSHIP.members).encode()
    dice = rng.random()
    if dice < 0.5:
        pledge = mutate(rng, pledge.encode()).decode("utf-8", "replace")
    elif dice < 0.9:
        pledge = json.dumps(value(rng, 4))
    else:
        pledge = rng.choice(("[", '{"a":', '["c","b",[')) * rng.choice((10, 1000, 100_000))
    with suppress(ValueError):
        Pledge.decode(pledge)


TARGETS = [framing_case, body_case, message_case, command_case, answer_case]


@pytest.mark.parametrize("case", TARGETS)
def test_what_a_peer_sends(case) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TARGETS)
def test_what_a_peer_sends_for_long(case) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)
