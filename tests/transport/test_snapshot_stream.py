import asyncio
import contextlib
from zlib import crc32

import pytest

from kvnode.errors import CorruptLog, DiskFailed, Overloaded, PeerUnreachable
from kvnode.raft.messages import Heartbeat
from kvnode.raft.types import LogId, Member, Membership, SnapshotMeta
from kvnode.transport import framing
from kvnode.transport.codec import encode_meta
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_frame
from kvnode.transport.handshake import Lane, hello_frame
from kvnode.transport.settings import TransportSettings

META = SnapshotMeta(LogId(42, 7), Membership(frozenset({"a"}), members=(Member("a", "n", "h:1"),)))


class Source:
    """Gives chunks one by one, as the driver does."""

    def __init__(self, chunks, error=None):
        self.chunks = list(chunks)
        self.error = error
        self.asked = 0

    def __call__(self, done):
        self.asked += 1
        loop = asyncio.get_running_loop()
        if self.chunks:
            loop.call_soon(done, self.chunks.pop(0), None)
        elif self.error is not None:
            loop.call_soon(done, None, self.error)
        else:
            loop.call_soon(done, b"", None)


def stream(node, to, source, term=7):
    future = asyncio.get_running_loop().create_future()
    node.send_snapshot(to, term, META, source, future.set_result)
    assert not future.done()
    return future


async def test_all_chunks_arrive_in_order_and_done_means_durable(net):
    a, b = await net.pair()
    chunks = [bytes([n]) * 100_000 for n in range(40)]
    assert await stream(a, "b", Source(chunks)) is None
    assert b.recorder.snapshot_begun == [(7, META)]
    assert b.recorder.chunks == chunks
    assert b.recorder.snapshot_ended == [True]
    assert (a.metrics.snapshots_sent, b.metrics.snapshots_received) == (1, 1)


async def test_an_empty_snapshot_is_one(net):
    a, b = await net.pair()
    assert await stream(a, "b", Source([])) is None
    assert (b.recorder.chunks, b.recorder.snapshot_ended) == ([], [True])


async def test_a_slow_receiver_holds_the_sender_back(net):
    """Back-pressure: at most a window of chunks is under way, whatever the snapshot's size."""
    a, b = await net.pair()
    b.recorder.held_chunks = []
    source = Source([bytes(1000)] * 100)
    future = stream(a, "b", source)
    await net.until(lambda: b.recorder.held_chunks)
    for _ in range(20):
        await asyncio.sleep(0.002)
    assert len(b.recorder.chunks) == 1, "one at a time to the handler"
    assert source.asked <= a.settings.snapshot_window + 1
    while not future.done():
        while b.recorder.held_chunks:
            b.recorder.held_chunks.pop()(None)
        await asyncio.sleep(0)
    assert await future is None
    assert len(b.recorder.chunks) == 100


async def test_heartbeats_pass_while_a_snapshot_streams(net):
    """RC-41: a connection of its own."""
    a, b = await net.pair()
    b.recorder.held_chunks = []
    future = stream(a, "b", Source([bytes(1_000_000)] * 10))
    await net.until(lambda: b.recorder.held_chunks)
    a.send("b", [Heartbeat("a", "b", 7, 0, 1)])
    await net.until(lambda: b.recorder.messages)
    a.set_peers({})
    b.recorder.held_chunks = None
    await b.close()
    assert isinstance(await future, PeerUnreachable)


async def test_the_receiver_may_refuse(net):
    a, b = await net.pair()
    b.recorder.snapshot_wanted = False
    error = await stream(a, "b", Source([b"x"]))
    assert isinstance(error, PeerUnreachable)
    assert "not wanted" in str(error)
    assert (b.recorder.chunks, b.recorder.snapshot_ended) == ([], [])


async def test_a_receiver_of_another_mind_about_clusters_refuses(net):
    a, b = await net.start("a", "c"), await net.start("b", "")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True})
    assert isinstance(await stream(a, "b", Source([b"x"])), PeerUnreachable)
    b.recorder.accepted.add("c")
    assert await stream(a, "b", Source([b"x"])) is None


