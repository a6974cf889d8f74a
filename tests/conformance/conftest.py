"""Where the conformance tests are sent.

Every test runs once per target. A target is anything that listens; ``fake`` is there only for the
in-process ones, and tests that need to break something ask for it and are skipped elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvnode.http import HttpContext, HttpServer, HttpSettings
from tests.chaos import processes
from tests.clients.programs import find_consul
from tests.conformance.wire import Kv, Sessions, Wire
from tests.http.fake_replica import FakeReplica
from tests.ports import free_ports


class Target(NamedTuple):
    """A node to talk to."""

    host: str
    port: int
    fake: FakeReplica | None


TTL_MIN_MS = 500
"""``session_ttl_min`` of every target, so that no test has to wait for twenty seconds."""
NODE_NAME = "kvnode-0"
"""Of the fake replica, and of the Consul that it is compared with."""
SHELLS = ["aiohttp", "fast"]
PROCESSES = ["leader", "follower"]
"""Nodes of a real three-node cluster; run with ``-m chaos``."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """Three processes, shared by all tests: each test keeps to keys of its own."""
    with asyncio.Runner() as runner:
        flags = [f"--session-ttl-min-s={TTL_MIN_MS / 1000}"]
        context = processes.cluster(tmp_path_factory.mktemp("conformance"), flags=flags)
        made = runner.run(context.__aenter__())
        try:
            runner.run(made.ready())
            leader = runner.run(made.leader())
            follower = next(other for other in made.nodes if other is not leader)
            yield {
                "leader": Target(leader.host, leader.http_port, None),
                "follower": Target(follower.host, follower.http_port, None),
            }
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(
    params=[*SHELLS, *(pytest.param(name, marks=pytest.mark.chaos) for name in PROCESSES)]
)
def place(request: pytest.FixtureRequest) -> Target | str:
    """Choose a running node, or the shell of one to start."""
    if request.param in PROCESSES:
        chosen: Target = request.getfixturevalue("cluster")[request.param]
        return chosen
    return str(request.param)


@pytest.fixture
async def node(place: Target | str) -> AsyncIterator[Target]:
    """Return a node to talk to; one in this process is started for each test."""
    if isinstance(place, Target):
        yield place
        return
    fake = FakeReplica()
    settings = HttpSettings(
        node_name="kvnode-0", fast_path=place == "fast", session_ttl_min_ns=TTL_MIN_MS * 10**6
    )
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
async def sessions(wire: Wire) -> AsyncIterator[Sessions]:
    made = Sessions(wire)
    yield made
    await made.destroy_all()


@pytest.fixture
def fake(node: Target) -> FakeReplica:
    if node.fake is None:
        pytest.skip("needs an in-process replica")
    return node.fake


# --- a real Consul, and a node in this process to compare it with


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[Wire]:
    """A new Consul server of one: an old one would remember deleted keys.

    Not ``-dev``, which would indent all its JSON.
    """
    binary = find_consul()
    http, server, serf = free_ports(3)
    config = {
        "disable_update_check": True,
        "node_name": NODE_NAME,
        "bind_addr": "127.0.0.1",
        "server": True,
        "bootstrap": True,
        "data_dir": str(tmp_path / "data"),
        "ports": {
            "http": http,
            "server": server,
            "serf_lan": serf,
            "serf_wan": -1,
            "dns": -1,
            "grpc": -1,
        },
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "agent", "-config-file", str(file)], stdout=log, stderr=log
        )
    try:
        wire = Wire("127.0.0.1", http)
        asyncio.run(asyncio.wait_for(_started(wire), 30))
        yield wire
    finally:
        process.kill()
        process.wait(10)


async def _started(wire: Wire) -> None:
    while True:
        try:
            if (await wire("PUT", "/v1/kv/ready", b"1")).body == b"true":
                await wire("DELETE", "/v1/kv/ready")
                return
        except OSError:
            pass
        finally:
            await wire.close()
        await asyncio.sleep(0.1)


@pytest.fixture
async def ours() -> AsyncIterator[Wire]:
    server = HttpServer(
        HttpContext(replica=FakeReplica(), settings=HttpSettings(node_name=NODE_NAME))
    )
    await server.start("127.0.0.1", 0)
    wire = Wire("127.0.0.1", server.port)
    yield wire
    await wire.close()
    await server.close()
