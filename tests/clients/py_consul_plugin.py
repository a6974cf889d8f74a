"""Fixtures for py-consul's own tests, in the place of those that start containers.

Loaded by ``test_py_consul`` into another pytest, so it imports nothing of ours: the word ``tests`` is theirs
there. Each test gets a node
of its own, started as the suites of Consul's clients start one: ``agent -dev -config-file FILE``.
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


@pytest.fixture
def consul_instance(tmp_path: Path) -> Iterator[Instance]:
    """What they wait for: a leader, and a service that can be registered and is seen."""
    http, server, serf = free_ports(3)
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "ports": {"http": http, "server": server, "serf_lan": serf, "https": -1, "dns": -1},
                "bind_addr": "127.0.0.1",
                "performance": {"raft_multiplier": 1},
                "enable_script_checks": True,
            }
        )
    )
    command = [sys.executable, "-m", "kvnode", "agent", "-dev", "-config-file", str(file)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield Instance(None, http, _wait(http))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
