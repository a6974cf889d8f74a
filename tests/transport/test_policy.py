"""Who is heard and who is refused, over real sockets (RC-47 … RC-55)."""

import asyncio
import gc
import os
import socket
import tracemalloc

import pytest
from structlog.testing import capture_logs

from kvnode.raft.messages import Heartbeat
from kvnode.transport import framing
from kvnode.transport.framing import pack_frame, unpack_frame
from kvnode.transport.handshake import Lane, Refusal, hello_frame
from kvnode.transport.settings import TransportSettings


def beat(sender="a", to="b"):
    return Heartbeat(sender, to, 1, 0, 1)


class Raw:
    """A peer made of plain frames, which may break every rule."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, *frame):
        self.writer.write(pack_frame(frame))

    async def read(self):
        """The next frame; None at the end."""
        try:
            async with asyncio.timeout(5):
                size = int.from_bytes(await self.reader.readexactly(4), "big")
                return unpack_frame(await self.reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def greet(self, hello, lane=Lane.FAST, expected=""):
        self.writer.write(pack_frame(hello_frame(hello, lane, expected)))
        return await self.read()

    async def close(self):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


@pytest.fixture
async def raw():
    """Dials raw peers, closed at the end."""
    made = []

    async def dial(port):
        made.append(await Raw.dial(port))
        return made[-1]

    yield dial
    for peer in made:
        await peer.close()


async def test_messages_of_another_cluster_never_arrive(net):
    """Two clusters whose DNS got mixed up refuse each other."""
    a, b = await net.start("a", "one"), await net.start("b", "two")
    net.connect(a, b)
    await net.until(lambda: a.metrics.refused and b.metrics.refused)
    assert not any(a.connected().values())
    assert a.recorder.hellos == b.recorder.hellos == []
    _, error = await net.ask_address(a, b.address)
    assert error.took_effect == "no"


async def test_a_node_without_cluster_listens_only_to_the_one_it_agreed_to(net):
    """RC-55: an empty node may be joining, or be promised to a cluster that bootstraps."""
    a, b = await net.start("a", "c"), await net.start("b", "")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True})
    a.send("b", [beat()])
    await net.until(lambda: b.metrics.messages_foreign)
    assert b.recorder.messages == []
    b.recorder.accepted.add("c")
    a.send("b", [beat()])
    await net.until(lambda: b.recorder.messages)


async def test_a_member_does_not_listen_to_a_node_without_cluster(net):
    a, b = await net.start("a", ""), await net.start("b", "c")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True})
    a.send("b", [beat()])
    await net.until(lambda: b.metrics.messages_foreign)
    assert await net.ask(a, "b", "join", 1) == (("join", 1), None)


async def test_a_new_cluster_id_is_told_on_open_connections(net):
    """The learner's id changes while its connections stand: nobody reconnects for that."""
    a, b = await net.start("a", "c"), await net.start("b", "")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True} and b.connected() == {"a": True})
    connects = a.metrics.peer("b").connects
    b.hello = b.hello._replace(cluster_id="c")
    b.send("a", [beat("b", "a")])
    await net.until(lambda: a.recorder.messages)
    assert a.recorder.hellos[-1] == b.hello
    assert a.metrics.peer("b").connects == connects


async def test_a_node_that_joins_another_cluster_is_dropped(net):
    a, b = await net.start("a", "c"), await net.start("b", "")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True} and b.connected() == {"a": True})
    b.hello = b.hello._replace(cluster_id="d")
    await net.until(lambda: a.connected() == {"b": False} and b.connected() == {"a": False})


async def test_a_removed_node_is_told_when_it_comes_back(net):
    """RC-47, RC-51: a stale volume returns after a scale-down."""
    a = await net.start("a")
    a.is_removed = lambda node_id: node_id == "b"
    b = await net.start("b")
    b.set_peers({"a": (a.address,)})
    await net.until(lambda: b.recorder.removed)
    assert b.connected() == {"a": False}


