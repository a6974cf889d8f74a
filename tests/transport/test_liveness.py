"""Silence, full pipes and frozen peers: a slow peer costs constant memory and nobody else's time."""

import asyncio
import socket
import time

import pytest

from kvnode.errors import Overloaded
from kvnode.raft.messages import AppendEntries, Heartbeat
from kvnode.raft.types import ZERO, Entry, EntryKind
from kvnode.transport import framing
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_frame
from kvnode.transport.handshake import Lane, hello_frame, parse_hello
from kvnode.transport.settings import MIB, TransportSettings


class HalfDeaf:
    """A node that answers everything on the fast lane and never reads the bulk lane."""

    def __init__(self, hello):
        self.hello = hello
        self.heartbeats = 0
        self.silent = False
        self._writers = []
        self._server = None

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.hello = self.hello._replace(address=f"127.0.0.1:{port}")
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        self._writers.append(writer)
        try:
            lane = parse_hello(await self._frame(reader)).lane
            if lane is Lane.BULK:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
                )
                writer.transport.pause_reading()
            writer.write(pack_frame(hello_frame(self.hello, lane)))
            while lane is Lane.FAST:
                frame = await self._frame(reader)
                if frame[0] == framing.PING and not self.silent:
                    writer.write(pack_frame((framing.PONG,)))
                self.heartbeats += frame[0] == framing.RAFT
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def _frame(self, reader):
        size = int.from_bytes(await reader.readexactly(HEADER_BYTES), "big")
        return unpack_frame(await reader.readexactly(size))


def big(size, number=1):
    entries = (Entry(1, 1, EntryKind.COMMAND, bytes(size)),)
    return AppendEntries("a", "b", 1, ZERO, entries, number)


async def test_heartbeats_pass_while_64_mib_of_bulk_data_are_stuck(net):
    """RC-69: they have their own path; nothing on the bulk lane can delay them."""
    settings = TransportSettings(bulk_bytes_max=64 * MIB, ping_s=0.1, bulk_silent_pings_max=1000)
    a = await net.start("a", settings=settings)
    async with HalfDeaf(net.hello("b")) as peer:
        a.set_peers({"b": (peer.hello.address,)})
        await net.until(lambda: a.connected() == {"b": True})
        bulk = a._peers["b"].bulk.connection
        for _ in range(70):
            a.send("b", [big(MIB)])
        assert bulk.write_buffer_size() > 60 * MIB, "it is really stuck"
        for number in range(20):
            a.send("b", [Heartbeat("a", "b", 1, 0, number)])
            await net.until(lambda n=number: peer.heartbeats == n + 1)
            assert bulk.write_buffer_size() > 60 * MIB, "it waited for nothing of this"
        assert a.connected() == {"b": True}
        a.set_peers({})


async def test_a_full_lane_drops_and_tells_once(net):
    """RC-67, RC-68: nothing is buffered without bound, and the core probes again."""
    settings = TransportSettings(bulk_bytes_max=4 * MIB)
    a = await net.start("a", settings=settings)
    async with HalfDeaf(net.hello("b")) as peer:
        a.set_peers({"b": (peer.hello.address,)})
        await net.until(lambda: a.connected() == {"b": True})
        for _ in range(30):
            a.send("b", [big(MIB)])
        bulk = a._peers["b"].bulk.connection
        assert bulk.write_buffer_size() <= 4 * MIB + 1.1 * MIB
        assert a.metrics.peer("b").dropped >= 15
        assert a.recorder.unreachable == [], "never from inside the driver's own call"
        await net.until(lambda: a.recorder.unreachable)
        assert a.recorder.unreachable == ["b"]
        _, error = await net.ask(a, "b")
        assert isinstance(error, Overloaded)
        assert error.took_effect == "no"
        a.set_peers({})


async def test_a_silent_peer_is_given_up_and_takes_both_lanes_along(net):
    """A cable is cut, a host freezes: no TCP reset will ever come."""
    settings = TransportSettings(ping_s=0.05, sweep_s=0.01, silent_pings_max=3)
    a = await net.start("a", settings=settings)
    async with HalfDeaf(net.hello("b")) as peer:
        a.set_peers({"b": (peer.hello.address,)})
        await net.until(lambda: a.connected() == {"b": True})
        await asyncio.sleep(0.4)
        assert a.connected() == {"b": True}, "as long as it answers pings"
        assert a.metrics.peer("b").rtt_s > 0
        peer.silent = True
        await net.until(lambda: a.connected() == {"b": False})
        await net.until(lambda: a.recorder.unreachable.count("b") >= 2)
        a.set_peers({})


