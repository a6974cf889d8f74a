"""Fixtures for py-consul's own tests, in the place of those that start containers.

Loaded by ``test_py_consul`` into another pytest, so it imports nothing of ours: the word ``tests`` is theirs
there. The node is started as the suites of Consul's clients start one: ``agent -dev -config-file FILE``.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

Instance = collections.namedtuple("Instance", ["container", "port", "version"])
PATIENCE_S = 20.0


def free_ports(count: int) -> list[int]:
    """All are held open together, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="session", autouse=True)
def no_token() -> None:
    os.environ.pop("CONSUL_HTTP_TOKEN", None)


class Server:
    """One node, used again by the next test as long as nothing of the last one is left on it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.port = 0
        self.version = ""

    def start(self) -> None:
        """Start a new one, unless there is a clean one."""
        if self._process is not None and self._process.poll() is None and self._clean():
            return
        self.stop()
        self._starts += 1
        self.port, server, serf = free_ports(3)
        file = self._directory / f"config-{self._starts}.json"
        file.write_text(
            json.dumps(
                {
                    "ports": {"http": self.port, "server": server, "serf_lan": serf,
                              "https": -1, "dns": -1},
                    "bind_addr": "127.0.0.1",
                    "performance": {"raft_multiplier": 1},
                    "enable_script_checks": True,
                }
            )
        )  # fmt: skip
        command = [sys.executable, "-m", "kvnode", "agent", "-dev", "-config-file", str(file)]
        with (self._directory / f"log-{self._starts}").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.version = _wait(self.port)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

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
            return len(left) == 1 and not requests.get(f"{base}/agent/checks", timeout=5).json()
        except (requests.RequestException, ValueError):
            return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("node"))
    yield made
    made.stop()


@pytest.fixture
def consul_instance(server: Server) -> Instance:
    """What they wait for: a leader."""
    server.start()
    return Instance(None, server.port, server.version)


def _wait(port: int) -> str:
    base = f"http://127.0.0.1:{port}/v1/"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with closing(requests.get(base + "status/leader", timeout=2)) as answer:
                if answer.status_code == 200 and answer.json():
                    break
        except requests.RequestException:
            pass
        time.sleep(0.05)
    found: dict[str, Any] = requests.get(base + "agent/self", timeout=2).json()
    return str(found["Config"]["Version"])


@pytest.fixture
def acl_consul_instance() -> None:
    pytest.skip("there are no access rules here")


@pytest.fixture
def consul_port(consul_instance: Instance) -> tuple[int, str]:
    return consul_instance.port, consul_instance.version