async def test_a_removed_node_that_is_connected_is_told_soon(net):
    a, b = await net.pair()
    a.is_removed = lambda node_id: node_id == "b"
    await net.until(lambda: b.recorder.removed)


async def test_who_belongs_to_no_cluster_is_told_by_any(net):
    """Let in and removed again before it heard of either: it holds nothing, and may begin anew."""
    b = await net.start("b", "")
    a = await net.start("a", "c")
    a.is_removed = lambda node_id: node_id == "b"
    b.set_peers({"a": (a.address,)})
    await net.until(lambda: b.recorder.removed)


async def test_a_removal_by_another_cluster_means_nothing(net, raw):
    """Anybody could say so; only the own cluster counts, for who belongs to one."""
    b = await net.start("b", "d")
    a = await net.start("a", "c")
    a.is_removed = lambda node_id: True
    b.set_peers({"a": (a.address,)})
    await net.until(lambda: b.metrics.refused)
    assert b.recorder.removed == 0
    stranger = await raw(b.port)
    await stranger.greet(net.hello("x", ""))
    stranger.send(framing.REFUSED, Refusal.REMOVED.value, "go away", "other")
    await net.until(lambda: b.metrics.refused > 1)
    assert b.recorder.removed == 0


async def test_an_older_process_of_the_same_node_is_refused(net, raw):
    """RC-52: a force-deleted pod that lives on, a volume rolled back (RC-54)."""
    a = await net.start("a")
    old, new = await raw(a.port), await raw(a.port)
    assert (await old.greet(net.hello("b", boot=1)))[0] == framing.HELLO
    assert (await new.greet(net.hello("b", boot=2)))[0] == framing.HELLO
    assert await old.read() is None, "the old one's connection is closed"
    again = await raw(a.port)
    refusal = await again.greet(net.hello("b", boot=1))
    assert refusal[:2] == (framing.REFUSED, "old boot")


async def test_one_identity_at_two_addresses_is_reported(net, raw):
    """RC-52: a cloned volume."""
    a = await net.start("a")
    first, second = await raw(a.port), await raw(a.port)
    await first.greet(net.hello("b", address="here:1"))
    with capture_logs() as logs:
        refusal = await second.greet(net.hello("b", address="there:1"))
    assert refusal[:2] == (framing.REFUSED, "duplicate")
    assert a.metrics.identity_conflicts == 1
    assert [entry["event"] for entry in logs] == ["identity_conflict_seen"]


async def test_our_own_identity_elsewhere_is_reported(net):
    a = await net.start("a")
    clone = await net.start(hello=net.hello("a", boot=2))
    _, error = await net.ask_address(clone, a.address)
    assert error is not None
    assert a.metrics.identity_conflicts == 1
    _, error = await net.ask_address(a, clone.address)
    assert "this process is boot 2" in str(error)


async def test_whoever_looks_for_somebody_else_is_told(net, raw):
    a = await net.start("a")
    peer = await raw(a.port)
    refusal = await peer.greet(net.hello("b"), expected="x")
    assert refusal[:2] == (framing.REFUSED, "identity")


@pytest.mark.parametrize(
    "frames",
    [
        [(framing.RAFT, (99,))],
        [(framing.RAFT, (7, "b", "x", 1, 0, 1))],  # not for us
        [(framing.RAFT, (7, "x", "a", 1, 0, 1))],  # not from the one who introduced itself
        [(framing.REQUEST, 1, "m", None)],  # a request on the fast lane
        [(framing.ANSWER, 1, None)],  # an answer where nothing was asked
        [(framing.SNAPSHOT_BEGIN, 1, 1, 1, b"{}")],
        [(99,)],
        [(framing.HELLO, "other")],
    ],
)
async def test_breaking_the_protocol_costs_the_connection_and_nothing_else(net, raw, frames):
    a = await net.start("a")
    peer = await raw(a.port)
    await peer.greet(net.hello("b"))
    with capture_logs() as logs:
        for frame in frames:
            peer.send(*frame)
        assert await peer.read() is None
    assert a.metrics.protocol_errors == 1
    assert [entry["event"] for entry in logs] == ["protocol_violated"]
    assert a.recorder.messages == []


