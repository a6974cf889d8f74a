"""Real nodes for the command line's tests: processes of their own, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

START_S = 20.0


class Node:
    """One ``kvnode agent`` whose log lines are read as they come."""

    def __init__(self, *flags: str, cwd: Path, python: tuple[str, ...] = ()) -> None:
        # Settings of the machine that runs the tests must not reach the node.
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KVNODE_", "CONSUL_"))}
        self.log = cwd / "stderr.log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, *python, "-m", "kvnode", "agent", *flags],
                stdin=subprocess.DEVNULL,
                stderr=sink,
                cwd=cwd,
                env=environ,
            )

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):  # one that is being written just now
                found.append(json.loads(line))
        return found

    def event(self, name: str) -> dict[str, Any]:
        """Wait for a log line; fail when the node ends without it."""
        deadline = time.monotonic() + START_S
        while True:
            ended = self.process.poll() is not None
            for line in self.lines():
                if line["event"] == name:
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(
                    f"no {name}; exit code {self.process.poll()}\n{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://{self.event('node_started')['http_address']}"

    def ready(self) -> str:
        """Wait until it may be asked; return its address."""
        self.event("leader_known")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with (
                suppress(OSError),
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer,
            ):
                answer.read()
                return self.url
            time.sleep(0.02)
        raise AssertionError(f"not ready\n{self.log.read_text()[-3000:]}")

    def busy(self, address: str) -> None:
        """Wait until a request besides our own is in progress."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                for line in answer.read().decode().splitlines():
                    if (
                        line.startswith("kvnode_http_requests_in_progress ")
                        and float(line.split()[1]) >= 2
                    ):
                        return
            time.sleep(0.02)
        raise AssertionError("no request in progress")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(START_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start nodes with given flags; whatever is still there at the end is killed."""
    nodes: list[Node] = []

    def start(*flags: str, python: tuple[str, ...] = ()) -> Node:
        cwd = tmp_path / f"run-{len(nodes)}"
        cwd.mkdir()
        nodes.append(Node(*flags, cwd=cwd, python=python))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.process.kill()
        node.process.wait()


@pytest.fixture(scope="session")
def cluster_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one running node that all tests share; each uses keys of its own."""
    node = Node(
        "-dev", "--http-port=0", "--peer-port=0", "--node-name=solo",
        cwd=tmp_path_factory.mktemp("solo"),
    )  # fmt: skip
    try:
        yield node.ready()
    finally:
        node.process.kill()
        node.process.wait()