async def test_a_chunk_that_cannot_be_stored_ends_the_stream(net):
    """The receiver's disk failed: its error, not ours."""
    a, b = await net.pair()
    b.recorder.chunk_error = DiskFailed("full")
    error = await stream(a, "b", Source([b"x"] * 10))
    assert isinstance(error, PeerUnreachable)
    assert "full" in str(error)
    assert b.recorder.snapshot_ended == [False]


async def test_an_end_that_cannot_be_stored_is_no_success(net):
    a, b = await net.pair()
    b.recorder.end_error = CorruptLog("hash")
    assert isinstance(await stream(a, "b", Source([b"x"])), PeerUnreachable)
    assert b.recorder.snapshot_ended == [True]
    assert b.metrics.snapshots_received == 0


async def test_a_source_that_fails_ends_the_stream_at_both_ends(net):
    a, b = await net.pair()
    error = CorruptLog("our own chunk")
    assert await stream(a, "b", Source([b"x"], error)) is error
    await net.until(lambda: b.recorder.snapshot_ended == [False])
    assert await stream(a, "b", Source([b"y"])) is None, "the next one works"


async def test_a_chunk_too_large_for_a_frame_is_refused_here(net):
    a, b = await net.pair()
    error = await stream(a, "b", Source([bytes(9_000_000)]))
    assert "does not fit" in str(error)
    await net.until(lambda: b.recorder.snapshot_ended == [False])


async def test_one_stream_per_peer(net):
    a, b = await net.pair()
    b.recorder.held_chunks = []
    first = stream(a, "b", Source([b"x"]))
    assert isinstance(await stream(a, "b", Source([b"x"])), Overloaded)
    await net.until(lambda: b.recorder.held_chunks)
    b.recorder.held_chunks[0](None)
    assert await first is None


async def test_one_incoming_stream_at_a_time(net):
    """RC-38: two installs never run at the same time."""
    a, b, c = [await net.start(n) for n in "abc"]
    net.connect(a, b, c)
    await net.until(lambda: a.connected()["b"] and c.connected()["b"])
    b.recorder.held_chunks = []
    first = stream(a, "b", Source([b"x"]))
    await net.until(lambda: b.recorder.held_chunks)
    error = await stream(c, "b", Source([b"y"]))
    assert "is being received" in str(error)
    b.recorder.held_chunks[0](None)
    assert await first is None
    b.recorder.held_chunks = None
    assert await stream(c, "b", Source([b"y"])) is None


async def test_a_stalled_stream_ends(net):
    """A receiver that says nothing does not hold the sender for ever."""
    settings = TransportSettings(snapshot_stall_s=0.1, ping_s=0.1)
    a, b = await net.pair(settings=settings)
    b.recorder.held_chunks = []
    error = await stream(a, "b", Source([b"x"] * 10))
    assert "stood still" in str(error)
    await net.until(lambda: b.recorder.snapshot_ended == [False])
    for done in b.recorder.held_chunks:
        done(None)
    assert b.recorder.snapshot_ended == [False], "a late completion changes nothing"


async def test_a_source_that_gives_nothing_ends_the_stream(net):
    a, b = await net.pair(settings=TransportSettings(snapshot_stall_s=0.05))
    error = await stream(a, "b", lambda done: None)
    assert isinstance(error, PeerUnreachable)
    await net.until(lambda: b.recorder.snapshot_ended == [False])


async def test_the_rate_is_bounded_when_asked(net):
    """RC-41."""
    a, b = await net.pair(settings=TransportSettings(snapshot_bytes_per_s=1_000_000))
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await stream(a, "b", Source([bytes(50_000)] * 4)) is None
    assert loop.time() - started >= 0.19
    del b


async def test_to_nobody(net):
    a = await net.start("a")
    assert isinstance(await stream(a, "b", Source([])), PeerUnreachable)