@pytest.mark.parametrize(
    "frame",
    [
        (framing.REQUEST, 1, "m"),
        (framing.REQUEST, "1", "m", None),
        (framing.REQUEST, 1, "m" * 65, None),
        (framing.REQUEST, 1, b"m", None),
        (framing.FAILURE, 1, "x"),
    ],
)
async def test_malformed_requests_cost_the_connection(net, raw, frame):
    a = await net.start("a")
    peer = await raw(a.port)
    await peer.greet(net.hello("b"), Lane.BULK)
    peer.send(*frame)
    assert await peer.read() is None
    assert a.metrics.protocol_errors == 1


async def test_a_cluster_id_that_changes_to_another_one_is_refused(net, raw):
    """In-band introductions are judged like the first one."""
    a = await net.start("a")
    peer = await raw(a.port)
    await peer.greet(net.hello("b", ""))
    assert (await peer.greet(net.hello("b", "d")))[:2] == (framing.REFUSED, "cluster")
    assert await peer.read() is None


async def test_nobody_changes_its_identity_on_an_open_connection(net, raw):
    a = await net.start("a")
    peer = await raw(a.port)
    await peer.greet(net.hello("b"))
    await peer.greet(net.hello("x"))
    await net.until(lambda: a.metrics.protocol_errors)


async def test_random_bytes_are_dropped_with_one_line_in_the_log(net):
    """Port scanners and lost HTTP clients: no crash, no flood, nothing kept."""
    a = await net.start("a")
    blobs = [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
        b"\xff" * 100,
        os.urandom(64),
        b"\0\0\0\x02\x91\x07",
    ]
    with capture_logs() as logs:
        for number in range(50):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(blobs[number % len(blobs)])
            writer.write_eof()
            assert await reader.read() == b"", "a stranger learns nothing"
            writer.close()
            await writer.wait_closed()
    await net.until(lambda: not a._connections and not a._strangers)
    assert len([entry for entry in logs if entry["event"] == "protocol_violated"]) == 1
    assert a.metrics.protocol_errors + a.metrics.strangers_dropped > 0
    assert a.recorder.hellos == []


async def test_a_stranger_cannot_make_us_keep_more_than_an_introduction(net):
    """A frame of 8 MiB is for those who introduced themselves."""
    a = await net.start("a")
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    writer.write((framing.HELLO_BYTES_MAX + 1).to_bytes(4, "big"))
    assert await reader.read() == b""
    writer.close()


async def test_a_flood_of_bad_connections_does_not_grow_memory(net):
    a = await net.start("a")

    async def bad():
        _, writer = await asyncio.open_connection("127.0.0.1", a.port)
        writer.write(b"\x00\x00\x0f\xff" + os.urandom(2000))
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            return

    for _ in range(30):
        await bad()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(200):
        await bad()
    await net.until(lambda: not a._connections)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 300_000


async def test_silent_strangers_are_dropped_in_time(net, raw):
    a = await net.start("a", settings=TransportSettings(greet_timeout_s=0.1, sweep_s=0.02))
    peer = await raw(a.port)
    assert await peer.read() is None
    assert a.metrics.strangers_dropped == 1


async def test_strangers_do_not_crowd_peers_out(net):
    """The oldest silent connection gives way; those who introduced themselves stay."""
    settings = TransportSettings(strangers_max=3, greet_timeout_s=30)
    a = await net.start("a", settings=settings)
    idle = [socket.create_connection(("127.0.0.1", a.port)) for _ in range(10)]
    await net.until(lambda: a.metrics.accepted == 10)
    b = await net.start("b")
    b.set_peers({"a": (a.address,)})
    await net.until(lambda: b.connected() == {"a": True})
    assert len(a._strangers) <= 3
    for sock in idle:
        sock.close()


