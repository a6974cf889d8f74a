"""A handler that remembers everything, and nodes on loopback that end with the test."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.errors import KvnodeError
from kvnode.ports import Hello
from kvnode.raft.messages import Message
from kvnode.raft.types import NodeId, SnapshotMeta
from kvnode.transport.settings import TransportSettings
from kvnode.transport.tcp import TcpTransport

QUICK = TransportSettings(
    ping_s=0.1, sweep_s=0.02, backoff_min_s=0.01, backoff_max_s=0.1, greet_timeout_s=0.5
)


class Recorder:
    """A driver that only takes notes. ``changed`` is set at each call."""

    def __init__(self) -> None:
        self.messages: list[tuple[Hello, Message]] = []
        self.batches: list[int] = []
        self.hellos: list[Hello] = []
        self.unreachable: list[NodeId] = []
        self.removed = 0
        self.accepted: set[str] = set()
        self.answer: Callable[[str, Any], Any] = lambda method, payload: (method, payload)
        self.held: list[tuple[Callable[[Any], None], Callable[[KvnodeError], None]]] = []
        self.hold = False
        self.chunks: list[bytes] = []
        self.snapshot_begun: list[tuple[int, SnapshotMeta]] = []
        self.snapshot_ended: list[bool] = []
        self.snapshot_wanted = True
        self.chunk_error: KvnodeError | None = None
        self.end_error: KvnodeError | None = None
        self.held_chunks: list[Callable[[KvnodeError | None], None]] | None = None
        self.changed = asyncio.Event()

    def on_messages(self, sender: Hello, messages: Sequence[Message]) -> None:
        self.messages += [(sender, m) for m in messages]
        self.batches.append(len(messages))
        self.changed.set()

    def on_request(
        self,
        sender: Hello,
        method: str,
        payload: Any,
        reply: Callable[[Any], None],
        fail: Callable[[KvnodeError], None],
    ) -> None:
        if self.hold:
            self.held.append((reply, fail))
        else:
            try:
                reply(self.answer(method, payload))
            except KvnodeError as error:
                fail(error)
        self.changed.set()

    def on_peer_hello(self, sender: Hello) -> None:
        self.hellos.append(sender)
        self.changed.set()

    def on_unreachable(self, node_id: NodeId) -> None:
        self.unreachable.append(node_id)
        self.changed.set()

    def accepts_cluster(self, sender: Hello) -> bool:
        return sender.cluster_id in self.accepted

    def on_removed(self, cluster_id: str) -> None:
        self.removed += 1
        self.changed.set()

    def on_snapshot_begin(self, sender: Hello, term: int, meta: SnapshotMeta) -> bool:
        self.snapshot_begun.append((term, meta))
        self.changed.set()
        return self.snapshot_wanted

    def on_snapshot_chunk(
        self, sender: Hello, chunk: bytes, done: Callable[[KvnodeError | None], None]
    ) -> None:
        self.chunks.append(chunk)
        if self.held_chunks is not None:
            self.held_chunks.append(done)
        else:
            asyncio.get_running_loop().call_soon(done, self.chunk_error)
        self.changed.set()

    def on_snapshot_end(
        self, sender: Hello, ok: bool, done: Callable[[KvnodeError | None], None]
    ) -> None:
        self.snapshot_ended.append(ok)
        asyncio.get_running_loop().call_soon(done, self.end_error)
        self.changed.set()


class Node(TcpTransport):
    """A transport with its recorder."""

    recorder: Recorder

    @property
    def node_id(self) -> NodeId:
        return self.hello.node_id

    @property
    def address(self) -> str:
        return self.hello.address


def make_hello(node_id: str = "a", cluster_id: str = "c", **fields: Any) -> Hello:
    values: dict[str, Any] = {
        "protocol": 1,
        "cluster_id": cluster_id,
        "node_id": NodeId(node_id),
        "name": f"kvnode-{node_id}",
        "boot": 1,
        "address": "127.0.0.1:0",
        "http_address": "127.0.0.1:1",
        "expect": 3,
    }
    return Hello(**{**values, **fields})


async def until(condition: Callable[[], Any], timeout_s: float = 8.0) -> None:
    """Wait for a condition; fails after ``timeout_s``."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions are of many kinds
            await asyncio.sleep(0.002)


def ask(transport: Any, to: str, method: str = "m", payload: Any = None, timeout_s: float = 5.0):
    """``request`` as a future of ``(value, error)``."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    transport.request(
        NodeId(to), method, payload, timeout_s, lambda v, e: future.set_result((v, e))
    )
    assert not future.done(), "a completion never comes from inside the call"
    return future


def ask_address(transport: Any, address: str, payload: Any = None, timeout_s: float = 3.0):
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    transport.request_address(
        address, "m", payload, timeout_s, lambda v, e: future.set_result((v, e))
    )
    assert not future.done(), "a completion never comes from inside the call"
    return future


class Net:
    """Starts nodes and waits for things."""

    quick = QUICK
    hello = staticmethod(make_hello)
    until = staticmethod(until)
    ask = staticmethod(ask)
    ask_address = staticmethod(ask_address)

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    async def start(
        self, node_id: str = "a", cluster_id: str = "c", *, settings: Any = QUICK, **kwargs: Any
    ) -> Node:
        hello = kwargs.pop("hello", None) or make_hello(node_id, cluster_id)
        recorder = Recorder()
        node = Node(hello, handler=recorder, settings=settings, rng=random.Random(1), **kwargs)
        node.recorder = recorder
        self.nodes.append(node)
        await node.start()
        return node

    async def pair(self, **kwargs: Any) -> tuple[Node, Node]:
        """Nodes a and b, connected both ways."""
        a, b = await self.start("a", **kwargs), await self.start("b", **kwargs)
        self.connect(a, b)
        await until(lambda: a.connected() == {"b": True} and b.connected() == {"a": True})
        return a, b

    def connect(self, *nodes: Node) -> None:
        for node in nodes:
            node.set_peers({n.node_id: (n.address,) for n in nodes})


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    """Nodes on loopback; all are closed at the end."""
    network = Net()
    yield network
    for node in network.nodes:
        await node.close()


@pytest.fixture
def net_tools() -> Any:
    """The helpers alone, for tests that run a loop of their own."""
    return SimpleNamespace(hello=make_hello, until=until, ask=ask, quick=QUICK, Recorder=Recorder)
