"""Peers by SRV against a real DNS server, and all addresses changing at once (RC-53, RC-56)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.processes import Node, Writers, check_kept, running
from tests.chaos.verdict import digests_equal
from tests.ports import free_ports
from tests.tls.conftest import Files

DNSMASQ = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin")
SERVICE = "_raft._tcp.kvnode.default.svc.cluster.local"
HOST = "kvnode-{}.kvnode.default.svc.cluster.local"

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(300),
    pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed"),
]


@contextmanager
def dns_server(port: int, hosts: dict[str, str], peer_port: int) -> Iterator[None]:
    """A real dnsmasq on loopback that answers SRV and A as a headless Service does."""
    assert DNSMASQ is not None
    arguments = [
        DNSMASQ, "--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon",
        "--listen-address=127.0.0.1", "--bind-interfaces", f"--port={port}",
        "--conf-file=/dev/null", "--pid-file=", "--user=root", "--local-ttl=0",
    ]  # fmt: skip
    for host, address in hosts.items():
        arguments.append(f"--host-record={host},{address}")
        arguments.append(f"--srv-host={SERVICE},{host},{peer_port}")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("name", [SERVICE, SERVICE.removeprefix("_raft._tcp.")])
async def test_nodes_that_know_only_the_services_name_form_one_cluster(
    tmp_path: Path, name: str
) -> None:
    """Then all of them change addresses at once, and find each other again with their data."""
    dns_port, peer_port, *http_ports = free_ports(5)
    flags = [
        "--bootstrap-expect=3",
        f"--join-srv={name}",
        f"--dns-servers=127.0.0.1:{dns_port}",
    ]

    def at(first: int) -> tuple[list[Node], dict[str, str]]:
        nodes, hosts = [], {}
        for number in range(3):
            address = f"127.0.0.{first + number}"
            hosts[HOST.format(number)] = address
            node = Node(
                f"kvnode-{number}",
                tmp_path / f"kvnode-{number}",
                http_ports[number],
                peer_port,
                # The address in a pod is its own; others find it by name only.
                [*flags, f"--advertise={address}"],
                host=address,
            )
            nodes.append(node)
        return nodes, hosts

    nodes, hosts = at(21)
    with dns_server(dns_port, hosts, peer_port):
        async with running(nodes) as made:
            leader = await made.leader()
            await made.ready()
            members = await made.members(leader)
            assert sorted(m["Node"] for m in members) == ["kvnode-0", "kvnode-1", "kvnode-2"]
            async with Writers(made, 4, "w") as writers:
                await writers.first_after(0.0, 10.0)
                await asyncio.sleep(0.3)
    nodes, hosts = at(31)
    with dns_server(dns_port, hosts, peer_port):
        async with running(nodes) as made:
            leader = await made.leader()
            await made.ready()
            await made.write(leader, "moved", "1")
            for node in nodes:
                check_kept(writers, await made.dump(node, "w/"))
                assert await made.get(node, "moved") == "1"
            addresses = {member["Address"].split(":")[0] for member in await made.members(leader)}
            assert addresses == {"127.0.0.31", "127.0.0.32", "127.0.0.33"}, addresses


async def test_one_certificate_for_the_services_names_is_enough(tmp_path: Path) -> None:
    """A wildcard, names by SRV, and all addresses changing at once: what a StatefulSet has."""
    dns_port, peer_port, *http_ports = free_ports(5)
    files = Files(tmp_path / "tls")
    files.issue(hosts=("*." + HOST.partition(".")[2],))
    secret = tmp_path / "secret"
    secret.write_text("a-secret-of-all-pods\n")
    flags = [
        "--bootstrap-expect=3", f"--join-srv={SERVICE}", f"--dns-servers=127.0.0.1:{dns_port}",
        *(f"--tls-{name}-file={getattr(files, name)}" for name in ("cert", "key", "ca")),
        "--no-tls-http", f"--peer-secret-file={secret}",
    ]  # fmt: skip

    for first in (41, 51):
        hosts = {HOST.format(number): f"127.0.0.{first + number}" for number in range(3)}
        nodes = [
            Node(
                f"kvnode-{number}", tmp_path / f"kvnode-{number}", http_ports[number], peer_port,
                [*flags, f"--advertise={name}"], host=address,
            )
            for number, (name, address) in enumerate(hosts.items())
        ]  # fmt: skip
        with dns_server(dns_port, hosts, peer_port):
            async with running(nodes) as made:
                leader = await made.leader()
                await made.ready()
                await made.write(leader, f"from/{first}", "1")
                await digests_equal(made, nobody_else=True)
                assert "from/41" in await made.dump(leader, "from/")
                for node in nodes:
                    assert not node.events("peer_tls_refused"), made.tails()
                    assert not node.events("peer_secret_refused"), made.tails()
