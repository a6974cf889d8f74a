"""A node's HTTP port in this process, with settings that a test chooses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kvnode.http import HttpContext, HttpServer, HttpSettings
from tests.conformance.wire import Wire
from tests.http.fake_replica import FakeReplica


class Node:
    """A server, its fake replica, and raw connections to it."""

    def __init__(self, server: HttpServer, replica: FakeReplica) -> None:
        self.server = server
        self.replica = replica
        self.wire = Wire("127.0.0.1", server.port)
        self.connect = self.wire.connect

    async def close(self) -> None:
        await self.wire.close()
        if self.replica.held is not None:
            self.replica.release()
        await self.server.close()


Start = Callable[..., Awaitable[Node]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start nodes; ``settings`` and ``context`` members by name."""
    nodes: list[Node] = []

    async def make(context: dict[str, Any] | None = None, **settings: Any) -> Node:
        replica = FakeReplica()
        chosen = HttpSettings(**{"node_name": "kvnode-0", "close_grace_s": 1.0, **settings})
        server = HttpServer(HttpContext(replica=replica, settings=chosen, **(context or {})))
        await server.start("127.0.0.1", 0)
        nodes.append(Node(server, replica))
        return nodes[-1]

    yield make
    for node in nodes:
        await node.close()


@pytest.fixture
async def node(start: Start) -> Node:
    return await start()
