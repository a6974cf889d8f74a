"""Patroni, unmodified, with its Consul back end against three nodes: a PostgreSQL pair fails over."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.processes import Cluster, Node, cluster
from tests.clients.postgres import TTL_S, Server, find_programs
from tests.ports import free_ports

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(420)]

FAILOVER_S = 2 * TTL_S + 20
"""The leader key's session ends after Patroni's TTL; then a loop, an election and a promotion."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below ``tmp_path``, which only its owner may enter."""
    path = Path(tempfile.mkdtemp(prefix="kvnode-patroni-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Pair:
    """Two PostgreSQL servers; each Patroni talks to a node of its own."""

    def __init__(self, made: Cluster, directory: Path) -> None:
        programs = find_programs()
        ports = free_ports(4)
        self.made = made
        self.servers = [
            Server(f"pg-{n}", directory / f"pg-{n}", programs, made.nodes[n].url,
                   (ports[2 * n], ports[2 * n + 1]))
            for n in range(2)
        ]  # fmt: skip

    def node_of(self, server: Server) -> Node:
        return self.made.nodes[self.servers.index(server)]

    def other(self, server: Server) -> Server:
        return next(one for one in self.servers if one is not server)

    async def until(self, server: Server, wanted: str, timeout_s: float) -> float:
        """Wait for a role; return the seconds that it took."""
        began = time.monotonic()
        role = ""
        while time.monotonic() - began < timeout_s:
            role = await server.role(self.made.session)
            if role.startswith(wanted):
                return time.monotonic() - began
            await asyncio.sleep(0.2)
        tails = "\n".join(one.tail() for one in self.servers)
        raise AssertionError(f"{server.name} is {role}, not {wanted}\n{tails}\n{self.made.tails()}")

    async def synchronous(self, primary: Server) -> None:
        """Wait until the standby confirms every commit, so that a failover may lose nothing."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            facts = await primary.cluster(self.made.session)
            roles = {one["name"]: (one["role"], one["state"]) for one in facts["members"]}
            if roles.get(self.other(primary).name) == ("sync_standby", "streaming"):
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"no synchronous standby\n{primary.tail()}")


async def lead(made: Cluster, node: Node) -> None:
    """Let this node lead."""

    async def leads() -> bool:
        for member in await made.members(node):
            if member["Node"] == node.name and not member["Leader"]:
                route = f"{node.url}/v1/operator/raft/transfer-leader?id={member['ID']}"
                async with made.session.post(route) as answer:
                    await answer.read()  # refused while the node lags, say: it is asked again
        return await made.leader() is node

    await made.until(leads, f"{node.name} leads")


async def test_a_postgres_pair_fails_over(directory: Path) -> None:
    """First the PostgreSQL leader dies; then the next one together with the node that leads kvnode."""
    find_programs()
    async with cluster(directory / "kvnode") as made:
        await made.ready()
        pair = Pair(made, directory)
        try:
            await fail_over_twice(pair)
        finally:
            for server in pair.servers:
                server.kill()


async def fail_over_twice(pair: Pair) -> None:
    made, (first, second) = pair.made, pair.servers
    first.start()
    await pair.until(first, "primary", 90)
    second.start()
    await pair.until(second, "replica", 90)
    await pair.synchronous(first)
    first.ask("create table kept (n int)")
    first.ask("insert into kept values (1)")
    leader_key = await made.get(made.nodes[2], "service/pair/leader")
    assert leader_key == first.name

    # The PostgreSQL leader dies.
    first.kill()
    took = await pair.until(second, "primary", FAILOVER_S)
    print(f"failed over in {took:.1f} s")
    assert second.ask("select n from kept") == [(1,)]
    second.ask("insert into kept values (2)")

    # It comes back as the replica.
    first.wait_until_gone()
    first.start()
    await pair.until(first, "replica", 90)
    await pair.synchronous(second)
    second.ask("insert into kept values (3)")

    # A machine dies: the PostgreSQL leader, and with it the node that leads kvnode.
    lost = pair.node_of(second)
    await lead(made, lost)
    lost.kill()
    second.kill()
    took = await pair.until(first, "primary", FAILOVER_S)
    print(f"failed over in {took:.1f} s, together with kvnode's leader")
    assert first.ask("select n from kept order by n") == [(1,), (2,), (3,)]
    assert await made.get(made.nodes[2], "service/pair/leader") == first.name
