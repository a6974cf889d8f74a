import contextlib
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode import errors
from kvnode.errors import NotLeader, NotNow, PeerUnreachable, RemoteProtocolError
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.types import Entry, EntryKind, LogId, Member, Membership, SnapshotMeta
from kvnode.transport.codec import (
    TAGS,
    decode_error,
    decode_message,
    decode_meta,
    encode_error,
    encode_message,
    encode_meta,
)
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_frame

IDS = st.text(min_size=1, max_size=64)
NUMBERS = st.integers(0, 2**63 - 1)
LOG_IDS = st.builds(LogId, NUMBERS, NUMBERS)
MEMBERSHIP = Membership(
    frozenset({"a"}), frozenset({"b"}), (Member("a", "n", "h:1"), Member("b", "m", "h:2")), ("z",)
)


@st.composite
def appends(draw):
    prev = LogId(draw(st.integers(0, 1000)), draw(st.integers(0, 50)))
    terms = sorted(draw(st.lists(st.integers(prev.term, prev.term + 5), max_size=20)))
    kinds = st.sampled_from([EntryKind.NOOP, EntryKind.COMMAND])
    entries = tuple(
        Entry(prev.index + 1 + n, term, draw(kinds), draw(st.binary(max_size=30)))
        for n, term in enumerate(terms)
    )
    term = max([prev.term, *terms])
    return AppendEntries(draw(IDS), draw(IDS), term, prev, entries, draw(NUMBERS))


MESSAGES = st.one_of(
    st.builds(PreVote, IDS, IDS, NUMBERS, LOG_IDS),
    st.builds(PreVoteReply, IDS, IDS, NUMBERS, st.booleans()),
    st.builds(Vote, IDS, IDS, NUMBERS, LOG_IDS, st.booleans()),
    st.builds(VoteReply, IDS, IDS, NUMBERS, st.booleans()),
    appends(),
    st.builds(AppendEntriesReply, IDS, IDS, NUMBERS, NUMBERS, st.booleans(), NUMBERS, NUMBERS),
    st.builds(Heartbeat, IDS, IDS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(HeartbeatReply, IDS, IDS, NUMBERS, NUMBERS),
    st.builds(
        InstallSnapshot, IDS, IDS, NUMBERS, st.builds(SnapshotMeta, LOG_IDS, st.just(MEMBERSHIP))
    ),
    st.builds(TimeoutNow, IDS, IDS, NUMBERS),
)


def over_the_wire(raw):
    return unpack_frame(pack_frame((2, raw))[HEADER_BYTES:])[1]


@settings(max_examples=50)
@given(MESSAGES)
def test_every_message_comes_back_as_it_went(message):
    """Equal, and of the very same types: the core compares and asserts on them."""
    back = decode_message(over_the_wire(encode_message(message)))
    assert back == message
    assert type(back) is type(message)
    if isinstance(back, AppendEntries):
        assert type(back.prev) is LogId
        assert all(type(e) is Entry and type(e.kind) is EntryKind for e in back.entries)


def test_every_message_class_has_its_own_tag():
    assert set(TAGS) == set(get_args(Message))
    assert sorted(TAGS.values()) == list(range(1, len(TAGS) + 1)), "numbers on the wire stay"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
RAW = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=8).map(tuple), max_leaves=30)


@settings(max_examples=50)
@given(st.integers(0, 12), st.lists(RAW, max_size=8))
def test_arbitrary_fields_give_a_message_or_a_protocol_error(tag, fields):
    with contextlib.suppress(RemoteProtocolError):
        decode_message((tag, *fields))


@settings(max_examples=50)
@given(RAW)
def test_arbitrary_values_give_a_message_or_a_protocol_error(raw):
    with contextlib.suppress(RemoteProtocolError):
        decode_message(raw)


