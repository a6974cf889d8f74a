import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.errors import LocalProtocolError, RemoteProtocolError
from kvnode.transport import framing
from kvnode.transport.framing import FrameDecoder, check_plain, pack_frame, unpack_frame

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


def feed_all(decoder: FrameDecoder, pieces: list[bytes]) -> list[bytes]:
    return [bytes(body) for piece in pieces for body in decoder.feed(piece)]


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=300)), st.lists(st.integers(0, 10_000)))
def test_any_split_of_the_stream_gives_the_same_frames(bodies, places):
    """TCP has no message borders."""
    stream = b"".join(struct.pack("!I", len(body)) + body for body in bodies)
    decoder = FrameDecoder()
    assert feed_all(decoder, cut(stream, places)) == bodies
    assert decoder.pending_bytes() == 0


@settings(max_examples=50)
@given(st.lists(PLAIN))
def test_frames_come_back_as_they_went(values):
    frame = (7, *values)
    (body,) = FrameDecoder().feed(pack_frame(frame))
    assert unpack_frame(body) == frame


@settings(max_examples=50)
@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000)))
def test_arbitrary_bytes_give_frames_or_a_protocol_error(data, places):
    """Whoever scans ports must not crash a node, whatever is sent and however it is cut."""

    def run(pieces):
        seen = []
        decoder = FrameDecoder(500)
        try:
            for piece in pieces:
                for body in decoder.feed(piece):
                    seen.append(unpack_frame(body))  # noqa: PERF401 - what came before an error counts
                assert decoder.pending_bytes() <= 504
        except RemoteProtocolError:
            seen.append(None)
        return seen

    assert run([data]) == run(cut(data, places)) or b"\xca" in data or b"\xcb" in data  # NaN != NaN


@settings(max_examples=50)
@given(st.binary(max_size=500))
def test_arbitrary_bodies_are_decoded_or_refused(body):
    try:
        frame = unpack_frame(body)
        assert type(frame[0]) is int
        check_plain(frame)
    except RemoteProtocolError:
        pass


def test_a_frame_over_the_bound_is_refused_by_its_header_alone():
    """Nothing is kept of it."""
    decoder = FrameDecoder(100)
    with pytest.raises(RemoteProtocolError):
        list(decoder.feed(struct.pack("!I", 101)))
    assert decoder.pending_bytes() == 0


def test_an_empty_frame_is_refused():
    with pytest.raises(RemoteProtocolError):
        list(FrameDecoder().feed(bytes(4)))


def test_good_frames_before_a_bad_one_count():
    good = pack_frame((6,))
    frames = FrameDecoder(100).feed(good + b"\xff\xff\xff\xff")
    assert unpack_frame(next(frames)) == (6,)
    with pytest.raises(RemoteProtocolError):
        next(frames)


def test_a_frame_in_single_bytes_costs_its_own_size():
    """A slow writer of eight million one-byte pieces must not cost a list of them."""
    decoder = FrameDecoder()
    list(decoder.feed(struct.pack("!I", 50_000)))
    tracemalloc.start()
    for _ in range(49_999):
        list(decoder.feed(b"x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000
    assert [len(body) for body in decoder.feed(b"x")] == [50_000]


def test_a_lying_array_header_costs_little():
    """Each of 1,024 levels may announce an array: the bound on elements bounds what is reserved."""
    body = (b"\xdd" + struct.pack("!I", framing.ARRAY_LEN_MAX)) * 2000
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        unpack_frame(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 1024 * 1024
    with pytest.raises(RemoteProtocolError):
        unpack_frame(b"\xdd" + struct.pack("!I", framing.ARRAY_LEN_MAX + 1) + b"\x00" * 9000)


@pytest.mark.parametrize(
    "body",
    [
        b"\x01",  # no array
        b"\x90",  # empty
        b"\x91\xa1x",  # kind is text
        b"\x91\xc3",  # kind is true
        b"\x92\x01",  # cut off
        b"\x91\x01\x01",  # something after it
        b"\x92\x01\xd4\x05\x00",  # extension type
        b"\x92\x01\xd6\xff\x00\x00\x00\x00",  # timestamp
        b"\x92\x01\xa1\xff",  # no UTF-8
        b"\x91" * 1000 + b"\x01",  # deep, but an array of arrays: no kind
        b"\x91" * 5000 + b"\x01",
        b"\x92\x01\x81\x90\x01",  # a map key that is an array
    ],
)
def test_what_is_no_frame_is_refused(body):
    with pytest.raises(RemoteProtocolError):
        check_plain(unpack_frame(body))


def test_payloads_are_plain_and_shallow():
    deep = ()
    for _ in range(framing.DEPTH_MAX - 1):
        deep = (deep,)
    check_plain((deep, {"k": 1}, None))
    with pytest.raises(RemoteProtocolError):
        check_plain(((((deep,),),),))
    with pytest.raises(RemoteProtocolError):
        check_plain({"k": [1]})


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", {1, 2}, [[]] * 1 + [object()]])
def test_what_cannot_be_sent_is_our_bug_and_breaks_nothing(value):
    """The packer is shared: a failed frame must not leave anything of it in the next one."""
    with pytest.raises(LocalProtocolError):
        pack_frame((1, "left over", value))
    assert pack_frame((6,)) == b"\x00\x00\x00\x02\x91\x06"


def test_a_frame_over_the_bound_is_not_sent():
    with pytest.raises(LocalProtocolError):
        pack_frame((1, bytes(100)), 100)