async def test_a_bulk_lane_without_progress_is_given_up(net):
    settings = TransportSettings(ping_s=0.05, sweep_s=0.01, bulk_silent_pings_max=5)
    a = await net.start("a", settings=settings)
    async with HalfDeaf(net.hello("b")) as peer:
        a.set_peers({"b": (peer.hello.address,)})
        await net.until(lambda: a.connected() == {"b": True})
        fast = a._peers["b"].fast.connection
        await net.until(lambda: a._peers["b"].bulk.connection is None)
        assert a._peers["b"].fast.connection is fast, "heartbeats go on"
        a.set_peers({})


async def test_a_dialler_that_falls_silent_is_forgotten_by_the_listener(net):
    """Connections of dead peers do not pile up."""
    settings = TransportSettings(ping_s=0.05, sweep_s=0.01, silent_pings_max=3)
    a = await net.start("a", settings=settings)
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    writer.write(pack_frame(hello_frame(net.hello("b"), Lane.FAST)))
    await net.until(lambda: a._connections)
    await net.until(lambda: not a._connections)
    assert unpack_frame((await reader.read())[HEADER_BYTES:])[0] == framing.HELLO
    writer.close()


async def test_a_pause_of_this_process_kills_nobody(net):
    """SIGSTOP, a stalled virtual machine: the first turn afterwards must not condemn all peers."""
    settings = TransportSettings(ping_s=0.05, sweep_s=0.01, silent_pings_max=2)
    a, b = await net.pair(settings=settings)
    fast = a._peers["b"].fast.connection
    time.sleep(0.6)  # noqa: ASYNC251 - the loop stands still, as it does when the process is stopped
    await asyncio.sleep(0.3)
    assert a._peers["b"].fast.connection is fast
    assert b.connected() == {"a": True}


async def test_a_peer_that_does_not_read_answers_is_not_read_either(net):
    """The answers that pile up are bounded by not taking further requests."""
    settings = TransportSettings(bulk_bytes_max=MIB, ping_s=60)
    a = await net.start("a", settings=settings)
    a.recorder.answer = lambda method, payload: bytes(200_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port, limit=2**16)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(pack_frame(hello_frame(net.hello("b"), Lane.BULK)))
    writer.transport.pause_reading()
    for number in range(2000):
        writer.write(pack_frame((framing.REQUEST, number, "m", bytes(100))))
    await net.until(lambda: a._connections)
    connection = next(iter(a._connections))
    peak = 0
    for _ in range(50):
        await asyncio.sleep(0.005)
        peak = max(peak, connection.write_buffer_size())
    assert peak < 3 * MIB
    writer.transport.abort()
    await net.until(lambda: not a._connections)
    del reader


async def test_requests_wait_while_answers_are_not_read_and_go_on_afterwards(net):
    """A peer that is slow for a while loses nothing; its requests stay in its own socket."""
    settings = TransportSettings(bulk_bytes_max=MIB, ping_s=60)
    a = await net.start("a", settings=settings)
    served = []
    a.recorder.answer = lambda method, payload: served.append(payload[0]) or bytes(150_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port, limit=2**16)
    writer.write(pack_frame(hello_frame(net.hello("b"), Lane.BULK)))
    writer.transport.pause_reading()
    for number in range(200):
        writer.write(pack_frame((framing.REQUEST, number, "m", (number, bytes(50_000)))))
        await asyncio.sleep(0.001)
    stalled = len(served)
    assert 0 < stalled < 200
    connection = next(iter(a._connections))
    assert connection.write_buffer_size() <= 3 * MIB
    writer.transport.resume_reading()
    answers = 0
    async with asyncio.timeout(10):
        while answers < 200:
            size = int.from_bytes(await reader.readexactly(HEADER_BYTES), "big")
            answers += unpack_frame(await reader.readexactly(size))[0] == framing.ANSWER
    assert served == list(range(200))
    writer.close()


@pytest.mark.slow
async def test_a_cut_cable_is_noticed_within_seconds_with_the_default_settings(net):
    """In turns of a second: a process that stood still has given nobody up."""
    settings = TransportSettings()
    assert settings.ping_s * (settings.silent_pings_max + 2) < 8
    a = await net.start("a", settings=settings)
    async with HalfDeaf(net.hello("b")) as peer:
        a.set_peers({"b": (peer.hello.address,)})
        await net.until(lambda: a.connected() == {"b": True})
        turns = []
        fast = a._peers["b"].fast.connection
        check_alive = fast.check_alive
        fast.check_alive = lambda: (turns.append(1), check_alive())
        peer.silent = True
        await net.until(lambda: a.connected() == {"b": False}, 60.0)
        assert len(turns) <= settings.silent_pings_max + 2
        a.set_peers({})
