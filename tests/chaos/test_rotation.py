"""Certificates, authorities and secrets change, and are introduced, under load."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import time
from pathlib import Path

import pytest

from tests.chaos.processes import Cluster, Node, Writers, check_kept, running
from tests.chaos.verdict import digests_equal
from tests.ports import free_ports
from tests.tls.conftest import Files, ca

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ONE, TWO = "first-secret-0123456789", "second-secret-0123456789"
COUNT = 3


class Material:
    """One node's files."""

    def __init__(self, directory: Path) -> None:
        self.tls = Files(directory / "tls")
        self.secret = directory / "secret"

    def secrets(self, *lines: str) -> None:
        self.secret.write_text("\n".join(lines) + "\n")

    @property
    def flags(self) -> list[str]:
        return [
            f"--tls-cert-file={self.tls.cert}",
            f"--tls-key-file={self.tls.key}",
            f"--tls-ca-file={self.tls.ca}",
            f"--peer-secret-file={self.secret}",
        ]


def make(directory: Path, scheme: str) -> tuple[list[Node], list[Material]]:
    ports = free_ports(2 * COUNT)
    joins = [f"--retry-join=127.0.0.1:{port}" for port in ports[COUNT:]]
    nodes, materials = [], []
    for number in range(COUNT):
        home = directory / f"kvnode-{number}"
        home.mkdir()
        nodes.append(
            Node(
                home.name, home, ports[number], ports[COUNT + number],
                [f"--bootstrap-expect={COUNT}", *joins], scheme=scheme,
            )
        )  # fmt: skip
        material = Material(home)
        material.tls.issue()
        material.secrets(ONE)
        materials.append(material)
    return nodes, materials


async def taken_over(made: Cluster, node: Node, event: str, count: int, timeout_s: float) -> None:
    async def done() -> bool:
        return len(node.events(event)) >= count

    await made.until(done, f"{node.name}: {count} times {event}", timeout_s)


async def test_everything_is_changed_without_a_failed_write(tmp_path: Path) -> None:
    """The authority, every certificate and the secret; node by node, twice by signal, once by itself."""
    nodes, materials = make(tmp_path, "https")
    for node, material in zip(nodes, materials, strict=True):
        node.flags += material.flags
    trusting = ssl.create_default_context(cadata=(ca("first").cert + ca("second").cert).decode())
    both = ("first", "second")
    steps = [
        (lambda m: m.tls.trust(*both), (ONE, TWO)),
        (lambda m: m.tls.issue("second", trust=both), (TWO, ONE)),
        (lambda m: m.tls.trust("second"), (TWO,)),
    ]
    async with running(nodes, trusting) as made:
        await made.leader()
        await made.ready()
        # Else aiohttp would ask again by itself, and nobody would see that a connection was cut.
        made.session._retry_connection = False
        async with Writers(made, 6, "rotation") as writers:
            await writers.first_after(0.0, 30.0)
            term = await made.highest_term()
            for number, (change, secrets) in enumerate(steps, 1):
                for node, material in zip(nodes, materials, strict=True):
                    change(material)
                    material.secrets(*secrets)
                    if node is not nodes[0]:
                        node.signal(signal.SIGHUP)  # the first one notices by itself
                    for event in ("certificate_reloaded", "peer_secret_reloaded"):
                        await taken_over(made, node, event, number, 20.0)
            assert not writers.broken, "nothing that stood was cut"
            # A leader that is deposed because it stalled cannot say what becomes of what it appended.
            assert not writers.unknown or await made.highest_term() > term
            made.session._retry_connection = True
            # Only new connections prove anything: each node in turn starts anew under the new ones.
            for node in nodes:
                node.stop()
                node.start()
                await made.ready()
                await writers.first_after(time.monotonic(), 10.0)
        await digests_equal(made, nobody_else=True)
        check_kept(writers, await made.dump(await made.leader(), "rotation/"))
        for node in nodes:
            assert not node.events("peer_secret_refused")
            assert not node.events("peer_tls_refused")
        await old_ones_are_refused(made, nodes[2], materials[2])
    print(json.dumps({"acknowledged": len(writers.acknowledged), "lost": 0}))


async def old_ones_are_refused(made: Cluster, node: Node, material: Material) -> None:
    """A node that comes back with what was replaced, first its certificate, then its secret."""
    others = [other for other in made.nodes if other is not node]
    node.stop()
    material.tls.issue("first", trust=("first", "second"))
    node.start()

    async def certificate_refused() -> bool:
        return all(other.events("peer_tls_refused") for other in others)

    await made.until(certificate_refused, "the old certificate is refused")
    assert not await made.is_ready(node)
    node.stop()
    material.tls.issue("second")
    material.secrets(ONE)
    node.start()

    async def secret_refused() -> bool:
        return any(other.events("peer_secret_refused") for other in others)

    await made.until(secret_refused, "the old secret is refused")
    assert not await made.is_ready(node)
    assert ONE not in "".join(other.log.read_text() for other in made.nodes)
    material.secrets(TWO)
    node.signal(signal.SIGHUP)
    await made.ready()


async def test_tls_and_a_secret_come_to_a_plain_cluster_node_by_node(tmp_path: Path) -> None:
    """No pause: at every moment two nodes speak with each other."""
    nodes, materials = make(tmp_path, "http")
    async with running(nodes) as made:
        await made.leader()
        await made.ready()
        async with Writers(made, 4, "introduction") as writers:
            await writers.first_after(0.0, 30.0)
            for tls_peers, secrets in (
                ("prefer", ("allow-none", ONE)), ("require", (ONE, "allow-none")), ("", (ONE,)),
            ):  # fmt: skip
                for node, material in zip(nodes, materials, strict=True):
                    material.secrets(*secrets)
                    if not tls_peers:  # the secret's last step needs no restart
                        node.signal(signal.SIGHUP)
                        await taken_over(made, node, "peer_secret_reloaded", 1, 20.0)
                        continue
                    flags = [flag for flag in node.flags if "--tls" not in flag]
                    flags = [flag for flag in flags if "secret" not in flag]
                    node.flags = [
                        *flags, *material.flags, "--no-tls-http", f"--tls-peers={tls_peers}"
                    ]  # fmt: skip
                    assert node.stop() == 0
                    node.start()
                    await made.ready()
                    await writers.first_after(time.monotonic(), 10.0)
            await asyncio.sleep(0)
        await digests_equal(made, nobody_else=True)
        check_kept(writers, await made.dump(await made.leader(), "introduction/"))
    print(json.dumps({"acknowledged": len(writers.acknowledged), "lost": 0}))
