"""Clients cannot use up the files that a node needs to go on (RC-8, RC-67)."""

from __future__ import annotations

import resource
import socket
import ssl
from pathlib import Path

import pytest

from kvnode.agent_files import file_bounds
from kvnode.http.gate import REFUSED_MAX
from tests.chaos.processes import Node, running
from tests.ports import free_ports
from tests.tls.conftest import Files


@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 20_000, 1 << 20])
def test_the_limit_is_never_all_for_others(limit: int) -> None:
    bounds = file_bounds(limit)
    assert bounds.clients >= 1
    if limit >= 256:
        refused = min(bounds.clients, REFUSED_MAX)
        others = bounds.clients + refused + bounds.peers + 2 * bounds.handshakes
        assert others <= limit - min(limit // 2, 1024)


class Confined(Node):
    """A node that may open few files."""

    def start(self) -> None:
        super().start()
        assert self.process is not None
        # Long before Python has come to ask for more.
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (256, 400))


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_idle_clients_do_not_stop_a_node_with_few_files(tmp_path: Path, secure: bool) -> None:
    """256 idle connections were enough: the engine could not open its next file, and the node ended."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2000:
        pytest.skip("too few files for the test itself")
    ports = free_ports(2)
    flags = ["--bootstrap-expect", "1", "--write-buffer-bytes", "65536", "--log-entries-max", "100"]
    node = Confined("kvnode-0", tmp_path / "n", ports[0], ports[1], flags)
    tls = None
    if secure:  # they do not even shake hands
        files = Files(tmp_path / "tls")
        files.issue()
        node.flags += [
            f"--tls-{name}-file={getattr(files, name)}" for name in ("cert", "key", "ca")
        ]
        node.scheme = "https"
        tls = ssl.create_default_context(cafile=files.ca)
    async with running([node], tls) as made:
        await made.leader()
        await made.ready()
        assert node.events("file_limit_is_low")
        crowd = [socket.socket() for _ in range(700)]
        for number, made_socket in enumerate(crowd):
            made_socket.settimeout(2)
            try:
                made_socket.connect((node.host, ports[number % 2]))
            except OSError:
                continue
        stored = 0
        for number in range(200):
            stored += await made.put(node, f"k{number}", "x" * 2000)  # over a connection it kept
        assert node.is_running, made.tails()
        assert stored == 200, made.tails()
        for made_socket in crowd:
            made_socket.close()
        assert not node.events("node_must_stop")
