"""Fixtures for py-consul's own tests, in the place of those that start containers.

Loaded by ``test_py_consul`` into another pytest, so it imports nothing of ours: the word ``tests`` is theirs
there. The node is started as the suites of Consul's clients start one: ``agent -dev -config-file FILE``.
"""

from __future__ import annotations

import collections
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

Instance = collections.namedtuple("Instance", ["container", "port", "version"])
PATIENCE_S = 40.0


def free_ports(count: int) -> list[int]:
    """Below Linux's ephemeral ports, which somebody's connection may take before a node does, below those
    of tests that run beside these, and other ones for each worker.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports: list[int] = []
    while len(ports) < count:
        port = 14_000 + worker % 4 * 1_500 + random.randrange(1_500)
        with socket.socket() as tcp, suppress(OSError):
            tcp.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


@pytest.fixture(scope="session", autouse=True)
def no_token() -> None:
    os.environ.pop("CONSUL_HTTP_TOKEN", None)


class Server:
    """One node, or several, used again by the next test as long as nothing of the last one is left.

    Several: the tests talk to one that does not lead.
    """

    def __init__(self, directory: Path, nodes: int) -> None:
        self._directory = directory
        self._nodes = nodes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._starts = 0
        self.port = 0
        self.version = ""

    def start(self) -> None:
        """Start new ones, unless there are clean ones."""
        alive = self._processes and all(process.poll() is None for process in self._processes)
        if alive and self._clean():
            return
        self.stop()
        self._starts += 1
        ports = free_ports(2 * self._nodes)
        https, peers = ports[: self._nodes], ports[self._nodes :]
        joins = [f"127.0.0.1:{port}" for port in peers]
        for number, (http, peer) in enumerate(zip(https, peers, strict=True)):
            self._start(number, http, peer, joins)
        leader = _wait(https)
        self.port = next((h for h, p in zip(https, joins, strict=True) if p != leader), https[0])
        found: dict[str, Any] = requests.get(
            f"http://127.0.0.1:{self.port}/v1/agent/self", timeout=5
        ).json()
        self.version = str(found["Config"]["Version"])

    def _start(self, number: int, http: int, peer: int, joins: list[str]) -> None:
        config: dict[str, Any] = {
            "ports": {"http": http, "server": peer, "https": -1, "dns": -1},
            "bind_addr": "127.0.0.1",
            "performance": {"raft_multiplier": 1},
            "enable_script_checks": True,
        }
        words = ["-dev"]
        if self._nodes > 1:
            words = ["-data-dir", str(self._directory / f"data-{self._starts}-{number}")]
            config |= {
                "node_name": f"kvnode-{number}", "server": True, "bootstrap_expect": self._nodes,
                "retry_join": joins,
            }  # fmt: skip
        file = self._directory / f"config-{self._starts}-{number}.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "kvnode", "agent", *words, "-config-file", str(file)]
        with (self._directory / f"log-{self._starts}-{number}").open("wb") as log:
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def _clean(self) -> bool:
        """Take away what a test left; False where that is not all."""
        base = f"http://127.0.0.1:{self.port}/v1"
        try:
            requests.delete(f"{base}/kv/?recurse", timeout=5)
            for session in requests.get(f"{base}/session/list", timeout=5).json():
                requests.put(f"{base}/session/destroy/{session['ID']}", timeout=5)
            requests.put(f"{base}/agent/maintenance?enable=false", timeout=5)
            for kind in ("service", "check"):
                for name in requests.get(f"{base}/agent/{kind}s", timeout=5).json():
                    requests.put(f"{base}/agent/{kind}/deregister/{quote(name)}", timeout=5)
            left = requests.get(f"{base}/catalog/nodes", timeout=5).json()
            checks = requests.get(f"{base}/agent/checks", timeout=5).json()
        except (requests.RequestException, ValueError):
            return False
        return len(left) == self._nodes and not checks


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("node"), int(os.environ.get("KVNODE_TEST_NODES", "1")))
    yield made
    made.stop()


@pytest.fixture
def consul_instance(server: Server) -> Instance:
    """What they wait for: a leader."""
    server.start()
    return Instance(None, server.port, server.version)


def _wait(ports: list[int]) -> str:
    """Wait until all know the leader; return it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        said = {_leader(port) for port in ports}
        if len(said) == 1 and "" not in said:
            return said.pop()
        time.sleep(0.05)
    raise AssertionError(f"no leader within {PATIENCE_S} s")


def _leader(port: int) -> str:
    try:
        with closing(
            requests.get(f"http://127.0.0.1:{port}/v1/status/leader", timeout=2)
        ) as answer:
            return str(answer.json()) if answer.status_code == 200 else ""
    except (requests.RequestException, ValueError):
        return ""


@pytest.fixture
def acl_consul_instance() -> None:
    pytest.skip("there are no access rules here")


@pytest.fixture
def consul_port(consul_instance: Instance) -> tuple[int, str]:
    return consul_instance.port, consul_instance.version