async def test_closing_the_sender_ends_the_stream_once(net):
    a, b = await net.pair()
    b.recorder.held_chunks = []
    future = stream(a, "b", Source([b"x"] * 10))
    await net.until(lambda: b.recorder.held_chunks)
    await a.close()
    assert isinstance(await future, PeerUnreachable)
    await net.until(lambda: b.recorder.snapshot_ended == [False])


BEGIN = (framing.SNAPSHOT_BEGIN, 7, *encode_meta(META))
CHUNK = (framing.SNAPSHOT_CHUNK, 1, crc32(b"x"), b"x")


@pytest.mark.parametrize(
    "frames",
    [
        [CHUNK],
        [(framing.SNAPSHOT_BEGIN, -1, *encode_meta(META))],
        [(framing.SNAPSHOT_BEGIN, 7, 1, 1, b"no membership")],
        [BEGIN, BEGIN],
        [BEGIN, (framing.SNAPSHOT_CHUNK, 2, crc32(b"x"), b"x")],
        [BEGIN, (framing.SNAPSHOT_CHUNK, 1, 12345, b"x")],  # damaged
        [BEGIN, (framing.SNAPSHOT_CHUNK, 1, 0, b"")],
        [BEGIN, CHUNK, CHUNK],
        [BEGIN, CHUNK, (framing.SNAPSHOT_END, 2, 2)],  # a chunk is missing
        [BEGIN, CHUNK, (framing.SNAPSHOT_END, 1, 2)],
        [BEGIN, (framing.SNAPSHOT_ACK, 1)],
        [BEGIN, *((framing.SNAPSHOT_CHUNK, n, crc32(b"x"), b"x") for n in range(1, 9))],  # window
        [BEGIN, (framing.RAFT,)],
        [BEGIN, CHUNK, (framing.SNAPSHOT_END, 1, 1), CHUNK],
    ],
)
async def test_a_stream_that_breaks_the_protocol_is_forgotten(net, frames):
    """Whatever a peer sends, a snapshot that is not whole never counts as one."""
    a = await net.start("a")
    a.recorder.held_chunks = []
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    writer.write(pack_frame(hello_frame(net.hello("b"), Lane.SNAPSHOT)))
    for frame in frames:
        writer.write(pack_frame(frame))
    with contextlib.suppress(ConnectionError):
        await reader.read()
    await net.until(lambda: not a._connections)
    writer.close()
    assert a.metrics.protocol_errors == 1
    assert a._incoming is None
    begun = bool(a.recorder.snapshot_begun)
    assert a.recorder.snapshot_ended == ([False] if begun else [])


@pytest.mark.parametrize(
    "answers",
    [
        [(framing.SNAPSHOT_ACCEPTED, True, ""), (framing.SNAPSHOT_DONE, True, "")],  # too early
        [(framing.SNAPSHOT_ACCEPTED, True, ""), (framing.SNAPSHOT_ACK, 5)],
        [(framing.SNAPSHOT_ACK, 1)],
        [(framing.SNAPSHOT_ACCEPTED, 1, "")],
        [(framing.SNAPSHOT_CHUNK, 1, 1, b"")],
    ],
)
async def test_a_receiver_that_breaks_the_protocol_is_no_success(net, answers):
    """``done(None)`` compacts the log at the sender: it must never be told by mistake."""
    a = await net.start("a")
    hello = net.hello("b")

    async def serve(reader, writer):
        try:
            size = int.from_bytes(await reader.readexactly(HEADER_BYTES), "big")
            lane = Lane(unpack_frame(await reader.readexactly(size))[2])
            writer.write(pack_frame(hello_frame(hello, lane)))
            if lane is Lane.SNAPSHOT:
                await reader.readexactly(HEADER_BYTES)  # the stream begins
                for answer in answers:
                    writer.write(pack_frame(answer))
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    a.set_peers({"b": (f"127.0.0.1:{server.sockets[0].getsockname()[1]}",)})
    future = stream(a, "b", lambda done: None)
    assert isinstance(await future, PeerUnreachable)
    assert a.metrics.protocol_errors == 1
    await a.close()
    server.close()
    for _ in range(5):
        await asyncio.sleep(0.001)
