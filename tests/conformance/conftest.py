"""Where the conformance tests are sent.

Every test runs once per target. A target is anything that listens; ``fake`` is there only for the
in-process ones, and tests that need to break something ask for it and are skipped elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from kvnode.http import HttpContext, HttpServer, HttpSettings
from tests.conformance.wire import Kv, Wire
from tests.http.fake_replica import FakeReplica


class Target(NamedTuple):
    """A node to talk to."""

    host: str
    port: int
    fake: FakeReplica | None


@pytest.fixture(params=["aiohttp", "fast"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    """Start one node per test: in this process, once with each shell."""
    fake = FakeReplica()
    settings = HttpSettings(node_name="kvnode-0", fast_path=request.param == "fast")
    server = HttpServer(HttpContext(replica=fake, settings=settings))
    await server.start("127.0.0.1", 0)
    yield Target("127.0.0.1", server.port, fake)
    await server.close()


@pytest.fixture
async def wire(node: Target) -> AsyncIterator[Wire]:
    client = Wire(node.host, node.port)
    yield client
    await client.close()


@pytest.fixture
def kv(wire: Wire) -> Kv:
    return Kv(wire)


@pytest.fixture
def fake(node: Target) -> FakeReplica:
    if node.fake is None:
        pytest.skip("needs an in-process replica")
    return node.fake
