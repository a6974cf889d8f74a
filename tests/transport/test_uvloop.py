"""The same transport on the loop that real nodes use."""

import asyncio
import random

import pytest

from kvnode.raft.messages import AppendEntries, Heartbeat
from kvnode.raft.types import ZERO, Entry, EntryKind
from kvnode.transport.tcp import TcpTransport

uvloop = pytest.importorskip("uvloop")


async def connected(net_tools, *hellos):
    """Start ``a`` and ``b``, and wait until ``a`` is connected to ``b``."""
    nodes = []
    for hello in hellos:
        node = TcpTransport(
            hello,
            handler=net_tools.Recorder(),
            rng=random.Random(1),
            settings=net_tools.quick,
        )
        await node.start()
        nodes.append(node)
    a, b = nodes
    a.set_peers({"b": (b.hello.address,)})
    await net_tools.until(lambda: a.connected() == {"b": True})
    return a, b


def test_messages_requests_and_errors_on_uvloop(net_tools):
    async def scenario():
        assert type(asyncio.get_running_loop()) is uvloop.Loop
        a, b = await connected(net_tools, net_tools.hello("a"), net_tools.hello("b"))
        entries = tuple(Entry(n, 1, EntryKind.COMMAND, bytes(1000)) for n in range(1, 1001))
        message = AppendEntries("a", "b", 1, ZERO, entries, 0)
        a.send("b", [Heartbeat("a", "b", 1, 0, 0), message])
        await net_tools.until(lambda: len(b.handler.messages) == 2)
        assert message in [m for _, m in b.handler.messages]
        assert await net_tools.ask(a, "b", "m", 5) == (("m", 5), None)
        await b.close()
        await net_tools.until(lambda: a.connected() == {"b": False})
        await a.close()

    uvloop.run(scenario())


class _Forgotten:
    """What uvloop leaves of a transport whose ``create_connection`` was cancelled after it had been made."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    def get_write_buffer_size(self) -> int:
        return 0


async def test_an_aborted_connection_is_not_written_to(net_tools):
    """A dial that is called off in the very turn in which we learn our cluster must not cost the lesson."""
    strangers = (net_tools.hello(name)._replace(cluster_id="") for name in "ab")
    a, b = await connected(net_tools, *strangers)
    connection = next(c for c in a._connections if c.is_greeted)
    real, connection._transport = connection._transport, _Forgotten()
    connection.abort("no longer wanted")
    a.hello = a.hello._replace(cluster_id="c1")
    assert a.hello.cluster_id == "c1"
    await net_tools.until(lambda: connection.closed.done())
    assert connection.closed.result() == "no longer wanted"
    real.abort()
    await b.close()
    await a.close()