async def test_the_number_of_connections_is_bounded(net):
    settings = TransportSettings(accepted_max=5, greet_timeout_s=30)
    a = await net.start("a", settings=settings)
    idle = [socket.create_connection(("127.0.0.1", a.port)) for _ in range(10)]
    try:
        # The one who is dropped is counted at once, and gone a turn of the loop later.
        await net.until(lambda: a.metrics.strangers_dropped >= 5 and a._accepted <= 5)
    finally:
        for sock in idle:
            sock.close()


async def test_a_peer_that_asks_too_much_at_once_is_told_so(net, raw):
    """RC-67: it may have given up on what we still hold, so it keeps its connection."""
    a = await net.start("a", settings=TransportSettings(requests_max=3))
    a.recorder.hold = True
    peer = await raw(a.port)
    await peer.greet(net.hello("b"), Lane.BULK)
    for number in range(4):
        peer.send(framing.REQUEST, number, "m", None)
    kind, number, name, _, took_effect, _ = await peer.read()
    assert (kind, number, name, took_effect) == (framing.FAILURE, 3, "Overloaded", "no")
    assert len(a.recorder.held) == 3
    a.recorder.held[0][0]("done")
    assert (await peer.read())[:2] == (framing.ANSWER, 0)
    peer.send(framing.REQUEST, 4, "m", None)
    await net.until(lambda: len(a.recorder.held) == 4)


async def test_nobody_who_just_connects_can_say_that_we_were_removed(net, raw):
    """Our cluster's id is no secret; whom we dial is our own choice."""
    a = await net.start("a")
    peer = await raw(a.port)
    await peer.greet(net.hello("b"))
    peer.send(framing.REFUSED, Refusal.REMOVED.value, "go away", "c")
    assert await peer.read() is None
    assert a.recorder.removed == 0


async def test_a_cluster_id_that_came_while_we_dialled_is_told_at_once(net):
    """Else the peer would ignore our Raft messages for as long as the connection stands."""
    a = await net.start("a", "")
    told = []
    answer = asyncio.Event()

    async def serve(reader, writer):
        peer = Raw(reader, writer)
        lane = Lane((frame := await peer.read())[2])
        told.append((lane, frame[5]))
        await answer.wait()
        writer.write(pack_frame(hello_frame(net.hello("b", "c"), lane)))
        frame = await peer.read()
        told.append((lane, frame[5]))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    a.set_peers({"b": (f"127.0.0.1:{server.sockets[0].getsockname()[1]}",)})
    await net.until(lambda: len(told) == 2)
    a.hello = a.hello._replace(cluster_id="c")
    answer.set()
    await net.until(lambda: len(told) >= 4)
    assert set(told[:2]) == {(Lane.FAST, ""), (Lane.BULK, "")}
    assert set(told[2:4]) == {(Lane.FAST, "c"), (Lane.BULK, "c")}
    a.set_peers({})
    server.close()
    await net.until(lambda: not a._connections)


async def test_connections_that_break_at_once_do_not_make_two_nodes_spin(net):
    """A greeting ends the other side's back-off, but not over and over again."""
    settings = TransportSettings(backoff_min_s=0.01, backoff_max_s=1.0)
    a, b = await net.start("a", settings=settings), await net.start("b", settings=settings)
    for node in (a, b):  # every Raft message is a violation, as with an incompatible build
        node.raft_frame = lambda connection, frame: connection.abort("incompatible")
    net.connect(a, b)
    loop = asyncio.get_running_loop()
    stop_at = loop.time() + 0.5
    while loop.time() < stop_at:
        for node, to in ((a, "b"), (b, "a")):
            node.send(to, [beat(node.node_id, to)])
        await asyncio.sleep(0.001)
    assert a.metrics.accepted + b.metrics.accepted < 100