@settings(max_examples=50)
@given(MESSAGES, st.data())
def test_one_damaged_field_never_yields_wrong_types(message, data):
    """Whatever is accepted is what the core's types promise."""
    raw = list(encode_message(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(RAW)
    try:
        back = decode_message(tuple(raw))
    except RemoteProtocolError:
        return
    assert decode_message(over_the_wire(encode_message(back))) == back
    for value in back[2:]:
        assert type(value) in {int, bool, LogId, tuple, SnapshotMeta}


def append(entries, *, prev=(4, 2), term=3):
    return (TAGS[AppendEntries], "a", "b", term, prev, entries, 0)


GOOD = (5, 2, 1, b"x")


@pytest.mark.parametrize(
    "raw",
    [
        append(((6, 2, 1, b"x"),)),  # a gap after prev
        append((GOOD, GOOD)),  # the same index twice
        append((GOOD, (7, 2, 1, b"x"))),  # a gap
        append(((5, 1, 1, b"x"),)),  # the term falls
        append(((5, 4, 1, b"x"),)),  # above the leader's
        append(((5, 3, 1, b"x"), (6, 2, 1, b"x"))),  # falls later
        append(((5, 2, 9, b"x"),)),  # unknown kind (RC-29 is the core's; this is no kind at all)
        append(((5, 2, 1, "x"),)),  # text
        append(((5, 2, 1),)),  # short
        append(((5, 2, 1, b"x", 0),)),  # long
        append(((5, 2, 2, b"no json"),)),  # no membership
        append(((5, 2, 2, b"[" * 100_000),)),  # a membership that would exhaust a parser's stack
        append((b"abcd",)),
        append({}),
        append((), prev=(4, 2, 1)),
        append((), prev=(-1, 2)),
        append((), prev=(2**63, 2)),
        append((), term=True),
        append((), term=-1),
        append(((2**63, 2, 1, b""),), prev=(2**63 - 1, 2)),
        (TAGS[AppendEntries], "", "b", 1, (0, 0), (), 0),
        (TAGS[AppendEntries], "a" * 65, "b", 1, (0, 0), (), 0),
        (TAGS[AppendEntries], b"a", "b", 1, (0, 0), (), 0),
        (TAGS[VoteReply], "a", "b", 1, 1),  # a number where a truth value belongs
        (TAGS[VoteReply], "a", "b", 1),
        (0, "a", "b", 1),
        (True, "a", "b", 1),
        (),
        None,
    ],
)
def test_impossible_messages_are_refused(raw):
    with pytest.raises(RemoteProtocolError):
        decode_message(raw)


def test_values_that_only_compare_equal_do_not_enter_the_log():
    """True == 1 and 5.0 == 5, but a log that holds them is not the same bytes."""
    message = decode_message(append(((5.0, 2.0, True, b"x"),)))
    assert isinstance(message, AppendEntries)
    assert [type(field) for field in message.entries[0]] == [int, int, EntryKind, bytes]


def test_snapshot_meta_round_trip():
    meta = SnapshotMeta(LogId(9, 3), MEMBERSHIP)
    assert decode_meta(over_the_wire(encode_meta(meta))) == meta
    for bad in [(), (1, 2), (1, 2, "x"), (1, -2, b"{}"), (1, 2, b"{}"), (1, 2, b"x" * 2_000_000)]:
        with pytest.raises(RemoteProtocolError):
            decode_meta(bad)


ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.KvnodeError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_crosses_the_wire_without_stopping_the_asker(kind):
    """Their failed disk must never look like ours."""
    made = {
        NotLeader: lambda: NotLeader("leader-1"),
        errors.Compacted: lambda: errors.Compacted(1, 2, 3),
    }
    if kind is getattr(errors, "Removed", None):
        made[kind] = lambda: kind("why", served=True)
    error = made.get(kind, lambda: kind("why"))()
    back = decode_error(over_the_wire(encode_error(error)))
    assert not isinstance(back, errors.MustStop)
    assert not isinstance(back, errors.LocalProtocolError)
    if issubclass(kind, NotNow):
        assert type(back) is kind
        assert back.took_effect == error.took_effect
    if issubclass(kind, errors.MustStop):
        assert isinstance(back, PeerUnreachable)
        assert back.took_effect == "unknown"


def test_an_error_that_a_newer_peer_invented_keeps_what_it_says():
    back = decode_error(("QuotaExceeded", "too much", "no", ""))
    assert isinstance(back, PeerUnreachable)
    assert back.took_effect == "no"
    assert "QuotaExceeded" in str(back)


@settings(max_examples=50)
@given(st.lists(RAW, max_size=6).map(tuple))
def test_arbitrary_errors_are_decoded_or_refused(raw):
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode_error(raw), errors.KvnodeError)
